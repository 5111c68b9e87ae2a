"""Files and folders that are being written: by one process each, which may go on from what another left."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from graft_scheduler.errors import GraftError, Unreachable
from graft_scheduler.states import Digest
from graft_scheduler.store.depots import CHUNK_BYTES

ABANDONED_SECONDS = 24 * 3600.0
"""A temporary file that nobody wrote to for this long belongs to a process that died."""
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What a file system without locks answers, as some network shares do."""


class Partial:
    """A file of which a part is there, with the digest of that part."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._found = hashlib.sha256()
        self.size = 0
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            self._found.update(chunk)
            self.size += len(chunk)

    @property
    def digest(self) -> Digest:
        """Of what is there."""
        return Digest(f"sha256:{self._found.hexdigest()}")

    def append(self, chunk: bytes) -> None:
        """Add to its end."""
        self._file.write(chunk)
        self._found.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """From nothing: what was there was not the beginning of what is wanted."""
        self._file.seek(0)
        self._file.truncate()
        self._found, self.size = hashlib.sha256(), 0

    def fill(self, digest: Digest, read: Callable[[int], Iterator[bytes]]) -> bool:
        """Add what is missing, read from where this ends; all of it once more if what was there was not the
        beginning. Whether the whole is what `digest` names; if it is, others can read it.
        """
        is_continued = self.size > 0
        self._add(read)
        if self.digest != digest and is_continued:
            self.restart()
            self._add(read)
        self._file.flush()
        return self.digest == digest

    def _add(self, read: Callable[[int], Iterator[bytes]]) -> None:
        for chunk in read(self.size):
            self.append(chunk)

    def sync(self) -> None:
        """Onto the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


class Busy(Exception):
    """Another process, or another connection, writes it."""


@contextmanager
def open_partial(path: Path, *, alone: bool = False) -> Iterator[Partial]:
    """The partial file at `path`, with what an earlier process left there, or a new one beside it while
    another process writes that one.

    What was brought stays after an interruption, for the next try; an error of the file system, a full
    disk most likely, removes it. Whoever moves it away has finished it.

    Raises:
        Busy: another process writes it, and there shall be one only (`alone`).
    """
    place, descriptor = _claim(path, _open_file, alone=alone)
    with os.fdopen(descriptor, "a+b") as file:
        partial = Partial(place, file)
        try:
            yield partial
        except BaseException as error:
            if partial.size == 0 or isinstance(error, OSError):
                remove(place)
            raise


@contextmanager
def open_own(path: Path) -> Iterator[Partial]:
    """The partial file at `path`, in a folder that no other process writes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        yield Partial(path, file)


@contextmanager
def open_partial_folder(path: Path) -> Iterator[Path]:
    """The folder at `path`, with what an interrupted process left in it, or a new one beside it while
    another process fills that one.

    It stays after an interruption, by whoever waits for it too, and while a store does not answer; an error
    of the store or the file system removes it.
    """
    place, descriptor = _claim(path, _open_folder)
    try:
        yield place
    except Unreachable:
        raise
    except (GraftError, OSError):
        remove(place)
        raise
    finally:
        os.close(descriptor)


def _open_folder(place: Path) -> int:
    place.mkdir(exist_ok=True)
    return os.open(place, os.O_RDONLY)


def _open_file(place: Path) -> int:
    return os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)


def _claim(path: Path, open_at: Callable[[Path], int], *, alone: bool = False) -> tuple[Path, int]:
    """`path` or a new place beside it, opened and locked until the descriptor is closed."""
    place = path
    while True:
        descriptor = open_at(place)
        is_locked = _lock(descriptor)
        if is_locked is None and place != path:
            return place, descriptor  # the name is new, that must do
        if is_locked and _is_still(place, descriptor):
            return place, descriptor
        os.close(descriptor)
        if is_locked is False and alone:
            raise Busy
        if not is_locked:
            place = path.with_name(f"{path.name}.{uuid4().hex}")


def _lock(descriptor: int) -> bool | None:
    """Whether it is ours now; `None` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _is_still(place: Path, descriptor: int) -> bool:
    """Whether nobody moved it away between opening and locking it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(place.stat(), os.fstat(descriptor))
    return False


def clear_abandoned(folder: Path, pattern: str) -> int:
    """Remove what processes that died left half-written, and count it; best effort, for whoever may not."""
    count = 0
    with suppress(OSError):
        for path in folder.glob(pattern):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                remove(path)
                count += 1
    return count


def remove(path: Path) -> None:
    """Remove a file or a whole folder, whichever it is, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
