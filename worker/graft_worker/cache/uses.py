"""Who uses what of the cache: a lock on a small file for each item, shared while it is in use, whose time
of change is the time of the last use.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from graft_worker.cache.items import Item

USES = "uses"
"""A folder of the cache. Its files are never removed: who holds a lock must hold that of the name."""
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What a file system without locks answers: nothing of it is ever evicted then."""


class Uses:
    """Items that must stay until this is closed."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def add(self, cache: Path, item: Item) -> None:
        """From now on. Waits while the item is just being removed, so look whether it is there afterwards."""
        descriptor = _open(cache, item)
        self._held.append(descriptor)
        with _lockless():
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(descriptor)

    def close(self) -> None:
        """All of them may go."""
        while self._held:
            os.close(self._held.pop())


@contextmanager
def alone(cache: Path, item: Item) -> Iterator[bool]:
    """Whether nobody uses the item; until this ends nobody begins to."""
    try:
        descriptor = _open(cache, item)
    except OSError:
        yield False
        return
    try:
        yield _locked(descriptor)
    finally:
        os.close(descriptor)


def used_at(cache: Path, item: Item, otherwise: Path) -> float:
    """When it was used last, in seconds since 1970; of what never was, when its folder was made."""
    for path in (_path(cache, item), otherwise):
        with suppress(OSError):
            if (changed_at := path.stat().st_mtime) > 0:
                return changed_at
    return 0.0


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _lockless() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _open(cache: Path, item: Item) -> int:
    path = _path(cache, item)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return os.open(path, os.O_RDWR)
    os.utime(descriptor, (0, 0))  # to look whether it is in use is not to use it
    return descriptor


def _path(cache: Path, item: Item) -> Path:
    return cache / USES / item.key
