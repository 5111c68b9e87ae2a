"""What a profile trains on: the longest rows of a data set, or rows made up to be as long as they may be."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft_scheduler.jobs import DataRef

WORDS = (
    "apple",
    "branch",
    "copper",
    "delta",
    "engine",
    "forest",
    "garden",
    "harbor",
    "island",
    "journey",
    "kernel",
    "ladder",
    "meadow",
    "nickel",
    "orchard",
)
BYTES_PER_TOKEN = 8
"""More than any tokenizer makes of such words: every row is cut to the longest that is allowed."""


def write_longest(data: DataRef, folder: Path, rows: int) -> None:
    """The longest training rows of a data set, so many of them, to train and to validate on.

    A shorter data set is repeated.
    """
    from graft_scheduler.data.opening import inspect_source, open_source
    from graft_scheduler.data.sources import SourceFile, Split

    found: list[str] = []

    def take(_: object, file: SourceFile, __: object, fields: Mapping[str, Any]) -> None:
        if file.split is Split.TRAIN:
            found.append(json.dumps(fields, ensure_ascii=False))

    inspect_source(open_source(data), take).require()
    lines = sorted(found, key=len, reverse=True)
    _write(folder, [lines[index % min(rows, len(lines))] for index in range(rows)])


def write_made_up(folder: Path, rows: int, tokens: int) -> None:
    """Rows of words without a meaning, none shorter than `tokens`."""
    draw = random.Random(0)
    _write(folder, [json.dumps({"text": _text(draw, tokens)}) for _ in range(rows)])


def _text(draw: random.Random, tokens: int) -> str:
    words: list[str] = []
    length = 0
    while length < tokens * BYTES_PER_TOKEN:
        words.append(draw.choice(WORDS))
        length += len(words[-1]) + 1
    return " ".join(words)


def _write(folder: Path, lines: Sequence[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    for name in ("train.jsonl", "valid.jsonl"):
        (folder / name).write_text(text, encoding="utf-8")
