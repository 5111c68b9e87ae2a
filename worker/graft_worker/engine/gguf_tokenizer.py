"""A tokenizer of byte pairs as llama.cpp has it: its tokens, its merges, and by which rule it cuts text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from graft_scheduler.states import FailureClass
from graft_worker.link import JobError

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {WORDS + r"\p{N}{1,3}" + REST: "llama-bpe", WORDS + r"\p{N}" + REST: "qwen2"}
"""llama.cpp's name for each expression by which a tokenizer cuts text before it merges bytes."""
OTHER_WAY = "Fuse it (`graft fuse`), and let llama.cpp's convert_hf_to_gguf.py make a file of that"
BYTES_ALONE = "gpt-2"
BYTES_AND_DIGITS = "smollm"


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """What `tokenizer.json` says."""

    folder: Path
    cut: str
    tokens: Mapping[int, str]
    added: Mapping[int, bool]
    """Tokens that are not made of bytes; whether they are special."""

    def write(self, writer: GGUFWriter, size: int) -> None:
        """Add it to a file of a model with `size` embeddings; those without a token are padding."""
        numbers = range(size)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list([self.tokens.get(number, f"[PAD{number}]") for number in numbers])
        writer.add_token_types([self._kind(number) for number in numbers])
        SpecialVocab(self.folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)

    def _kind(self, number: int) -> TokenType:
        if number not in self.tokens:
            return TokenType.UNUSED
        if number not in self.added:
            return TokenType.NORMAL
        return TokenType.CONTROL if self.added[number] else TokenType.USER_DEFINED


def read_tokenizer(folder: Path) -> ByteTokenizer:
    """The tokenizer in a model's folder.

    Raises:
        JobError: llama.cpp would cut text otherwise, or not know it; class `config`.
    """
    try:
        found = json.loads((folder / "tokenizer.json").read_bytes())
    except FileNotFoundError as error:
        raise _unknown("has no tokenizer.json") from error
    model = found.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece" if model.get("byte_fallback") else model.get("type")
        raise _unknown(f"has a tokenizer of the kind {kind}, not one of byte pairs")
    if not model.get("merges"):
        raise _unknown("has a tokenizer without merges, which llama.cpp does not load")
    if found.get("normalizer") not in (None, {"type": "NFC"}):
        raise _unknown("has a tokenizer that changes text before it cuts it")
    added = {int(token["id"]): bool(token["special"]) for token in found.get("added_tokens", [])}
    tokens = {int(number): token for token, number in model["vocab"].items()}
    tokens |= {int(token["id"]): token["content"] for token in found.get("added_tokens", [])}
    return ByteTokenizer(folder, _cut(found.get("pre_tokenizer") or {}), tokens, added)


def _cut(pre_tokenizer: Mapping[str, Any]) -> str:
    """By which of llama.cpp's rules the tokenizer cuts text.

    Raises:
        JobError: by none of them.
    """
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if kinds[-1] == "ByteLevel" and not last.get("add_prefix_space"):
        own = last.get("use_regex", True)
        if kinds == ["ByteLevel"] and own:
            return BYTES_ALONE
        if kinds == ["Digits", "ByteLevel"] and own and steps[0].get("individual_digits"):
            return BYTES_AND_DIGITS
        if kinds == ["Split", "ByteLevel"] and not own:
            name = CUTS.get((steps[0].get("pattern") or {}).get("Regex", ""))
            if name is not None:
                return name
    raise _unknown("has a tokenizer whose way to cut text was not compared with llama.cpp's")


def _unknown(what: str) -> JobError:
    return JobError(FailureClass.CONFIG, f"the base {what}. {OTHER_WAY}")
