"""Tables: CSV and TSV with a header, Parquet and Arrow."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from graft_scheduler.data.faults import Kind
from graft_scheduler.data.json_files import value_of
from graft_scheduler.data.jsonl import BOM, open_bytes
from graft_scheduler.data.rows import Row, Unread

NESTED = frozenset({"messages", "conversations", "tools", "history"})
"""Columns whose cells are lists, written as JSON; in others JSON is text."""
NEEDS_PYARROW = "needs pyarrow: pip install 'mlx-graft[data]'"
ROWS_AT_ONCE = 512
END_OF_STREAM = bytes.fromhex("ffffffff00000000")
MOST_CELL = 64 << 20
"""Letters."""
_ESCAPED = re.compile("[\udc80-\udcff]")


def read_csv(path: Path) -> Iterator[Row | Unread]:
    """Rows of cells under the names in the first line; cells that are JSON lists or objects are read as such.

    Raises:
        OSError, EOFError: it cannot be read to its end.
    """
    csv.field_size_limit(MOST_CELL)
    with open_bytes(path) as file:
        reader = csv.reader(_decoded(file), delimiter=_delimiter(path), strict=True)
        try:
            names = next(reader, None)
        except csv.Error as error:
            yield Unread(1, Kind.SYNTAX, f"is not CSV: {error}")
            return
        while names is not None and not names:
            names = next(reader, None)
        if names is None:
            return
        if fault := _undecoded(names):
            yield Unread(reader.line_num, Kind.ENCODING, fault)
            return
        if fault := _check_header(names):
            yield Unread(reader.line_num, Kind.FIELDS, fault)
            return
        yield from _read_cells(reader, names)


def _decoded(file: IO[bytes]) -> Iterator[str]:
    """The lines as text; bytes that are no UTF-8 become what no text has, to be found in their row."""
    for number, raw in enumerate(file):
        line = raw.removeprefix(BOM) if number == 0 else raw
        yield line.decode("utf-8", "surrogateescape")


def _undecoded(cells: Iterable[str]) -> str | None:
    for cell in cells:
        if not cell.isascii() and (found := _ESCAPED.search(cell)):
            return f"is not UTF-8: byte 0x{ord(found[0]) - 0xDC00:02x}; save the file as UTF-8"
    return None


def _read_cells(reader: Any, names: Sequence[str]) -> Iterator[Row | Unread]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            is_cut = "end of data" in str(error)
            kind = Kind.FILE if is_cut else Kind.SYNTAX  # with an open quote, rows behind it are gone
            yield Unread(line, kind, f"is not CSV: {error}; is a quote missing?")
            continue
        if cells is None:
            return
        if not cells:
            continue
        if fault := _undecoded(cells):
            yield Unread(line, Kind.ENCODING, fault)
        elif len(cells) != len(names):
            yield Unread(line, Kind.SYNTAX, f"has {len(cells)} cells, and the header has {len(names)}")
        else:
            found = zip(names, cells, strict=True)
            yield Row(line, {name: value_of(cell) if name in NESTED else cell for name, cell in found})


def _delimiter(path: Path) -> str:
    """By the name; a `.csv` whose header has semicolons and no comma is what spreadsheets write in Europe."""
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    with open_bytes(path) as file:
        header = file.readline(1 << 16)
    for mark in (b",", b";", b"\t"):
        if mark in header:
            return mark.decode()
    return ","


def _check_header(names: Sequence[str]) -> str | None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        return f"the header has the column `{twice}` twice"
    if not all(name.strip() for name in names[1:]):  # pandas gives the numbers of its rows no name
        return "the header has a column without a name"
    return None


def read_parquet(path: Path) -> Iterator[Row | Unread]:
    """The rows of a Parquet file, numbered from 1."""
    yield from _read_batches("Parquet", lambda: _parquet_batches(path))


def read_arrow(path: Path) -> Iterator[Row | Unread]:
    """The rows of an Arrow file or stream (what `datasets` saves), numbered from 1."""
    yield from _read_batches("Arrow", lambda: _arrow_batches(path))


def _read_batches(what: str, batches: Callable[[], Iterator[Any]]) -> Iterator[Row | Unread]:
    """The rows of a file that pyarrow reads, a few at a time."""
    try:
        import pyarrow
    except ImportError:
        yield Unread(None, Kind.FILE, NEEDS_PYARROW)
        return
    number = 0
    try:
        for batch in batches():
            if fault := _check_columns(batch.schema.names):
                yield Unread(None, Kind.FILE, fault)
                return
            batch.validate(full=True)  # damaged offsets would be followed wherever they lead
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                for fields in batch.slice(start, ROWS_AT_ONCE).to_pylist():
                    number += 1
                    yield Row(number, _known(fields))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        yield _broken(number, what, error)


def _parquet_batches(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=ROWS_AT_ONCE)


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        yield from _batches(source)


def _batches(source: Any) -> Iterator[Any]:
    import pyarrow

    try:
        file = pyarrow.ipc.open_file(source)
    except pyarrow.ArrowInvalid:
        source.seek(max(0, source.size() - len(END_OF_STREAM)))
        if source.read() != END_OF_STREAM:
            raise pyarrow.ArrowInvalid("the stream has no end: the file is cut off") from None
        source.seek(0)
        yield from pyarrow.ipc.open_stream(source)
        return
    for index in range(file.num_record_batches):
        yield file.get_batch(index)


def _check_columns(names: Sequence[str]) -> str | None:
    twice = next((name for name in names if names.count(name) > 1), None)
    return None if twice is None else f"has the column `{twice}` twice"


def _known(value: Any) -> Any:
    """Without what is null: a column has a cell in every row, also where a row of JSON has no field."""
    match value:
        case dict():
            return {name: _known(one) for name, one in value.items() if one is not None}
        case list():
            return [_known(one) for one in value]
        case _:
            return value


def _broken(number: int, what: str, error: Exception) -> Unread:
    told = " ".join(str(error).split())
    return Unread(number + 1 if number else None, Kind.FILE, f"is not {what} that can be read: {told}")
