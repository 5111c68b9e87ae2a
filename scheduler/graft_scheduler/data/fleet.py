"""The data sets of a fleet: push one under a name, find it again, compare two versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from redis import Redis

from graft_scheduler.data.faults import Kind
from graft_scheduler.data.inspection import Inspection
from graft_scheduler.data.names import Contents, DatasetNames, DatasetVersion, Reference, check_name
from graft_scheduler.data.opening import Source, inspect_source, inspect_stored, open_source, training_files
from graft_scheduler.data.rows import Row
from graft_scheduler.data.sources import SourceFile, Split
from graft_scheduler.errors import InvalidInput, NotFound, StoreError
from graft_scheduler.jobs import DataRef, current_user
from graft_scheduler.states import Digest
from graft_scheduler.store import Store

EXAMPLES = 3
"""Rows of each sort that a difference shows."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push led to."""

    version: DatasetVersion
    is_new: bool
    """No version of the name had these rows."""
    inspection: Inspection


@dataclass(frozen=True, slots=True)
class SplitDifference:
    """Of two versions, in one split."""

    split: Split
    kept: int
    added: int
    removed: int
    added_rows: tuple[Mapping[str, Any], ...]
    """The first few of them."""
    removed_rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """What one version has and the other has not; rows are the same up to white space, in any order."""

    first: DatasetVersion
    second: DatasetVersion
    splits: tuple[SplitDifference, ...]

    @property
    def is_empty(self) -> bool:
        return not any(one.added or one.removed for one in self.splits)


class Datasets:
    """The data sets of one Redis and its store."""

    def __init__(
        self,
        redis: Redis,
        store: Callable[[], Store],
        reached: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._names, self._store, self._reached = DatasetNames(redis), store, reached

    def push(self, data: DataRef | str | Path, name: str) -> Pushed:
        """Check the data set, store it, and give it the next version of `name`.

        Rows that some version has already get no new one.

        Raises:
            InvalidInput: the name cannot be one, or the data set is not accepted; says file and line.
        """
        check_name(name)
        ref = data if isinstance(data, DataRef) else DataRef(source=str(data))
        source = open_source(ref)
        found = inspect_source(source).require()
        store = self._store()
        digest = put_data(store, source, found)
        contents = Contents(
            format=found.trained_format,
            source=_told(source),
            source_format=found.format or found.trained_format,
            rows={split.value: facts.rows for split, facts in found.splits.items()},
            bytes=store.folder_bytes(digest),
            duplicates=found.faults.counts[Kind.DUPLICATE],
            left_out=sum(facts.bad_rows for facts in found.splits.values()),
        )
        with self._reached():
            version, is_new = self._names.push(name, digest, contents, current_user())
        return Pushed(version, is_new, found)

    def newest(self) -> list[DatasetVersion]:
        """The newest version of every name, those pushed last first."""
        with self._reached():
            newest = [self._names.versions(name)[:1] for name in self._names.names()]
        return [version for versions in newest for version in versions]

    def versions(self, name: str) -> list[DatasetVersion]:
        """The versions of a name, the newest first.

        Raises:
            NotFound: there is no such name.
        """
        with self._reached():
            found = self._names.versions(name)
        if not found:
            raise NotFound(f"there is no data set {name!r}; `graft data ls` lists them")
        return found

    def find(self, reference: str) -> DatasetVersion:
        """The version that `sql`, `sql@v3` or `sql@sha256:...` means.

        Raises:
            InvalidInput: it is no reference.
            NotFound: there is no such data set or version.
        """
        with self._reached():
            return self._names.find(reference)

    def folder(self, version: DatasetVersion) -> Path:
        """Its files on this machine, brought here if they are not yet."""
        return self._store().cached_folder(version.digest)

    def remove(self, reference: str) -> int:
        """Take the name from a version, or without `@` from all versions; returns of how many.

        The store keeps what jobs refer to.

        Raises:
            InvalidInput, NotFound: as `find`.
        """
        version = self.find(reference)
        number = version.number if "@" in reference else None
        with self._reached():
            return self._names.remove(version.name, number)

    def diff(self, first: str, second: str) -> Difference:
        """What the second has and the first has not, and the other way round.

        Raises:
            InvalidInput, NotFound: as `find`.
        """
        before, after = self.find(first), self.find(second)
        old, new = _Rows(self.folder(before), before), _Rows(self.folder(after), after)
        splits = [one for one in Split if one in old.keys or one in new.keys]
        return Difference(before, after, tuple(_compare(split, old, new) for split in splits))

    def named(self, data: DataRef) -> DataRef:
        """With its digest, where it names a data set of the fleet; a path of that name goes before.

        Raises:
            InvalidInput: nothing has that name.
            NotFound: the data set has no such version.
        """
        if data.digest is not None or not Reference.is_one(data.source) or Path(data.source).exists():
            return data
        try:
            version = self.find(data.source)
        except NotFound as error:
            if "@" in data.source:
                raise
            text = f"`data` is {data.source}; there is no such file or folder, and no data set of that name"
            raise InvalidInput(text) from error
        changes = {"digest": version.digest, "version": str(version), "format": version.contents.format}
        return data.model_copy(update=changes)


def put_data(store: Store, source: Source, found: Inspection) -> Digest:
    """The data set in the store, as it is trained on; what must be converted is so on the way.

    Raises:
        StoreError: there is no room to convert it, or the store cannot be written.
    """
    try:
        with TemporaryDirectory(prefix="graft-data-") as folder:
            return store.put_files(training_files(source, found, Path(folder)))
    except OSError as error:
        remedy = f"make room in {gettempdir()}"
        raise StoreError(f"the data set cannot be converted here: {error}; {remedy}") from error


class _Rows:
    """The rows of a version by their keys."""

    def __init__(self, folder: Path, version: DatasetVersion) -> None:
        self._folder, self._format = folder, version.contents.format
        self.keys: dict[Split, Counter[int]] = {}
        found = inspect_stored(folder, self._format, tests=True)
        for split, facts in found.splits.items():
            self.keys[split] = Counter(facts.keys)

    def of(self, split: Split) -> Counter[int]:
        """How often each row is there."""
        return self.keys.get(split, Counter())

    def examples(self, split: Split, wanted: Counter[int]) -> tuple[Mapping[str, Any], ...]:
        """The first rows with these keys."""
        shown: list[Mapping[str, Any]] = []
        left = Counter(wanted)

        def take(found: Inspection, file: SourceFile, _: Row, fields: Mapping[str, Any]) -> None:
            key = found.splits[file.split].keys[-1]
            if file.split is split and left[key] > 0 and len(shown) < EXAMPLES:
                left[key] -= 1
                shown.append(fields)

        if wanted:
            inspect_stored(self._folder, self._format, take, tests=True)
        return tuple(shown)


def _compare(split: Split, old: _Rows, new: _Rows) -> SplitDifference:
    added, removed = new.of(split) - old.of(split), old.of(split) - new.of(split)
    return SplitDifference(
        split,
        kept=(old.of(split) & new.of(split)).total(),
        added=added.total(),
        removed=removed.total(),
        added_rows=new.examples(split, added),
        removed_rows=old.examples(split, removed),
    )


def _told(source: Source) -> str:
    """What it was made of, without the folders of the machine that it lay on."""
    data = source.located
    if data.revision is not None:
        return f"{data.source}@{data.revision}"
    return Path(data.source).name if Path(data.source).is_absolute() else data.source
