"""What fetches that were given up have left half-written, of the hub and of the store."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from graft_scheduler.store.partials import ABANDONED_SECONDS, remove
from graft_worker.cache.items import HUB_PREFIX, Item, Kind
from graft_worker.cache.notes import NOTES, read_note
from graft_worker.cache.uses import alone

LOCKS = ".locks"
"""A folder of the hub's cache: its library locks a file there for each blob while it fetches that."""
BLOB_PARTIAL = re.compile(r"(.+)\.[0-9a-f]{8}\.incomplete")
"""A blob on its way, by a name that is used once: nobody goes on from it."""
FOLDER_PARTIAL = re.compile(r"\.([0-9a-f]{64})\..+\.partial.*")
"""A folder of the store on its way; the next fetch of it goes on from there."""


def clear_leftovers(cache: Path, hub: Path) -> None:
    """Remove what nobody goes on from: of the hub where Graft has fetched, of the store what is a day old."""
    for note in (cache / NOTES).glob(f"{Kind.HUB}-*@*"):
        name = note.name.removeprefix(f"{Kind.HUB}-").partition("@")
        if read_note(cache, Item(Kind.HUB, f"{name[0].replace('--', '/', 1)}@{name[2]}")).is_ours:
            clear_blob_partials(hub / f"{HUB_PREFIX}{name[0]}")
    for kind in (Kind.MODEL, Kind.DATA):
        for path in (cache / kind).glob(".*.partial*"):
            if found := FOLDER_PARTIAL.fullmatch(path.name):
                _clear_folder_partial(cache, Item(kind, f"sha256:{found[1]}"), path)


def clear_blob_partials(repository: Path) -> None:
    """Remove those of a repository of the hub that no process writes to, of Graft or of anybody."""
    locks = repository.parent / LOCKS / repository.name
    for path in (repository / "blobs").glob("*.incomplete"):
        found = BLOB_PARTIAL.fullmatch(path.name)
        if found and not _is_locked(locks / f"{found[1]}.lock"):
            remove(path)


def _is_locked(path: Path) -> bool:
    """Whether somebody holds it, as far as can be told; whoever takes it next begins another file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _clear_folder_partial(cache: Path, item: Item, path: Path) -> None:
    with alone(cache, item) as is_alone:
        if is_alone and time.time() - _changed_at(path) > ABANDONED_SECONDS:
            remove(path)


def _changed_at(folder: Path) -> float:
    """When anything in it was written last."""
    newest = 0.0
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return newest
