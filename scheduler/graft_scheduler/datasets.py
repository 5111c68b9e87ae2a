"""Reading and checking data sets: JSONL rows in one of three formats, and how they are ordered.

What a row means to a model (tokens, masks) lives in the worker's engine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import DataFormat

TRAIN_FILE = "train.jsonl"
VALID_FILE = "valid.jsonl"
ROLES = ("system", "user", "assistant", "tool")
MAX_REPORTED_ROWS = 5
"""Bad rows named in one message; the rest are only counted."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """Where the rows are."""

    train: Path
    valid: Path | None


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object and the line it stands on, counted from 1."""

    line: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What a checked data set holds. Without a validation file `valid_rows` is 0."""

    format: DataFormat
    train_rows: int
    valid_rows: int
    train_bytes: tuple[int, ...]
    """Of each row's line: no row has more tokens than that, but for what a chat template adds."""
    valid_bytes: tuple[int, ...]

    @property
    def longest_bytes(self) -> int:
        return max(self.train_bytes + self.valid_bytes)


@dataclass(frozen=True, slots=True)
class _Checked:
    """What became of one file."""

    row_bytes: tuple[int, ...]
    format: DataFormat | None
    problems: list[str]


class _BadRow(Exception):
    """Says what is wrong with one row; never leaves this module."""


def find_files(path: Path) -> DatasetFiles:
    """The files of the data set at `path`: one `.jsonl` file, or a folder.

    Raises:
        InvalidInput: there is no such file or folder, or it holds no `train.jsonl`.
    """
    if path.is_dir():
        train, valid = path / TRAIN_FILE, path / VALID_FILE
        if not train.is_file():
            raise InvalidInput(f"`data` is the folder {path}, which has no {TRAIN_FILE}")
        return DatasetFiles(train, valid if valid.is_file() else None)
    if not path.is_file():
        raise InvalidInput(f"`data` is {path}; there is no such file or folder")
    if path.suffix != ".jsonl":
        raise InvalidInput(f"`data` is {path}; it must be a .jsonl file, or a folder with {TRAIN_FILE}")
    return DatasetFiles(path, None)


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file in UTF-8; blank lines are skipped.

    Raises:
        InvalidInput: lines that are no JSON objects, by file and line.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for number, raw in _lines(path):
        try:
            rows.append(Row(number, _parse(raw)))
        except _BadRow as error:
            problems.append(f"{path}:{number}: {error}")
    _refuse(problems)
    return rows


def row_reader(path: Path) -> Callable[[int], Row]:
    """The rows of a file that `check` accepted, by their place; each is parsed when it is asked for."""
    lines = list(_lines(path))

    def read(place: int) -> Row:
        number, raw = lines[place]
        return Row(number, _parse(raw))

    return read


def check(path: Path, data_format: DataFormat | None = None) -> DatasetSummary:
    """Look at every row of the data set at `path`; its format is detected when absent.

    Raises:
        InvalidInput: what is wrong, by file and line, for the first few bad rows.
    """
    files = find_files(path)
    train = _check_file(files.train, data_format)
    valid = _check_file(files.valid, train.format) if files.valid else _Checked((), train.format, [])
    _refuse(train.problems + valid.problems)
    assert train.format is not None  # without a row of any format it was refused
    train_bytes, valid_bytes = train.row_bytes, valid.row_bytes
    return DatasetSummary(train.format, len(train_bytes), len(valid_bytes), train_bytes, valid_bytes)


def detect_format(fields: Mapping[str, Any]) -> DataFormat | None:
    """The format that a row's field names say, or nothing when they say none."""
    if "messages" in fields:
        return DataFormat.CHAT
    if "prompt" in fields and "completion" in fields:
        return DataFormat.COMPLETION
    return DataFormat.TEXT if "text" in fields else None


def split(rows: Sequence[_Item], fraction: float, seed: int) -> tuple[list[_Item], list[_Item]]:
    """Training and validation rows, each in file order; at least one of each.

    Depends on nothing but the number of rows, `fraction` and `seed`. A single row is both:
    it can be learned, and its validation loss is then a training loss.
    """
    if len(rows) < 2:
        return list(rows), list(rows)
    count = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
    held_out = set(permutation(len(rows), f"split/{seed}")[:count])
    return (
        [row for index, row in enumerate(rows) if index not in held_out],
        [row for index, row in enumerate(rows) if index in held_out],
    )


