"""Counts tokens at submit, where the model's tokenizer is at hand and its library installed.

Without a count a row is taken to have a token for each of its bytes, which is safe and often four
times too many. Only rows that could be the longest are counted, and a sample of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_scheduler.data.rows import Row
from graft_scheduler.data.splitting import permutation

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_TOKENS = 64
"""What a chat template adds to a row at most: role marks, a date, a default system prompt."""
TURN_TOKENS = 16
"""And to each turn of a chat."""
MOST_COUNTED = 4096
"""Rows that are counted to find the longest; rows beyond are taken by their bytes."""
SAMPLED = 512
AT_ONCE = 64

Encode = Callable[[Sequence[str]], list[int]]
"""From texts to their numbers of tokens."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Lengths of some rows of a file, in tokens."""

    longest: list[int]
    """Of rows among which the longest is."""
    sample: list[int]
    """Of rows chosen at random: all of a small file."""


def count_tokens(
    read: Callable[[int], Row], sizes: Sequence[int], folder: Path, seed: int
) -> TokenCounts | None:
    """Lengths of the rows that `read` gives by their place; none without a tokenizer.

    `sizes` are the bytes of each row's line, and no row has more tokens than that, but for its template.
    """
    encode = _encoder(folder)
    if encode is None:
        return None
    by_size = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    found: list[int] = []
    place = 0
    while place < min(len(by_size), MOST_COUNTED):
        if found and sizes[by_size[place]] + _extra(read(by_size[place])) <= max(found):
            break
        found += _count(map(read, by_size[place : place + AT_ONCE]), encode)
        place += AT_ONCE
    else:
        found += [sizes[one] + _extra(read(one)) for one in by_size[place : place + 1]]
    sample = permutation(len(sizes), f"lengths/{seed}")[:SAMPLED]
    return TokenCounts(found, _count(map(read, sample), encode))


def _count(rows: Iterable[Row], encode: Encode) -> list[int]:
    texts, extra = [], []
    for row in rows:
        texts.append("\n".join(_strings(row.fields)))
        extra.append(_extra(row))
    return [tokens + more for tokens, more in zip(encode(texts), extra, strict=True)]


def _encoder(folder: Path) -> Encode | None:
    path = folder / TOKENIZER_FILE
    try:
        from tokenizers import Tokenizer  # a second to import, and only in the worker's extra

        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # not installed, no such file, or one of another version: bytes do as well
        return None

    def encode(texts: Sequence[str]) -> list[int]:
        return [len(one.ids) for one in tokenizer.encode_batch_fast(list(texts))]

    return encode


def _strings(value: Any) -> Iterator[str]:
    """Every string in a row, names of fields left out."""
    match value:
        case str():
            yield value
        case Mapping():
            for one in value.values():
                yield from _strings(one)
        case list():
            for one in value:
                yield from _strings(one)


def _extra(row: Row) -> int:
    messages = row.fields.get("messages")
    turns = len(messages) if isinstance(messages, list) else 2
    return TEMPLATE_TOKENS + turns * TURN_TOKENS
