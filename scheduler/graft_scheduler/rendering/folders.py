"""What the files of a model's folder say of its tokenizer, read as the hosts' libraries read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_scheduler.errors import NoTokenizer

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
MODEL_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKENIZER_PATTERNS = (
    TOKENIZER_FILE,
    CONFIG_FILE,
    SPECIAL_FILE,
    TEMPLATE_FILE,
    f"{TEMPLATE_FOLDER}/*.jinja",
    MODEL_FILE,
    GENERATION_FILE,
)
"""All that is read here, and nothing else of a repository."""

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerFolder:
    """The settings of a tokenizer, without its vocabulary."""

    path: Path
    """Its `tokenizer.json`."""
    config: Mapping[str, Any]
    """Of `tokenizer_config.json`, the special tokens of older folders among it."""
    model: Mapping[str, Any]
    """Of `config.json`."""
    templates: str | Mapping[str, str] | None
    end_ids: tuple[int, ...]
    """Tokens at which answers end, besides the tokenizer's own end token."""

    @property
    def declared_class(self) -> str | None:
        """The class that the folder names for its tokenizer, without the `Fast` of old."""
        name = self.config.get("tokenizer_class") or self.model.get("tokenizer_class")
        return name.removesuffix("Fast") if isinstance(name, str) else None


def read_folder(folder: Path) -> TokenizerFolder:
    """The tokenizer of the model in `folder`.

    Raises:
        NoTokenizer: there is none, or one that only a host can build; says why.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise NoTokenizer(f"{folder} has no {TOKENIZER_FILE}; a host builds its tokenizer from other files")
    config = dict(_read_json(folder / CONFIG_FILE))
    if "added_tokens_decoder" not in config:
        config.update(_read_json(folder / SPECIAL_FILE))
    model = _read_json(folder / MODEL_FILE)
    found = TokenizerFolder(path, config, model, _templates(folder, config), _end_ids(folder, model))
    _check_own_code(folder, found)
    return found


def _check_own_code(folder: Path, found: TokenizerFolder) -> None:
    """Refuse what is rendered or split by more than these files say."""
    auto_map = found.config.get("auto_map")
    if isinstance(auto_map, list) or (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map):
        raise NoTokenizer(f"the tokenizer of {folder} runs the model's own code, which only a host does")
    if found.config.get("chat_template_type") or found.model.get("model_type") in _OWN_TEMPLATES:
        raise NoTokenizer(f"the chats of {folder} are rendered by code of mlx-lm, which only a host has")
    if found.config.get("fix_mistral_regex"):
        raise NoTokenizer(f"the tokenizer of {folder} asks for `fix_mistral_regex`, which only a host does")


_OWN_TEMPLATES = frozenset({"muse_spark"})
"""Model types that mlx-lm renders without being told by the tokenizer's config."""


def _templates(folder: Path, config: Mapping[str, Any]) -> str | Mapping[str, str] | None:
    """Files come before the config; a lone default is the only template."""
    files = {path.name.removesuffix(".jinja"): path for path in (folder / TEMPLATE_FOLDER).glob("*.jinja")}
    if (folder / TEMPLATE_FILE).is_file():
        files.setdefault("default", folder / TEMPLATE_FILE)
    found: Any = {name: _read(path) for name, path in files.items()} or config.get("chat_template")
    if isinstance(found, list):
        found = {one["name"]: one["template"] for one in found if isinstance(one, dict)}
    if isinstance(found, dict) and set(found) == {"default"} and files:
        return str(found["default"])
    if found is not None and not isinstance(found, str | dict):
        raise NoTokenizer(
            f"`chat_template` in {folder / CONFIG_FILE} is neither text nor a list of templates"
        )
    return found


def _end_ids(folder: Path, model: Mapping[str, Any]) -> tuple[int, ...]:
    """Of `config.json`, or of `generation_config.json` where that names any."""
    try:
        generation = _read_json(folder / GENERATION_FILE)
    except NoTokenizer:  # mlx-lm does without a broken one
        generation = {}
    found = generation.get("eos_token_id") or model.get("eos_token_id")
    if isinstance(found, int):
        return (found,)
    return tuple(found) if isinstance(found, list) else ()


def _read_json(path: Path) -> Mapping[str, Any]:
    """The object in the file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_read(path))
    except ValueError as error:
        raise NoTokenizer(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise NoTokenizer(f"{path} holds no JSON object")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NoTokenizer(f"{path} cannot be read: {error}") from error
