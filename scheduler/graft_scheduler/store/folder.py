"""Blobs in a folder that all machines see, or that a gateway serves: written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

from graft_scheduler.errors import StoreError, Unreachable
from graft_scheduler.states import Digest
from graft_scheduler.store.depots import CHUNK_BYTES, Blob, Source, absent, check_digest
from graft_scheduler.store.partials import Partial, clear_abandoned, open_partial, remove
from graft_scheduler.store.writers import WRITER

INCOMING = "incoming"
"""Folder of half-written blobs: in the same file system, so that a rename moves them."""
STARTS = [f"{number:02x}" for number in range(256)]
"""Of digests, a folder each."""
IDENTITY_FILE = "store.json"
"""At the root; its `id` tells two machines whether they look at one store."""


class FolderDepot:
    """The bytes behind the digests, in `blobs/sha256/ab/abcd...` below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = root.as_uri()
        self.id = ""

    @classmethod
    def open(cls, root: Path) -> FolderDepot:
        """The depot below `root`, made on first use; a reader without write access may open one.

        Raises:
            Unreachable: the folder cannot be made or read.
            StoreError: it is of another version.
        """
        depot = cls(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            os.listdir(root)
        except OSError as error:
            raise Unreachable(
                f"store {root} cannot be opened ({_reason(error)}); is it mounted and readable?"
            ) from error
        clear_abandoned(root / INCOMING, "*")
        depot.id = _identify(root)
        return depot

    def size(self, digest: Digest) -> int | None:
        """As `Depot`."""
        path = self.path(digest)
        with self._explained("read"):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return None

    def write(self, source: Source) -> None:
        """As `Depot`; what this user's process on this machine has written before is gone on from."""
        with self.incoming(source.digest, WRITER) as begun:
            if not begun.fill(source.digest, source.read):
                remove(begun.path)
                raise source.changed()
            self.publish(begun, source.digest)

    @contextmanager
    def incoming(self, digest: Digest, writer: str, *, alone: bool = False) -> Iterator[Partial]:
        """What `writer` has brought of the blob so far, to add to.

        Raises:
            StoreError: the folder cannot be written; what was brought is gone then.
            Busy: the writer does so already, and shall do so once only (`alone`).
        """
        with self._explained("write"):
            self._shared_folder(INCOMING)
            with open_partial(self._incoming_path(digest, writer), alone=alone) as begun:
                yield begun

    def brought(self, digest: Digest, writer: str) -> int:
        """Bytes of the blob that `writer` has brought so far."""
        with self._explained("read"), suppress(FileNotFoundError):
            return self._incoming_path(digest, writer).stat().st_size
        return 0

    def publish(self, finished: Partial, digest: Digest) -> None:
        """The finished blob appears under its digest in one step, synced to the disk."""
        path = self.path(digest)
        with self._explained("write"):
            self._shared_folder(path.parent.relative_to(self.root).as_posix())
            finished.sync()
            _share(finished.path, stat.S_IRGRP)
            os.replace(finished.path, path)

    def read(self, digest: Digest, start: int = 0) -> Iterator[bytes]:
        """As `Depot`."""
        path = self.path(digest)
        with self._explained("read"):
            try:
                file = path.open("rb")
            except FileNotFoundError as error:
                raise self._missing(digest) from error
            with file:
                file.seek(start)
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk

    def locate(self, digest: Digest) -> str:
        """The blob's file."""
        return str(self.path(digest))

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        digits = check_digest(digest)
        return self.root / "blobs" / "sha256" / digits[:2] / digits

    def listing(self, after: str = "", most: int | None = None) -> list[Blob]:
        """Blobs in the order of their digests, those behind `after`."""
        found: list[Blob] = []
        first = after.removeprefix("sha256:")
        with self._explained("read"):
            for folder in (self.root / "blobs" / "sha256" / start for start in STARTS if start >= first[:2]):
                if most is not None and len(found) >= most:
                    return found
                for name in sorted(name for name in _names_in(folder) if name > first):
                    if most is not None and len(found) >= most:
                        return found
                    with suppress(FileNotFoundError):  # removed meanwhile
                        entry = (folder / name).stat()
                        found.append(Blob(Digest(f"sha256:{name}"), entry.st_size, entry.st_mtime))
        return found

    def renew(self, digest: Digest) -> None:
        """As `Depot`. What another user stored may be used here and not be touched: it is written anew."""
        path = self.path(digest)
        with self._explained("write"):
            try:
                os.utime(path)
            except FileNotFoundError as error:
                raise self._missing(digest) from error
            except PermissionError:
                self.write(Source(str(path), digest, path.stat().st_size, partial(self.read, digest)))

    def remove(self, digest: Digest) -> None:
        """As `Depot`."""
        with self._explained("write"), suppress(FileNotFoundError):
            self.path(digest).unlink()

    def clear_abandoned(self) -> int:
        """As `Depot`."""
        return clear_abandoned(self.root / INCOMING, "*")

    def used_bytes(self) -> int:
        """Of all blobs together; slow, it looks at every one."""
        return sum(blob.size for blob in self.listing())

    def _incoming_path(self, digest: Digest, writer: str) -> Path:
        return self.root / INCOMING / f"{check_digest(digest)}.{writer}"

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
        return absent(digest, str(self.root))

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


def _names_in(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _identify(root: Path) -> str:
    """The store's id; the first to open it makes one, and everybody reads the same."""
    path = root / IDENTITY_FILE
    try:
        if not path.exists():
            _create_once(path, json.dumps({"version": 1, "id": str(uuid4())}))
        document = json.loads(path.read_text())
    except OSError as error:
        raise Unreachable(
            f"store {root} cannot be opened ({error.strerror}); check that you may write there"
        ) from error
    except ValueError as error:
        raise StoreError(f"{path} is not JSON: {error}; restore it from a copy of the store") from error
    if (
        not isinstance(document, dict)
        or document.get("version") != 1
        or not isinstance(document.get("id"), str)
    ):
        raise StoreError(f"{path} is not of a version this Graft knows; update Graft, or use another folder")
    return str(document["id"])


def _create_once(path: Path, text: str) -> None:
    """Create a file with its content in one step, unless somebody else just did."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        partial.write_text(text)
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # no hard links, as on SMB: still created once, but not in one step with its content
        with suppress(FileExistsError), path.open("x") as file:
            file.write(text)
    finally:
        partial.unlink(missing_ok=True)


def _share(path: Path, bits: int) -> None:
    """Add group permissions, where the file system has them (an SMB share may not)."""
    with suppress(OSError):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | bits)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
