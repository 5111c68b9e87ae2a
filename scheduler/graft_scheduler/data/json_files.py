"""JSON files: a list of objects, or an object with such a list in it, each row with the line it begins on.

A fault in the middle costs that row only: reading goes on at the next line that begins as the first row did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_scheduler.data.faults import BadRow, Kind
from graft_scheduler.data.jsonl import (
    BOM,
    kind_of,
    no_constant,
    open_bytes,
    parse,
    parse_value,
    read_jsonl,
    unique_object,
)
from graft_scheduler.data.layouts import detect_format
from graft_scheduler.data.rows import Row, Unread
from graft_scheduler.jobs import DataFormat

MOST_BYTES = 2 << 30
"""A list in one JSON document is held in memory as text."""
LISTS_OF_A_ROW = frozenset({"messages", "conversations", "tools", "prompt", "completion"})
"""Fields that hold lists of objects within one row."""
_SPACE = re.compile(r"\s*")
_NEXT = re.compile(r"(?:\n(?P<indent>[ \t]*)|,[ \t]*)\{")
"""Where a row may begin."""
MOST_PEEKED = 1 << 22
PEEKED = 20
"""Letters, and lines, of which most are rows in JSONL by another name."""
_BEGIN = re.compile(r"\[\s*\{")
_DECODER = json.JSONDecoder(object_pairs_hook=unique_object, parse_constant=no_constant)


def read_json(path: Path) -> Iterator[Row | Unread]:
    """The rows of a file, in its order.

    Raises:
        OSError, EOFError: it cannot be read to its end.
    """
    with open_bytes(path) as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        text = f"is JSON of more than {MOST_BYTES >> 30} GiB; make it JSONL, an object on each line"
        yield Unread(None, Kind.FILE, text)
        return
    text = raw.removeprefix(BOM).decode("utf-8", "surrogateescape")
    del raw
    if _is_jsonl(text):
        yield from read_jsonl(path)
    elif (start := _list_start(text)) is not None:
        yield from _List(text, start).rows()
    elif text.strip():
        yield _explain(text)


def _list_start(text: str) -> int | None:
    """Where the list of rows begins: at once, or as a list of objects in the outer object."""
    place = _skip(text, 0)
    if text[place : place + 1] != "{":
        return place if text[place : place + 1] == "[" else None
    place = _skip(text, place + 1)
    lists: list[int] = []
    try:
        while text[place : place + 1] == '"':
            name, place = _DECODER.raw_decode(text, place)
            place = _skip(text, _skip(text, place) + 1)
            if name not in LISTS_OF_A_ROW and (begin := _BEGIN.match(text, place)):
                lists.append(place)
                if _is_row(text, begin.end() - 1):
                    return place
            _, place = _DECODER.raw_decode(text, place)
            place = _skip(text, _skip(text, place) + 1)
    except (ValueError, RecursionError, BadRow):
        pass
    return lists[0] if lists else None


def _is_row(text: str, place: int) -> bool:
    """Whether the object at `place` is a row of a known format."""
    try:
        value, _ = _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError, BadRow):
        return False
    return isinstance(value, dict) and detect_format(value) is not None


def _is_jsonl(text: str) -> bool:
    """Whether most of the first lines are rows, though the file's name says otherwise."""
    if text[_skip(text, 0) :][:1] != "{":
        return False
    lines = [line for line in text[:MOST_PEEKED].splitlines() if line.strip()][:PEEKED]
    return sum(_known(line) is not None for line in lines) > len(lines) / 2


def _known(line: str) -> DataFormat | None:
    """The format of the row that a line holds, if it does."""
    try:
        return detect_format(parse(line))
    except BadRow:
        return None