def permutation(count: int, seed: str) -> list[int]:
    """The numbers below `count` in an order that only `seed` decides, on any host.

    Made from `random()` alone: of Python's generator, only that is promised to stay the same.
    """
    draw = random.Random(seed).random
    keys = [draw() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                yield number, line


def _check_file(path: Path, data_format: DataFormat | None) -> _Checked:
    row_bytes = []
    problems = []
    for number, raw in _lines(path):
        row_bytes.append(len(raw))
        try:
            fields = _parse(raw)
            data_format = data_format or detect_format(fields)
            _check_row(fields, data_format)
        except _BadRow as error:
            problems.append(f"{path}:{number}: {error}")
    if not row_bytes:
        problems.append(f"{path}: has no rows")
    return _Checked(tuple(row_bytes), data_format, problems)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError:
        raise _BadRow("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _BadRow(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _BadRow("is nested too deeply") from None
    if not isinstance(value, dict):
        raise _BadRow(f"is {_kind(value)}; each line must be an object")
    return value


def _check_row(fields: Mapping[str, Any], data_format: DataFormat | None) -> None:
    needed = _FIELDS[data_format] if data_format else ()
    if data_format and set(needed) <= set(fields):
        _CHECKS[data_format](fields)
        return
    found = detect_format(fields)
    if data_format and found:
        raise _BadRow(f"is a {found} row, but the data set's format is {data_format}")
    names = ", ".join(f"`{name}`" for name in fields) or "none"
    wanted = " and ".join(f"`{name}`" for name in needed)
    raise _BadRow(f"needs {wanted or _ANY_FORMAT}; its fields are {names}")


def _check_chat(fields: Mapping[str, Any]) -> None:
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise _BadRow(f"`messages` is {_kind(messages)}; it must be a list with at least one message")
    for index, message in enumerate(messages):
        _check_message(f"messages[{index}]", message)
    if not any(message["role"] == "assistant" for message in messages):
        raise _BadRow("has no message of the role assistant: there is nothing to learn")


def _check_message(name: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise _BadRow(f"`{name}` is {_kind(message)}; it must be an object")
    if "role" not in message:
        raise _BadRow(f"`{name}.role` is missing")
    if message["role"] not in ROLES:
        raise _BadRow(f"`{name}.role` is {message['role']!r}; it must be one of {', '.join(ROLES)}")
    if message["role"] == "assistant" and message.get("tool_calls") and not message.get("content"):
        return
    _check_text(f"{name}.content", message.get("content"))


def _check_text(name: str, value: Any) -> None:
    if value is None:
        raise _BadRow(f"`{name}` is missing")
    if not isinstance(value, str):
        raise _BadRow(f"`{name}` is {_kind(value)}; it must be a string")
    if not value.strip():
        raise _BadRow(f"`{name}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _BadRow(f"`{name}` holds half of a surrogate pair, which no tokenizer takes") from None


def _check_fields(*names: str) -> Callable[[Mapping[str, Any]], None]:
    def check_fields(fields: Mapping[str, Any]) -> None:
        for name in names:
            _check_text(name, fields.get(name))

    return check_fields


def _kind(value: Any) -> str:
    """What JSON calls the value."""
    match value:
        case None | bool():
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


def _refuse(problems: Sequence[str]) -> None:
    if not problems:
        return
    rest = len(problems) - MAX_REPORTED_ROWS
    more = f"; and {rest} more bad row{'s' if rest > 1 else ''}" if rest > 0 else ""
    raise InvalidInput("; ".join(problems[:MAX_REPORTED_ROWS]) + more)


_ANY_FORMAT = "`messages`, or `prompt` and `completion`, or `text`"

_FIELDS: dict[DataFormat, tuple[str, ...]] = {
    DataFormat.CHAT: ("messages",),
    DataFormat.COMPLETION: ("prompt", "completion"),
    DataFormat.TEXT: ("text",),
}

_CHECKS: dict[DataFormat, Callable[[Mapping[str, Any]], None]] = {
    DataFormat.CHAT: _check_chat,
    DataFormat.COMPLETION: _check_fields(*_FIELDS[DataFormat.COMPLETION]),
    DataFormat.TEXT: _check_fields(*_FIELDS[DataFormat.TEXT]),
}
