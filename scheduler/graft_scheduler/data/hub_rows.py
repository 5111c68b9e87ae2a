"""A data set on the Hugging Face hub, through the library `datasets`: its splits, and their rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from graft_scheduler.data.faults import Kind
from graft_scheduler.data.rows import Row, Unread
from graft_scheduler.data.sources import SourceFile, Split
from graft_scheduler.errors import InvalidInput, NotAllowed, Unreachable
from graft_scheduler.jobs import DataRef

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
NEEDS_DATASETS = "needs the library `datasets` here: pip install datasets"
VALID_NAMES = ("validation", "valid", "dev", "val", "eval")
HUB_TIMEOUT_SECONDS = 5.0


def is_hub_id(source: str) -> bool:
    """Whether that can be a data set on the hub."""
    return HUB_ID.fullmatch(source) is not None and ".." not in source


def resolve_commit(data: DataRef) -> str | None:
    """The commit that the revision is now; as it was given, where the hub cannot be asked."""
    try:
        import huggingface_hub as hub

        info = hub.HfApi().dataset_info(data.source, revision=data.revision, timeout=HUB_TIMEOUT_SECONDS)
    except Exception:  # offline, not installed, a folder: loading says what is wrong, if anything is
        return data.revision
    return str(info.sha)


def hub_files(data: DataRef) -> tuple[SourceFile, ...]:
    """The splits of the data set, as files of it.

    Raises:
        InvalidInput: there is no such data set, subset or split, or `datasets` is missing.
        NotAllowed: it is gated, and this user has no access.
        Unreachable: the hub does not answer.
    """
    library = _library(data.source)
    ask = library.get_dataset_split_names
    names = _asked(data, lambda: ask(data.source, data.subset, revision=data.revision))
    train = data.split or ("train" if "train" in names else names[0])
    if train.partition("[")[0] not in names:
        raise InvalidInput(f"`data.split` is {train!r}; {data.source} has {', '.join(names)}")
    files = [_file(Split.TRAIN, data, train)]
    valid = next((name for name in VALID_NAMES if name in names), None)
    for split, name in ((Split.VALID, valid), (Split.TEST, "test" if "test" in names else None)):
        if name is not None and name != train.partition("[")[0]:
            files.append(_file(split, data, name))
    return tuple(files)


def hub_reader(data: DataRef) -> Callable[[SourceFile], Iterator[Row | Unread]]:
    """Reads the splits that `hub_files` names."""

    def read(file: SourceFile) -> Iterator[Row | Unread]:
        library = _library(data.source)
        name = file.name.rpartition(":")[2]
        rows = _asked(
            data,
            lambda: library.load_dataset(data.source, data.subset, split=name, revision=data.revision),
        )
        number = 0
        try:
            for number, fields in enumerate(rows, start=1):
                yield Row(number, {key: value for key, value in fields.items() if value is not None})
        except Exception as error:  # decoders of features, and what the hub's code raises
            yield Unread(number + 1, Kind.FILE, f"cannot be read: {' '.join(str(error).split())}")

    return read


def _file(split: Split, data: DataRef, name: str) -> SourceFile:
    return SourceFile(split, Path(data.source), f"{data.source}:{name}")


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise InvalidInput(f"`data` is {source}, on the hub; that {NEEDS_DATASETS}") from None
    return datasets


def _asked(data: DataRef, ask: Callable[[], Any]) -> Any:
    """The library's answer; its many errors as ours."""
    try:
        return ask()
    except Exception as error:
        raise _explained(data, error) from error


def _explained(data: DataRef, error: Exception) -> Exception:
    told = " ".join(str(error).split())
    name = type(error).__name__
    if "gated" in told.lower():
        page = f"https://huggingface.co/datasets/{data.source}"
        return NotAllowed(f"{data.source} is gated; accept its terms on {page} and set HF_TOKEN")
    if name in {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        text = f"`data` is {data.source}; there is no such file or folder, and the hub has no such data set"
        return InvalidInput(f"{text}, or it is private and needs HF_TOKEN")
    if isinstance(error, ConnectionError | TimeoutError | OSError) and "Offline" not in name:
        return Unreachable(f"the hub does not answer for the data set {data.source}: {told}")
    return InvalidInput(f"the data set {data.source} cannot be loaded: {told}")
