"""A model's tokenizer and chat template, without the libraries of the hosts: `tokenizers` and Jinja alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graft_scheduler.errors import NoTokenizer
from graft_scheduler.rendering.classes import class_of
from graft_scheduler.rendering.folders import NAMED, TokenizerFolder

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding
    from tokenizers import Tokenizer as Backend

    from graft_scheduler.rendering.templates import ChatTemplates

_THOUGHT_MARKS = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|channel>", "<channel|>"),
    ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
)
"""Tokens by which mlx-lm knows a model that thinks, and tells its template so."""


class ChatTokenizer:
    """The tokenizer of one model, as a host would open it. May be shared by threads."""

    def __init__(
        self,
        backend: Backend,
        special_tokens: Mapping[str, str],
        templates: ChatTemplates | None,
        end_ids: Sequence[int],
    ) -> None:
        self._backend = backend
        self._templates = templates
        self.bos_token_id = self._id_of(special_tokens, "bos_token")
        self.eos_token_id = self._id_of(special_tokens, "eos_token")
        own = () if self.eos_token_id is None else (self.eos_token_id,)
        self.eos_token_ids = frozenset((*end_ids, *own))

    @property
    def has_chat_template(self) -> bool:
        return self._templates is not None

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Any = None,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        text = self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        return self.encode(text, add_special_tokens=False)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Any, add_generation_prompt: bool
    ) -> str:
        """The chat as text; raises whatever the template raises."""
        if self._templates is None:
            raise ValueError("the model has no chat template")
        return self._templates.render(messages, tools, add_generation_prompt=add_generation_prompt)

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Encoding]:
        """The same of many texts, on all cores."""
        return list(self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens))

    def decode(self, tokens: list[int], /, *, clean_up_tokenization_spaces: bool = False) -> str:
        assert not clean_up_tokenization_spaces  # nothing here wants a text that is not the tokens'
        return self._backend.decode(tokens, skip_special_tokens=False)

    def _id_of(self, special_tokens: Mapping[str, str], name: str) -> int | None:
        if name not in special_tokens:
            return None
        found = self._backend.token_to_id(special_tokens[name])
        if found is None and "unk_token" in special_tokens:
            return self._backend.token_to_id(special_tokens["unk_token"])
        return found


def build(folder: TokenizerFolder) -> ChatTokenizer:
    """The tokenizer that `folder` describes; its template is compiled when it is first used.

    Raises:
        NoTokenizer: packages are missing, or only a host can build it.
    """
    try:
        from tokenizers import Tokenizer as Backend

        from graft_scheduler.rendering.templates import ChatTemplates
    except ImportError as error:
        raise NoTokenizer(
            f"the package `{error.name}` is not installed; `pip install 'mlx-graft[data]'` counts tokens here"
        ) from error
    kind = class_of(folder)
    try:
        backend = Backend.from_file(str(folder.path))
    except Exception as error:  # written by a newer version, or broken; the library has one class for all
        raise NoTokenizer(f"{folder.path} cannot be read: {error}") from error
    kind.split(backend, folder.config)
    special = _special_tokens(folder, kind.special_tokens)
    _add_tokens(backend, folder, special)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(folder.config.get("split_special_tokens"))
    thinks = any(all(backend.token_to_id(one) is not None for one in marks) for marks in _THOUGHT_MARKS)
    variables = {**special, "enable_thinking": thinks}
    templates = None if folder.templates is None else ChatTemplates(folder.templates, variables)
    return ChatTokenizer(backend, special, templates, folder.end_ids)


def _special_tokens(folder: TokenizerFolder, defaults: Mapping[str, str]) -> dict[str, str]:
    """The named tokens, as the template sees them: the usual ones first, then the model's own."""
    config = folder.config
    more = config.get("extra_special_tokens")
    own = {name: one for name, one in config.items() if name.endswith("_token") and name not in NAMED}
    own.update(more if isinstance(more, dict) else {})
    named = {name: config.get(name, defaults.get(name)) for name in NAMED}
    texts = {name: _content(one) for name, one in {**named, **own}.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _content(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _add_tokens(backend: Backend, folder: TokenizerFolder, special: Mapping[str, str]) -> None:
    """What the folder names besides the tokens of its `tokenizer.json`."""
    from tokenizers import AddedToken

    there = {repr(one) for one in backend.get_added_tokens_decoder().values()}
    listed = [one for one in _listed(folder, AddedToken) if repr(one) not in there]
    backend.add_tokens(listed)
    known = {one.content for one in backend.get_added_tokens_decoder().values()}
    extra = folder.config.get("extra_special_tokens") or folder.config.get("additional_special_tokens") or ()
    names = [*special.values(), *(_content(one) for one in extra if not isinstance(extra, dict))]
    missing = [name for name in dict.fromkeys(names) if name is not None and name not in known]
    backend.add_tokens([AddedToken(name, special=True) for name in missing])


def _listed(folder: TokenizerFolder, kind: type[AddedToken]) -> Iterator[AddedToken]:
    """The added tokens of the config, by their numbers."""
    listed = folder.config.get("added_tokens_decoder") or {}
    for number in sorted(listed, key=int):
        yield kind(**listed[number])
