"""How long rows are in the model's own tokens, while they are read: of all, or of a sample of very many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graft_scheduler.data.faults import Fault, Kind
from graft_scheduler.data.inspection import Inspection
from graft_scheduler.data.rows import Row
from graft_scheduler.data.sources import SourceFile, Split
from graft_scheduler.jobs import DataFormat

if TYPE_CHECKING:
    from graft_scheduler.rendering import ChatTokenizer

MOST_COUNTED = 50_000
"""Lengths of a split that are kept: with more rows every second is, then every fourth, and so on."""
AT_ONCE = 2048
AT_ONCE_BYTES = 8 << 20
SHOWN = 3
"""Rows of the training set that are shown as they are trained on."""
MOST_TURNS = 200
"""Of chats with more it is not looked at what is learned: the host does."""
LEARNED_SAMPLE = 200
"""First rows of a split whose learned tokens are counted: finding the turns of a chat is slow."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A row as it is trained on."""

    file: str
    line: int
    pieces: tuple[tuple[str, bool], ...]
    """Text, and whether it is learned, up to the length that is trained."""
    tokens: int
    """Of the whole row."""


@dataclass(slots=True)
class TokenFacts:
    """The lengths of a split's rows."""

    lengths: list[int] = field(default_factory=list)
    stride: int = 1
    """One of so many rows is counted."""
    seen: int = 0
    truncated: int = 0
    """Of those counted."""
    counted: int = 0
    lost: int = 0
    refused: int = 0
    """By the template."""
    learned_tokens: int = 0
    sampled_tokens: int = 0

    @property
    def truncated_share(self) -> float:
        return self.truncated / self.counted if self.counted else 0.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    file: SourceFile
    line: int
    fields: Mapping[str, Any]


class TokenWatch:
    """Counts the rows that it is shown; `finish` when there are no more."""

    def __init__(self, tokenizer: ChatTokenizer, max_length: int, *, mask_prompt: bool) -> None:
        self._tokenizer, self._max_length, self._mask_prompt = tokenizer, max_length, mask_prompt
        self.facts: dict[Split, TokenFacts] = {}
        self.shown: list[Shown] = []
        self._found: Inspection | None = None
        self._waiting: dict[Split, list[_Waiting]] = {}
        self._bytes = 0

    def __call__(self, found: Inspection, file: SourceFile, row: Row, fields: Mapping[str, Any]) -> None:
        self._found = found
        facts = self.facts.setdefault(file.split, TokenFacts())
        facts.seen += 1
        if (facts.seen - 1) % facts.stride:
            return
        waiting = self._waiting.setdefault(file.split, [])
        waiting.append(_Waiting(file, row.line, fields))
        self._bytes += found.splits[file.split].sizes[-1]
        if len(waiting) >= AT_ONCE or self._bytes >= AT_ONCE_BYTES:
            self.finish()

    def finish(self) -> None:
        """Count what was shown and not counted yet."""
        for split, waiting in self._waiting.items():
            self._count(self.facts[split], waiting)
        self._waiting.clear()
        self._bytes = 0

    def _count(self, facts: TokenFacts, waiting: list[_Waiting]) -> None:
        from graft_scheduler.rendering import lengths

        assert self._found is not None  # it came with the rows
        found = lengths(self._tokenizer, self._found.trained_format, [one.fields for one in waiting])
        for one, length in zip(waiting, found, strict=True):
            facts.counted += 1
            self._look(facts, one, length)
            if length is not None:
                facts.lengths.append(length)
        while len(facts.lengths) > MOST_COUNTED:
            facts.lengths = facts.lengths[::2]
            facts.stride *= 2

    def _look(self, facts: TokenFacts, one: _Waiting, length: int | None) -> None:
        """What a row's length says of it, and for some rows which tokens are learned."""
        is_long = length is not None and length > self._max_length
        if is_long:
            facts.truncated += 1
            self._note(
                one, Kind.TRUNCATED, f"has {length} tokens, of which {self._max_length} are trained on"
            )
        if length is None or is_long or facts.counted <= LEARNED_SAMPLE:
            self._encode(facts, one)

    def _encode(self, facts: TokenFacts, one: _Waiting) -> None:
        from graft_scheduler.rendering import Unrendered, encode

        assert self._found is not None  # as above
        data_format = self._found.trained_format
        if data_format is DataFormat.CHAT and len(one.fields["messages"]) > MOST_TURNS:
            return  # finding the turns takes rendering the chat again for each
        try:
            encoded = encode(self._tokenizer, data_format, one.fields, mask_prompt=self._mask_prompt)
        except Unrendered as error:
            facts.refused += 1
            self._note(one, Kind.TEMPLATE, str(error))
            return
        learned = sum(encoded.learned[1 : self._max_length])
        if facts.counted <= LEARNED_SAMPLE:
            facts.learned_tokens += learned
            facts.sampled_tokens += min(len(encoded.tokens), self._max_length)
        if not learned:
            facts.lost += 1
            self._note(one, Kind.LOST, f"has nothing to learn in its first {self._max_length} tokens")
        if one.file.split is Split.TRAIN and len(self.shown) < SHOWN:
            self._show(one, encoded)

    def _show(self, one: _Waiting, encoded: Any) -> None:
        from graft_scheduler.rendering import Encoded, pieces

        cut = Encoded(encoded.tokens[: self._max_length], encoded.learned[: self._max_length])
        found = tuple((piece.text, piece.learned) for piece in pieces(self._tokenizer, cut))
        self.shown.append(Shown(one.file.name, one.line, found, len(encoded.tokens)))

    def _note(self, one: _Waiting, kind: Kind, text: str) -> None:
        assert self._found is not None  # as above
        self._found.faults.add(Fault(kind, one.file.name, one.line, text))
