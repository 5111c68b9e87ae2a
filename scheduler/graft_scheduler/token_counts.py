"""Counts tokens at submit, where the model's tokenizer is at hand and its libraries installed.

Without a count a row is taken to have a token for each of its bytes, which is safe and often four
times too many. Only rows that could be the longest are counted, and a sample of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft_scheduler.data.rows import Row
from graft_scheduler.data.splitting import permutation
from graft_scheduler.errors import NoTokenizer
from graft_scheduler.jobs import DataFormat
from graft_scheduler.rendering import ChatTokenizer, lengths, open_tokenizer

TEMPLATE_TOKENS = 64
"""What a chat template adds to a row at most: role marks, a date, a default system prompt."""
TURN_TOKENS = 16
"""And to each turn of a chat."""
MOST_COUNTED = 4096
"""Rows that are counted to find the longest; rows beyond are taken by their bytes."""
SAMPLED = 512
AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Lengths of some rows of a file, in tokens, as they are trained."""

    longest: list[int]
    """Of rows among which the longest is."""
    sample: list[int]
    """Of rows chosen at random: all of a small file."""


@dataclass(frozen=True, slots=True)
class RowFile:
    """The rows of a file that were checked."""

    read: Callable[[int], Row]
    """By their place."""
    sizes: Sequence[int]
    """The bytes of each row's line. No row has more tokens than that, but for its template."""
    format: DataFormat

    def most(self, place: int, template_tokens: int) -> int:
        """More tokens than this the row does not have, with so many of the template's own."""
        messages = self.read(place).fields.get("messages")
        turns = len(messages) if isinstance(messages, list) else 2
        return self.sizes[place] + template_tokens + turns * TURN_TOKENS


def count_tokens(file: RowFile, folder: Path, seed: int) -> TokenCounts | None:
    """Lengths of some rows of `file` for the model in `folder`; none without a tokenizer, or where its
    template takes no row.
    """
    try:
        tokenizer = open_tokenizer(folder)
    except NoTokenizer:  # bytes do as well
        return None
    longest = _longest(file, tokenizer)
    sample = _count(file, permutation(len(file.sizes), f"lengths/{seed}")[:SAMPLED], tokenizer)
    return TokenCounts(longest, sample) if longest and sample else None


def _longest(file: RowFile, tokenizer: ChatTokenizer) -> list[int]:
    """The largest rows first, until no row that is left can be longer than one that was counted."""
    by_size = sorted(range(len(file.sizes)), key=lambda place: -file.sizes[place])
    own = _template_tokens(tokenizer)
    found: list[int] = []
    for place in range(0, min(len(by_size), MOST_COUNTED), AT_ONCE):
        if found and file.most(by_size[place], own) <= max(found):
            return found
        found += _count(file, by_size[place : place + AT_ONCE], tokenizer)
    return found + [file.most(one, own) for one in by_size[MOST_COUNTED : MOST_COUNTED + 1]]


def _count(file: RowFile, places: Sequence[int], tokenizer: ChatTokenizer) -> list[int]:
    """Of the rows at these places; those that the template refuses are not trained, and left out."""
    rows = (file.read(place).fields for place in places)
    return [found for found in lengths(tokenizer, file.format, rows) if found is not None]


def _template_tokens(tokenizer: ChatTokenizer) -> int:
    """What the template adds to any row: long where it has a system prompt of its own."""
    shortest = {"prompt": "a", "completion": "b"}
    found = next(lengths(tokenizer, DataFormat.COMPLETION, [shortest]), None)
    return max(found or 0, TEMPLATE_TOKENS)
