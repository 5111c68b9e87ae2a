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
from graft_scheduler.data.jsonl import BOM, kind_of, open_bytes, parse, parse_value, read_jsonl, unique_object
from graft_scheduler.data.rows import Row, Unread

MOST_BYTES = 2 << 30
"""A list in one JSON document is held in memory as text."""
LISTS_OF_A_ROW = frozenset({"messages", "conversations", "tools", "prompt", "completion"})
"""Fields that hold lists of objects within one row."""
_SPACE = re.compile(r"\s*")
_BEGIN = re.compile(r"\[\s*\{")
_DECODER = json.JSONDecoder(object_pairs_hook=unique_object)


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
    try:
        text = raw.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        told = f"is not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8"
        yield Unread(line, Kind.ENCODING, told)
        return
    del raw
    if _is_jsonl(text):
        yield from read_jsonl(path)
    elif (start := _list_start(text)) is not None:
        yield from _List(text, start).rows()
    elif text.strip():
        yield Unread(1, Kind.SYNTAX, _what(text))


def _list_start(text: str) -> int | None:
    """Where the list of rows begins: at once, or as a list of objects in the outer object."""
    place = _skip(text, 0)
    if text[place : place + 1] != "{":
        return place if text[place : place + 1] == "[" else None
    place = _skip(text, place + 1)
    try:
        while text[place : place + 1] == '"':
            name, place = _DECODER.raw_decode(text, place)
            place = _skip(text, _skip(text, place) + 1)
            if name not in LISTS_OF_A_ROW and _BEGIN.match(text, place):
                return place
            _, place = _DECODER.raw_decode(text, place)
            place = _skip(text, _skip(text, place) + 1)
    except (ValueError, RecursionError, BadRow):
        return None
    return None


def _is_jsonl(text: str) -> bool:
    """Whether the first line is a row, though the file's name says otherwise."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        found = parse(first)
    except BadRow:
        return False
    return bool(rest.strip()) or bool(LISTS_OF_A_ROW & found.keys())


def _what(text: str) -> str:
    try:
        return f"is {kind_of(parse_value(text))}; a JSON file must hold a list of rows"
    except BadRow as error:
        return error.text


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None  # it matches nothing, too
    return match.end()


@dataclass(slots=True)
class _List:
    """A list in a text, read element by element."""

    text: str
    place: int
    line: int = 1
    _counted: int = 0
    """Up to where lines were counted."""
    _first_indent: str | None = None

    def rows(self) -> Iterator[Row | Unread]:
        self.place = _skip(self.text, self.place + 1)
        while self.text[self.place : self.place + 1] != "]":
            start = self.place
            line = self._line_of(start)
            self._first_indent = self._indent(start) if self._first_indent is None else self._first_indent
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
                yield Unread(line, Kind.SYNTAX, problem)
                if not self._find_next(start):
                    return
        rest = _skip(self.text, self.place + 1)
        if rest < len(self.text) and self.text[rest] not in "},":
            yield Unread(self._line_of(rest), Kind.SYNTAX, "something follows the end of the list")

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
        """On to the next line that begins as the first row did, or the end of the list."""
        pattern = re.compile(rf"\n{re.escape(self._first_indent or '')}\{{")
        found = pattern.search(self.text, start + 1)
        if found is None:
            return False
        self.place = found.end() - 1
        return True

    def _indent(self, place: int) -> str:
        begin = self.text.rfind("\n", 0, place) + 1
        return self.text[begin:place] if self.text[begin:place].isspace() else ""

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
