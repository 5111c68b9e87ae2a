"""From what a job says of its data to rows: a path, a folder that the store has given, or the hub."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_scheduler.data.faults import ALLOWABLE
from graft_scheduler.data.inspection import Inspection, Reader, Watcher, Wishes, inspect, write_line
from graft_scheduler.data.reading import read_file
from graft_scheduler.data.rows import Row
from graft_scheduler.data.sources import ENDINGS, SourceFile, Split, ending_of, find_files
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import DataFormat, DataRef

FILES = {Split.TRAIN: "train.jsonl", Split.VALID: "valid.jsonl", Split.TEST: "test.jsonl"}
"""What the files of a data set are called once it is in the store."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data set that can be read."""

    files: tuple[SourceFile, ...]
    read: Reader
    located: DataRef
    """As any program of this machine finds it: an absolute path, or a hub id at a commit."""


def open_source(data: DataRef, folder: Path | None = None) -> Source:
    """The data set that a job names; `folder` is where it is, if that is known already.

    Raises:
        InvalidInput: there is none, or none that can be read; says what would be.
        NotAllowed, Unreachable: of the hub.
    """
    if folder is not None:
        return Source(find_files(folder), lambda file: read_file(file.path), data)
    path = path_of(data.source)
    if _is_hub_id(data.source) and not path.exists():
        return _open_on_hub(data)
    for given in ("split", "subset", "revision"):
        if getattr(data, given) is not None:
            text = "is of a data set on the hub"
            raise InvalidInput(f"`data.{given}` {text}, and `data` is {data.source}; leave it out")
    located = data.model_copy(update={"source": str(path)})
    return Source(find_files(path), lambda file: read_file(file.path), located)


def path_of(source: str) -> Path:
    """The absolute path that a person means.

    Raises:
        InvalidInput: it begins with the home of somebody who is not known here.
    """
    try:
        return Path(source).expanduser().absolute()
    except RuntimeError as error:
        raise InvalidInput(f"`data` is {source}: {error}") from error


def _is_hub_id(source: str) -> bool:
    from graft_scheduler.data.hub_rows import is_hub_id

    is_file = ending_of(Path(source)) in ENDINGS
    return is_hub_id(source) and not is_file and not Path(source).parent.is_dir()


def _open_on_hub(data: DataRef) -> Source:
    from graft_scheduler.data.hub_rows import hub_files, hub_reader, resolve_commit

    data = data.model_copy(update={"revision": resolve_commit(data)})
    return Source(hub_files(data), hub_reader(data), data)


def inspect_source(source: Source, watch: Watcher | None = None) -> Inspection:
    """All that is in it, and all that is wrong with it."""
    return inspect(source.files, Wishes.of(source.located), watch, source.read)


def inspect_path(path: Path, data_format: DataFormat | None = None) -> Inspection:
    """What is in the data set at `path`.

    Raises:
        InvalidInput: it cannot be used; names the first few faults by file and line.
    """
    return inspect_source(open_source(DataRef(source=str(path), format=data_format))).require()


def inspect_stored(
    folder: Path, data_format: DataFormat | None, watch: Watcher | None = None, *, tests: bool = False
) -> Inspection:
    """A data set that is in the form in which it is trained: what is there is there on purpose.

    The rows of its test split are looked at with `tests` only.

    Raises:
        InvalidInput: it is damaged; says where.
    """
    files = [one for one in find_files(folder) if tests or one.split is not Split.TEST]
    return inspect(files, Wishes(data_format, allow=frozenset(ALLOWABLE)), watch).require()


def lay_out(source: Source, found: Inspection, folder: Path) -> None:
    """The data set as it is trained on, in a folder of its own.

    Raises:
        InvalidInput, OSError: as `training_files`.
    """
    folder.mkdir(exist_ok=True)
    for name, path in training_files(source, found, folder).items():
        if path != folder / name:
            shutil.copyfile(path, folder / name)


def training_files(source: Source, found: Inspection, folder: Path) -> dict[str, Path]:
    """The data set as it is trained on: names, and files; those that must be converted are made in `folder`.

    The same rows give the same bytes.

    Raises:
        InvalidInput: it has changed since it was inspected, and is refused now.
        OSError: `folder` cannot be written.
    """
    if found.is_ready:
        return {FILES[one.split]: one.path for one in source.files}
    wishes = Wishes.of(source.located.model_copy(update={"format": found.format}))
    opened = {split: (folder / FILES[split]).open("wb") for split in found.splits}

    def write(_: Inspection, file: SourceFile, __: Row, fields: Mapping[str, Any]) -> None:
        opened[file.split].write(write_line(fields, found.trained_format))

    try:
        inspect(source.files, wishes, write, source.read).require()
    finally:
        for file in opened.values():
            file.close()
    return {FILES[split]: folder / FILES[split] for split in opened}
