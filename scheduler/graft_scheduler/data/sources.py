"""From a path to the files of a data set: which holds which split, and that none leads out of its folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from graft_scheduler.errors import InvalidInput

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
PACKED = ".gz"
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".zst", ".bz2", ".xz")


class Split(StrEnum):
    """What rows are for."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


_NAMES = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "valid": Split.VALID,
    "validation": Split.VALID,
    "val": Split.VALID,
    "dev": Split.VALID,
    "eval": Split.VALID,
    "test": Split.TEST,
}
_SHARD = re.compile(r"[-_.]?\d{1,6}([-_]of[-_]\d{1,6})?$")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a data set, and the split that its rows belong to."""

    split: Split
    path: Path
    name: str
    """As faults name it."""


def find_files(path: Path) -> tuple[SourceFile, ...]:
    """The files of the data set at `path`, those of the training set first.

    A file, or a folder with `train`, and perhaps `valid` and `test`, files of any kind that is read, also in
    numbered parts; a folder's only such file is its training set whatever its name.

    Raises:
        InvalidInput: there is nothing there that can be read; says what would be.
    """
    try:
        if path.is_dir():
            return _of_folder(path)
        if not path.exists():
            raise InvalidInput(f"`data` is {path}; there is no such file or folder")
    except OSError as error:  # such as a name of more letters than one can have
        raise InvalidInput(f"`data` is {path}: {error.strerror}") from error
    _check_readable(path, path)
    return (SourceFile(Split.TRAIN, path, str(path)),)


def ending_of(path: Path) -> str:
    """The part of the name that says how to read it, in small letters and without a `.gz`."""
    return Path(path.name.lower().removesuffix(PACKED)).suffix


def _of_folder(folder: Path) -> tuple[SourceFile, ...]:
    listed = _listed(folder)
    if not any(_is_data(path) for path in listed):  # as data sets on the hub have it
        listed = [path for one in listed if one.is_dir() and one.name in _FOLDERS for path in _listed(one)]
    _refuse_unread(listed)
    found = [path for path in listed if _is_data(path)]
    files = [SourceFile(split, path, str(path)) for path in found if (split := _split_of(path)) is not None]
    if not files and len(found) == 1:
        files = [SourceFile(Split.TRAIN, found[0], str(found[0]))]
    if not any(one.split is Split.TRAIN for one in files):
        there = ", ".join(path.name for path in found[:5]) or "no data"
        raise InvalidInput(
            f"`data` is the folder {folder}, which has no train file; it has {there}. "
            f"Name one train{ENDINGS[0]} (or {', '.join(ENDINGS[1:])})"
        )
    others = [path.name for path in found if path not in {one.path for one in files}]
    if others:
        raise InvalidInput(
            f"`data` is the folder {folder}; {others[0]} in it is of no split: name it train, valid or test, "
            "or take it out"
        )
    for one in files:
        _check_readable(one.path, folder)
    _refuse_two_kinds(files)
    _refuse_missing_parts(files)
    return tuple(sorted(files, key=lambda one: (list(Split).index(one.split), one.name)))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        reason = error.strerror
        raise InvalidInput(f"`data` is the folder {folder}, which cannot be read: {reason}") from error


def _is_data(path: Path) -> bool:
    return ending_of(path) in ENDINGS and path.name[0] not in "._" and path.name not in _METADATA


def _refuse_unread(listed: Iterable[Path]) -> None:
    """What is named as a split and cannot be read would be missed in silence."""
    for path in listed:
        stem = path.name.lower().partition(".")[0]
        if not _is_data(path) and path.name[0] not in "._" and not path.is_dir() and _named(stem) is not None:
            raise InvalidInput(
                f"{path} is named as a split, and is of no kind that is read: {', '.join(ENDINGS)}"
            )


def _refuse_missing_parts(files: Iterable[SourceFile]) -> None:
    """Files that say `1 of 3` must be three."""
    parts: dict[tuple[Split, int], set[int]] = {}
    for one in files:
        if (found := _PART.search(one.path.name)) is not None:
            parts.setdefault((one.split, int(found[2])), set()).add(int(found[1]))
    for (split, count), there in parts.items():
        if len(there) < count:
            text = f"only {len(there)} of the {count} parts of the {split} split are there"
            raise InvalidInput(f"`data`: {text}; bring the others, or rename these")


_FOLDERS = frozenset({"data", "train", "valid", "validation", "test"})
_PART = re.compile(r"(\d{1,6})[-_]of[-_](\d{1,6})")
_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"})
"""What `datasets` writes beside its files."""


def _split_of(path: Path) -> Split | None:
    stem = path.name.lower().removesuffix(PACKED).removesuffix(ending_of(path))
    return _named(stem) or _NAMES.get(path.parent.name)


def _named(stem: str) -> Split | None:
    return _NAMES.get(_SHARD.sub("", stem)) or _NAMES.get(stem)


def _check_readable(path: Path, folder: Path) -> None:
    if path.suffix.lower() in ARCHIVES:
        raise InvalidInput(f"`data` is {path}, an archive; unpack it, and name the file or folder")
    if ending_of(path) not in ENDINGS:
        kinds = ", ".join(ENDINGS)
        raise InvalidInput(f"`data` is {path}; it must be a {kinds} file (or .gz of it), or a folder")
    if not path.exists():
        raise InvalidInput(f"{path} is a link to what is not there")
    if path.suffix.lower() == PACKED and ending_of(path) not in TEXTS:
        raise InvalidInput(f"`data` is {path}; {ending_of(path)} files are packed already, unpack the .gz")
    if folder != path and not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidInput(f"{path} leads out of its folder, to {path.resolve()}; copy the file there")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise InvalidInput(f"{path} is {what}; it must be a file with rows")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


def _refuse_two_kinds(files: Iterable[SourceFile]) -> None:
    """Two kinds of file of one split are more likely the same rows twice than two halves."""
    seen: dict[Split, SourceFile] = {}
    for one in files:
        first = seen.setdefault(one.split, one)
        if ending_of(first.path) != ending_of(one.path):
            names = f"{first.path.name} and {one.path.name}"
            raise InvalidInput(f"{names} are both the {one.split} split; leave one in the folder")
