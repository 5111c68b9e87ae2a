"""JSONL: an object on each line, in UTF-8; blank lines are skipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from graft_scheduler.data.faults import BadRow, Kind
from graft_scheduler.data.rows import Row, Unread

MOST_LINE_BYTES = 64 << 20
"""A longer line is no row of a data set, and would fill the memory."""
BOM = b"\xef\xbb\xbf"


def read_jsonl(path: Path) -> Iterator[Row | Unread]:
    """The rows of a file, in its order.

    Raises:
        OSError, EOFError: it cannot be read to its end.
    """
    with open_bytes(path) as file:
        for number, raw in lines(file):
            if len(raw) > MOST_LINE_BYTES:
                text = f"is longer than {MOST_LINE_BYTES >> 20} MiB; is this JSONL, an object on each line?"
                yield Unread(number, Kind.SYNTAX, text)
                continue
            try:
                yield Row(number, parse(raw), len(raw))
            except BadRow as error:
                yield Unread(number, error.kind, error.text)


def row_reader(path: Path) -> Callable[[int], Row]:
    """The rows of a file in which all could be read, by their place; each is parsed when it is asked for."""
    places: list[tuple[int, int]] = []
    with path.open("rb") as file:
        offset = 0
        for number, raw in enumerate(file, start=1):
            if (raw.removeprefix(BOM) if number == 1 else raw).strip():
                places.append((number, offset))
            offset += len(raw)

    def read(place: int) -> Row:
        number, offset = places[place]
        with path.open("rb") as file:
            file.seek(offset)
            raw = file.readline()
        return Row(number, parse(raw.removeprefix(BOM) if number == 1 else raw), len(raw))

    return read


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes; those of a `.gz` unpacked as they are read."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]  # read as one
    return path.open("rb")


def lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers; of one that is too long, more than is allowed."""
    number = 0
    while raw := file.readline(MOST_LINE_BYTES + 1):
        number += 1
        rest = raw
        while len(rest) > MOST_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MOST_LINE_BYTES + 1)
        line = raw.removeprefix(BOM) if number == 1 else raw
        if line.strip():
            yield number, line


def parse(raw: bytes | str) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        BadRow: it holds none.
    """
    value = parse_value(raw)
    if not isinstance(value, dict):
        raise BadRow(Kind.SYNTAX, f"is {kind_of(value)}; each row must be an object")
    return value


def parse_value(raw: bytes | str) -> Any:
    """What the JSON says.

    Raises:
        BadRow: it is none, or says one thing twice.
    """
    try:
        return _DECODER.decode(raw.decode() if isinstance(raw, bytes) else raw)
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} of the line is 0x{error.object[error.start]:02x}"
        raise BadRow(Kind.ENCODING, f"is not UTF-8: {where}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRow(Kind.SYNTAX, f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadRow(Kind.SYNTAX, "is nested too deeply") from None
    except ValueError as error:  # such as a number of thousands of digits
        raise BadRow(Kind.SYNTAX, f"is not JSON that can be read: {error}") from None


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for its decoder; raises `BadRow` for a key that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(Kind.SYNTAX, f"has the key `{twice}` twice")
    return found


def no_constant(name: str) -> Any:
    """For a decoder: JSON has no `NaN`, though Python reads it."""
    raise BadRow(Kind.SYNTAX, f"holds {name}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=unique_object, parse_constant=no_constant)
"""Made once: `json.loads` makes one at every call that names a hook."""


def kind_of(value: Any) -> str:
    """What JSON calls the value."""
    match value:
        case None:
            return "null"
        case bool():
            return json.dumps(value)
        case list() | dict() if not value:
            return "empty"
        case list():
            return "a list"
        case dict():
            return "an object"
        case str():
            return "a string"
        case _:
            return "a number"
