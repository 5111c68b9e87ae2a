"""One pass over a data set: what it holds, and everything that is wrong with it."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from graft_scheduler.data.faults import ALLOWABLE, BadRow, Fault, Faults, Kind, Problems, visible
from graft_scheduler.data.keys_of_rows import row_key
from graft_scheduler.data.layouts import KEPT, convert, detect_common, rename, trained_format
from graft_scheduler.data.reading import read_file
from graft_scheduler.data.rows import Row, Unread
from graft_scheduler.data.sources import SourceFile, Split
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import DataFormat, DataRef

PEEKED = 200
"""Rows whose field names decide the format."""
MOST_NAMED = 5
"""Faults in the message of a refusal; the rest is counted."""

Reader = Callable[[SourceFile], Iterator[Row | Unread]]
Watcher = Callable[["Inspection", SourceFile, Row, Mapping[str, Any]], None]
"""Is shown every good row: what is known by then, its file, the row as it was read and as it is trained."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a data set is to be read, and what in it is on purpose."""

    format: DataFormat | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    allow: frozenset[Kind] = frozenset()
    skip_bad_rows: bool = False

    @classmethod
    def of(cls, data: DataRef) -> Wishes:
        """Those that a job states."""
        return cls(data.format, data.columns, frozenset(map(Kind, data.allow)), data.skip_bad_rows)


@dataclass(slots=True)
class SplitFacts:
    """What one split holds."""

    sizes: array[int] = field(default_factory=lambda: array("I"))
    """Bytes of each good row as a line of JSONL."""
    keys: array[int] = field(default_factory=lambda: array("q"))
    """Of each good row, as `row_key`."""
    bad_rows: int = 0
    turns: int = 0
    """Messages of chats."""

    @property
    def rows(self) -> int:
        return len(self.sizes)


@dataclass(slots=True)
class Inspection:
    """What a data set holds, and what is wrong with it."""

    files: Sequence[SourceFile]
    wishes: Wishes
    format: DataFormat | None = None
    """In which its rows are; absent when there are none of any."""
    is_ready: bool = True
    """The files can be trained on as they are; else they must be converted first."""
    splits: dict[Split, SplitFacts] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    @property
    def trained_format(self) -> DataFormat:
        """In which the rows are trained on."""
        assert self.format is not None  # else it was refused
        return trained_format(self.format)

    def facts(self, split: Split) -> SplitFacts:
        """What the split holds; nothing, if there is no such file."""
        return self.splits.get(split, SplitFacts())

    @property
    def refusal(self) -> str | None:
        """Why it cannot be used, in one line; nothing when it can."""
        count = self.faults.refused_count
        if not count:
            return None
        named = [str(fault) for fault in self.faults.refused[:MOST_NAMED]]
        rest = count - len(named)
        return "; ".join(named) + (f"; and {rest} more fault{'s' if rest > 1 else ''}" if rest else "")

    def require(self) -> Inspection:
        """Itself.

        Raises:
            InvalidInput: it cannot be used; names the first few faults by file and line.
        """
        if (refusal := self.refusal) is not None:
            raise InvalidInput(refusal + self._remedy())
        return self

    def _remedy(self) -> str:
        more = "; `graft data validate` tells all" if self.faults.refused_count > MOST_NAMED else ""
        return more + self._allowance()

    def _allowance(self) -> str:
        kinds = [kind for kind in ALLOWABLE if self.faults.counts[kind] and self.faults.refuses(kind)]
        return f" (if that is on purpose: `data.allow` = {','.join(kinds)})" if kinds else ""


def inspect(
    files: Sequence[SourceFile],
    wishes: Wishes,
    watch: Watcher | None = None,
    read: Reader = lambda file: read_file(file.path),
) -> Inspection:
    """Look at every row of every file; what is wrong becomes a fault, not an exception."""
    found = Inspection(files, wishes, wishes.format, faults=Faults(_allowed(wishes)))
    found.is_ready = _may_be_ready(files) and not wishes.columns
    first_seen: dict[int, int] = {}
    for split in Split:
        for place, file in enumerate(files):
            if file.split is split:
                _Pass(found, file, place, first_seen, watch).run(read(file))
        _close(found, split)
    return found


def _may_be_ready(files: Sequence[SourceFile]) -> bool:
    """Whether each split is one file of JSONL."""
    is_jsonl = all(one.path.suffix.lower() in {".jsonl", ".ndjson"} for one in files)
    return is_jsonl and len({one.split for one in files}) == len(files)


def _close(found: Inspection, split: Split) -> None:
    """What can be said of a split once all of it was seen."""
    facts = found.splits.get(split)
    if facts is None:
        return
    found.is_ready = found.is_ready and not facts.bad_rows
    if not facts.rows and facts.bad_rows and found.wishes.skip_bad_rows:
        name = next(one.name for one in found.files if one.split is split)
        found.faults.add(Fault(Kind.FILE, name, None, "has no row without a fault"))


