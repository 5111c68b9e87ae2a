"""Tokenizers that the hosts' library does not open as their `tokenizer.json` says.

Some classes take the vocabulary and the merges alone, and bring their own way to split a text; those of
the models that mlx-lm trains are repeated here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graft_scheduler.errors import NoTokenizer
from graft_scheduler.rendering.class_names import NOT_HERE, class_name
from graft_scheduler.rendering.folders import TokenizerFolder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """How a class differs from the folder's `tokenizer.json`."""

    split: Callable[[Tokenizer, Mapping[str, Any]], None] = lambda tokenizer, config: None
    """Gives the tokenizer the class's own steps before and after the model of its vocabulary."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """What the class calls its special tokens where the folder is silent."""


def class_of(folder: TokenizerFolder) -> TokenizerClass:
    """The class by which a host would open `folder`.

    Raises:
        NoTokenizer: one that is not repeated here.
    """
    name = class_name(folder)
    if name in NOT_HERE:
        raise NoTokenizer(f"{folder.path} is opened as a {name}, which splits by rules that only a host has")
    return CLASSES.get(name, TokenizerClass())


def _flags(tokenizer: Tokenizer, *, fuse_unknown: bool = False, byte_fallback: bool = False) -> Any:
    """The vocabulary's model, as the classes set it."""
    model: Any = tokenizer.model
    model.dropout = None
    model.fuse_unk, model.byte_fallback, model.ignore_merges = fuse_unknown, byte_fallback, False
    return model


def _byte_level(*before: str, use_regex: bool = True) -> Callable[[Tokenizer, Mapping[str, Any]], None]:
    """Texts in their composed form, cut by the patterns `before`, then into bytes."""

    def split(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
        from tokenizers import Regex, decoders, normalizers, pre_tokenizers

        _flags(tokenizer).unk_token = None
        prefix = bool(config.get("add_prefix_space"))
        last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)
        cuts: list[Any] = [pre_tokenizers.Split(Regex(one), behavior="isolated") for one in before]
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last]) if cuts else last
        tokenizer.decoder = decoders.ByteLevel()

    return split


def _split_gpt2(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    _byte_level()(tokenizer, config)
    tokenizer.normalizer = None


def _split_gpt_neox(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    from tokenizers import processors

    _byte_level()(tokenizer, config)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1")


def _split_cohere(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    from tokenizers import pre_tokenizers

    _byte_level()(tokenizer, config)
    digits, rest = pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])


def _split_llama(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    from tokenizers import decoders, pre_tokenizers

    _flags(tokenizer, fuse_unknown=True, byte_fallback=True).unk_token = None
    asked = config.get("add_prefix_space")
    has_prefix = True if asked is None else bool(asked)
    scheme = ("always" if config.get("legacy") else "first") if has_prefix else "never"
    last = [decoders.Strip(content=" ", left=1)] if has_prefix else []
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )


def _split_gemma(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    unknown = _text(config.get("unk_token")) or "<unk>"
    _flags(tokenizer, fuse_unknown=True, byte_fallback=True).unk_token = unknown
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


CLASSES: dict[str, TokenizerClass] = {
    "CohereTokenizer": TokenizerClass(
        _split_cohere,
        {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "sep_token": "<SEP>",
            "mask_token": "<MASK_TOKEN>",
        },
    ),
    "GPT2Tokenizer": TokenizerClass(
        _split_gpt2, dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT)
    ),
    "GPTNeoXTokenizer": TokenizerClass(
        _split_gpt_neox,
        {
            **dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT),
            "pad_token": "<|padding|>",
        },
    ),
    "GemmaTokenizer": TokenizerClass(
        _split_gemma,
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "LlamaTokenizer": TokenizerClass(
        _split_llama, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    ),
    **{
        name: TokenizerClass(
            _byte_level(pattern, use_regex=False),
            dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END_OF_TEXT),
        )
        for name, pattern in (("Qwen2Tokenizer", _QWEN2), ("Qwen3_5Tokenizer", _QWEN3_5))
    },
}
