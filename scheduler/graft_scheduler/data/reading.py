"""Reading any file of a data set as rows, and what went wrong as faults instead of exceptions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from graft_scheduler.data.faults import Kind
from graft_scheduler.data.json_files import read_json
from graft_scheduler.data.jsonl import open_bytes, read_jsonl
from graft_scheduler.data.rows import Row, Unread
from graft_scheduler.data.sources import TEXTS, ending_of
from graft_scheduler.data.tables import read_arrow, read_csv, read_parquet

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_READERS: dict[str, Callable[[Path], Iterator[Row | Unread]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def read_file(path: Path) -> Iterator[Row | Unread]:
    """The rows of a file, in its order, and what in it could not be read."""
    line: int | None = None
    try:
        if ending_of(path) in TEXTS and _is_utf16(path):
            yield Unread(1, Kind.ENCODING, "is UTF-16; save the file as UTF-8")
            return
        for row in _READERS[ending_of(path)](path):
            line = row.line
            yield row
    except (OSError, EOFError, zlib.error) as error:
        yield Unread(line, Kind.FILE, f"cannot be read beyond this: {error}")
    except MemoryError:
        yield Unread(None, Kind.FILE, "does not fit into memory; make it JSONL, an object on each line")


def read_rows(path: Path) -> list[Row]:
    """Those rows of a file that can be read."""
    return [row for row in read_file(path) if isinstance(row, Row)]


def _is_utf16(path: Path) -> bool:
    with open_bytes(path) as file:
        begin = file.read(512)
    return begin.startswith(_UTF16) or begin[1::2].count(0) > len(begin) // 4 > 4