def _allowed(wishes: Wishes) -> frozenset[Kind]:
    """With bad rows left out, only what is wrong with a whole file refuses it."""
    return frozenset(Kind) - {Kind.FILE} if wishes.skip_bad_rows else wishes.allow


@dataclass(slots=True)
class _Pass:
    """The rows of one file."""

    found: Inspection
    file: SourceFile
    place: int
    """Of the file among all."""
    first_seen: dict[int, int]
    """Of every row, by its key, where it stands: file and line in one number, as there
    may be millions."""
    watch: Watcher | None

    def run(self, rows: Iterator[Row | Unread]) -> None:
        facts = self.found.splits.setdefault(self.file.split, SplitFacts())
        before = facts.rows + facts.bad_rows
        self._read(facts, rows)
        if facts.rows + facts.bad_rows == before and not self._is_refused():
            self._note(None, [(Kind.FILE, "has no rows")])

    def _is_refused(self) -> bool:
        """Whether something was said of the file already."""
        name = visible(self.file.name)
        return any(fault.file == name for fault in self.found.faults.refused)

    def _read(self, facts: SplitFacts, rows: Iterator[Row | Unread]) -> None:
        for row in self._with_format(rows):
            if isinstance(row, Unread):
                facts.bad_rows += row.line is not None
                self._note(row.line, [(row.kind, row.text)])
                continue
            problems: Problems = []
            fields = self._convert(row, problems)
            if problems:
                self._note(row.line, problems)
                if fields is None or self._spoils(problems):
                    facts.bad_rows += 1
                    continue
            assert fields is not None
            self._take(facts, row, fields)

    def _with_format(self, rows: Iterator[Row | Unread]) -> Iterable[Row | Unread]:
        """The same rows, after a look at the first of them."""
        if self.found.format is not None:
            return rows
        peeked = list(islice(rows, PEEKED))
        self.found.format = detect_common(self._renamed(peeked))
        return chain(peeked, rows)

    def _renamed(self, rows: Iterable[Row | Unread]) -> Iterator[Mapping[str, Any]]:
        for row in rows:
            if isinstance(row, Row):
                try:
                    yield rename(row.fields, self.found.wishes.columns)
                except BadRow:
                    continue

    def _convert(self, row: Row, problems: Problems) -> Mapping[str, Any] | None:
        try:
            renamed = rename(row.fields, self.found.wishes.columns)
            return convert(renamed, self.found.format, problems)
        except BadRow as error:
            problems.append((error.kind, error.text))
            return None

    def _spoils(self, problems: Problems) -> bool:
        """Whether the row is left out."""
        allowed = self.found.wishes.allow
        return any(kind not in allowed for kind, _ in problems)

    def _take(self, facts: SplitFacts, row: Row, fields: Mapping[str, Any]) -> None:
        is_same = fields is row.fields and row.size > 0
        try:
            size = row.size if is_same else len(write_line(fields, self.found.trained_format))
        except ValueError:  # half a surrogate pair in what is not shown as text, such as arguments of a call
            text = "holds half of a surrogate pair, which no file in UTF-8 can"
            self._note(row.line, [(Kind.ENCODING, text)])
            facts.bad_rows += 1
            return
        key = row_key(fields, self.found.trained_format)
        problem = self._seen_before(key, row.line)
        if problem is not None:
            self._note(row.line, [problem])
            if problem[0] is Kind.LEAK and self._spoils([problem]):
                facts.bad_rows += 1
                return
        self.found.is_ready = self.found.is_ready and is_same
        facts.sizes.append(size)
        facts.keys.append(key)
        if self.found.trained_format is DataFormat.CHAT:
            facts.turns += len(fields["messages"])
        if self.watch is not None:
            self.watch(self.found, self.file, row, fields)

    def _seen_before(self, key: int, line: int) -> tuple[Kind, str] | None:
        here = self.place << 48 | line
        first = self.first_seen.setdefault(key, here)
        if first == here:
            return None
        split = self.found.files[first >> 48].split
        if split is self.file.split:
            return Kind.DUPLICATE, f"is the same as {self._at(first)}"
        what = "is trained on too, as" if split is Split.TRAIN else f"is in {split} too, as"
        return Kind.LEAK, f"{what} {self._at(first)}; take it out of one of the files"

    def _at(self, place: int) -> str:
        return f"{self.found.files[place >> 48].name}:{place & (1 << 48) - 1}"

    def _note(self, line: int | None, problems: Problems) -> None:
        for kind, text in problems:
            self.found.faults.add(Fault(kind, self.file.name, line, text))


def write_line(fields: Mapping[str, Any], data_format: DataFormat) -> bytes:
    """The row as a line of JSONL, with what is trained of it and nothing else.

    Raises:
        ValueError: it holds what UTF-8 cannot.
    """
    kept = {name: fields[name] for name in KEPT[data_format] if fields.get(name) is not None}
    return json.dumps(kept, ensure_ascii=False).encode() + b"\n"
