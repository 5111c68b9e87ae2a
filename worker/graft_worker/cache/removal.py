"""Takes items off the disk: renamed first, so that what is left of one never looks like a whole model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from graft_worker.cache.items import HUB_PREFIX, SNAPSHOTS, Item, Kind, folders
from graft_worker.cache.leftovers import clear_blob_partials

REMOVED = ".graft-removed"
"""A folder for those on their way out: as deep as they were, as the links in snapshots are relative."""


def remove_item(item: Item, folder: Path, kept: Sequence[str] = ()) -> None:
    """Remove it. Of a snapshot of the hub the files in `kept` stay, and what other snapshots share.

    Raises:
        OSError: it cannot be renamed; then it is as it was.
    """
    if item.kind is not Kind.HUB:
        gone = folder.parent / REMOVED / uuid4().hex
        gone.parent.mkdir(exist_ok=True)
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
        return
    repository = folder.parent.parent
    gone = repository / REMOVED / f"{item.commit}-{uuid4().hex}"
    gone.parent.mkdir(exist_ok=True)
    os.rename(folder, gone)
    for name in kept:
        with suppress(OSError):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(gone / name, folder / name)
    _finish(repository, gone)
    if not folder.exists():
        _forget_commit(repository, item.commit)


def finish_removals(cache: Path, hub: Path) -> None:
    """Remove what a worker that died had renamed."""
    for kind in (Kind.MODEL, Kind.DATA):
        shutil.rmtree(cache / kind / REMOVED, ignore_errors=True)
    for repository in folders(hub):
        if repository.name.startswith(HUB_PREFIX):
            for folder in folders(repository / REMOVED):
                _finish(repository, folder)


def _finish(repository: Path, gone: Path) -> None:
    """Remove the files that only this snapshot had, then what is left of it."""
    wanted = {blob for snapshot in folders(repository / SNAPSHOTS) for blob in _blobs(repository, snapshot)}
    for blob in set(_blobs(repository, gone)) - wanted:
        with suppress(OSError):
            blob.unlink()
    clear_blob_partials(repository)
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        gone.parent.rmdir()


def _blobs(repository: Path, snapshot: Path) -> Iterator[Path]:
    """The files in the repository's `blobs` that a snapshot links to."""
    for path in snapshot.rglob("*"):
        if path.is_symlink():
            target = path.parent / os.readlink(path)
            if os.path.dirname(os.path.realpath(target)) == os.path.realpath(repository / "blobs"):
                yield Path(os.path.realpath(target))


def _forget_commit(repository: Path, commit: str) -> None:
    """What the hub's library keeps of a commit beside its snapshot, and folders that are empty now."""
    with suppress(OSError):
        (repository / "trees" / f"{commit}.json").unlink()
    for ref in (repository / "refs").rglob("*"):
        with suppress(OSError, UnicodeDecodeError):
            if ref.is_file() and ref.read_text().strip() == commit:
                ref.unlink()
    for folder in (*(repository / name for name in ("trees", "refs", "blobs", SNAPSHOTS)), repository):
        with suppress(OSError):  # not empty: it is wanted still
            folder.rmdir()