def _explain(text: str) -> Unread:
    """What is wrong with a file without a list of rows."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return Unread(error.lineno, Kind.SYNTAX, f"is not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Unread(1, Kind.SYNTAX, f"is not JSON that can be read: {error}")
    return Unread(1, Kind.SYNTAX, f"is {kind_of(value)}; a JSON file must hold a list of rows")


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None  # it matches nothing, too
    return match.end()


def _has_rows(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) and detect_format(one) for one in value)


@dataclass(slots=True)
class _List:
    """A list in a text, read element by element."""

    text: str
    start: int
    place: int = 0
    line: int = 1
    _counted: int = 0
    """Up to where lines were counted."""

    def rows(self) -> Iterator[Row | Unread]:
        self.place = _skip(self.text, self.start + 1)
        while self.text[self.place : self.place + 1] != "]":
            start = self.place
            line = self._line_of(start)
            problem = None
            try:
                value, self.place = _DECODER.raw_decode(self.text, start)
                if isinstance(value, dict):
                    yield Row(line, value)
                else:
                    yield Unread(line, Kind.SYNTAX, f"is {kind_of(value)}; each row must be an object")
                problem = self._separator()
            except json.JSONDecodeError as error:
                problem = f"is not JSON: {error.msg} on line {error.lineno}, column {error.colno}"
            except RecursionError:
                problem = "is nested too deeply"
            except BadRow as error:
                problem = error.text
            except ValueError as error:
                problem = f"is not JSON that can be read: {error}"
            if problem is not None:
                goes_on = self._find_next(start)
                yield Unread(line, Kind.SYNTAX if goes_on else Kind.FILE, problem)
                if not goes_on:
                    return
        yield from self._rest()

    def _rest(self) -> Iterator[Unread]:
        """What stands behind the list: nothing, or the rest of the outer object, without other rows."""
        rest = _skip(self.text, self.place + 1)
        outer = self.text[: self.start]
        if not outer.strip():
            if rest < len(self.text):
                yield Unread(self._line_of(rest), Kind.FILE, "something follows the end of the list")
            return
        # With an empty list in the place of this one the whole must be one object.
        line = self._line_of(rest) if rest < len(self.text) else self._line_of(len(self.text))
        try:
            whole = parse(outer + "[]" + self.text[self.place + 1 :])
        except BadRow as error:
            yield Unread(line, Kind.FILE, f"what is around the list of rows {error.text}")
            return
        more = [name for name, value in whole.items() if _has_rows(value)]
        if more:
            line = self.text.count("\n", 0, max(0, self.text.find(f'"{more[0]}"'))) + 1
            text = (
                f"has another list of rows, `{more[0]}`; a file holds one, and a folder a file for each split"
            )
            yield Unread(line, Kind.FILE, text)

    def _separator(self) -> str | None:
        """On to the next row; says what is wrong with what stands between."""
        place = _skip(self.text, self.place)
        found = self.text[place : place + 1]
        if found == "]":
            self.place = place
            return None
        if not found:
            return "the list does not end: the file is cut off"
        if found != ",":
            return f"a comma is missing before {found!r}"
        self.place = _skip(self.text, place + 1)
        if self.text[self.place : self.place + 1] in {"]", ""}:
            return "a comma at the end of the list" if self.text[self.place :][:1] else "the file is cut off"
        return None

    def _find_next(self, start: int) -> bool:
        """On to the next row: a line that begins one no deeper than this, or what is of a known format."""
        depth = start - self.text.rfind("\n", 0, start) - 1
        is_first = not self.text[start - depth : start].isspace() and depth > 0
        for found in _NEXT.finditer(self.text, start + 1):
            place, indent = found.end() - 1, found["indent"]
            is_outer = indent is not None and len(indent) <= depth and not is_first
            if is_outer or _is_row(self.text, place):
                self.place = place
                return True
        return False

    def _line_of(self, place: int) -> int:
        self.line += self.text.count("\n", self._counted, place)
        self._counted = place
        return self.line


def value_of(text: str) -> Any:
    """What a cell of a table says, where it is JSON; else the text."""
    if text[:1] in "[{":
        try:
            return parse_value(text)
        except BadRow:
            return text
    return text
