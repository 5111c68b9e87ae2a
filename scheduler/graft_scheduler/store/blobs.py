"""Blobs by digest under one folder: written whole or not at all, verified at every read.

Nothing here knows of folders or manifests; `artifacts` puts those together.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from graft_scheduler.errors import InvalidInput, StoreError, Unreachable
from graft_scheduler.states import Digest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CHUNK_BYTES = 1 << 20
"""What is held in memory of a file of any size."""
ABANDONED_SECONDS = 24 * 3600.0
"""A temporary file that nobody wrote to for this long belongs to a process that died."""
INCOMING = "incoming"
"""Folder of half-written blobs: in the same file system, so that a rename moves them."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Blobs:
    """The bytes behind the digests, in `blobs/sha256/ab/abcd...` below `root`."""

    def __init__(self, files: AbstractFileSystem, root: Path) -> None:
        self._files = files
        self.root = root

    def prepare(self) -> None:
        """Make the folders and clear what dead writers left; a reader without write access may pass.

        Raises:
            Unreachable: the folder cannot be made or read.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._files.ls(str(self.root))
        except OSError as error:
            raise Unreachable(
                f"store {self.root} cannot be opened ({_reason(error)}); is it mounted and readable?"
            ) from error
        clear_abandoned(self.root / INCOMING, "*")

    def size(self, digest: Digest) -> int | None:
        """Bytes of the blob; `None` when the store does not hold it."""
        path = self._path(digest)
        with self._explained("read"):
            try:
                return int(self._files.info(str(path))["size"])
            except FileNotFoundError:
                return None

    def write(self, digest: Digest, chunks: Iterable[bytes], source: str) -> None:
        """Store `chunks` under `digest`; the blob appears in one step, synced to disk.

        Raises:
            StoreError: `source` changed since it was measured, or the store cannot be written.
        """
        with self._explained("write"):
            incoming, path = self._shared_folder(INCOMING), self._path(digest)
            self._shared_folder(path.parent.relative_to(self.root).as_posix())
            partial = incoming / uuid4().hex
            try:
                written = self._write_partial(partial, chunks)
                if written != digest:
                    raise StoreError(f"{source} changed while it was being stored; store it again")
                os.replace(partial, path)
            except BaseException:
                remove(partial)
                raise

    def read(self, digest: Digest) -> Iterator[bytes]:
        """The blob in chunks. Only the end of the iteration says that they were the right ones.

        Raises:
            StoreError: the blob is missing, or is not what the digest says.
        """
        path, found = self._path(digest), hashlib.sha256()
        with self._explained("read"):
            try:
                file = self._files.open(str(path), "rb")
            except FileNotFoundError as error:
                raise self._missing(digest) from error
            with file:
                while chunk := file.read(CHUNK_BYTES):
                    found.update(chunk)
                    yield chunk
        if (actual := f"sha256:{found.hexdigest()}") != digest:
            raise StoreError(f"{digest} is damaged, its bytes are {actual}; remove {path} and store it again")

    def _write_partial(self, partial: Path, chunks: Iterable[bytes]) -> Digest:
        written = hashlib.sha256()
        with self._files.open(str(partial), "wb") as file:
            for chunk in chunks:
                written.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        _share(partial, stat.S_IRGRP)
        return Digest(f"sha256:{written.hexdigest()}")

    def _path(self, digest: Digest) -> Path:
        digits = check_digest(digest)
        return self.root / "blobs" / "sha256" / digits[:2] / digits

    def _shared_folder(self, name: str) -> Path:
        """A folder below the root in which the whole group may store."""
        folder = self.root
        for part in name.split("/"):
            folder = folder / part
            with suppress(FileExistsError):
                folder.mkdir()
                _share(folder, stat.S_IRWXG)
        return folder

    def _missing(self, digest: Digest) -> StoreError | Unreachable:
        if not self.root.is_dir():
            return Unreachable(f"store {self.root} is not there; check that it is mounted")
        return StoreError(f"{digest} is not in store {self.root}; store it again, or check `store_url`")

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Errors of the file system as one line with the store and a remedy."""
        try:
            yield
        except OSError as error:
            if not self.root.is_dir():
                raise Unreachable(f"store {self.root} is not there; check that it is mounted") from error
            raise StoreError(
                f"cannot {action} store {self.root} ({_reason(error)}); check free space and permissions"
            ) from error


def check_digest(digest: Digest) -> str:
    """The hexadecimal digits of a digest; it may come from anywhere and becomes part of a path.

    Raises:
        InvalidInput: it is not `sha256:` and 64 digits.
    """
    if match := _DIGEST.fullmatch(digest):
        return match[1]
    raise InvalidInput(f"{digest!r} is not a digest; it must be `sha256:` and 64 hexadecimal digits")


def clear_abandoned(folder: Path, pattern: str) -> None:
    """Remove what processes that died left half-written; best effort, for whoever may not."""
    with suppress(OSError):
        for path in folder.glob(pattern):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a whole folder, whichever it is, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _share(path: Path, bits: int) -> None:
    """Add group permissions, where the file system has them (an SMB share may not)."""
    with suppress(OSError):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | bits)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
