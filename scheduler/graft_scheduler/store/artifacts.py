"""Files and folders in the store: put one and get its digest, get it anywhere by that digest."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from graft_scheduler.errors import Conflict, InvalidInput, StoreError, Unreachable
from graft_scheduler.states import Digest
from graft_scheduler.store.blobs import CHUNK_BYTES, Blobs, clear_abandoned, remove
from graft_scheduler.store.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    build_entry,
    build_manifest,
    decode_manifest,
    list_folder,
)

IDENTITY_FILE = "store.json"
"""At the root; its `id` tells two machines whether they look at one store."""


def open_store(url: str) -> Store:
    """The store at `url`, made on first use.

    Raises:
        InvalidInput: not a `file://` URL.
        Unreachable: its folder cannot be made or read.
    """
    import fsspec  # here: 0.15 s that `graft --help` need not pay

    blobs = Blobs(fsspec.filesystem("file"), folder_of(url))
    blobs.prepare()
    return Store(blobs, _identify(blobs.root))


def folder_of(url: str) -> Path:
    """The folder that a `file://` URL names, its `%20` and the like decoded.

    Raises:
        InvalidInput: another scheme, another machine, or a relative path.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise InvalidInput(
            f"`store_url` is {url!r}; only file:// works until the gateway exists: file:///PATH"
        )
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise InvalidInput(f"`store_url` is {url!r}; it must be file:// and an absolute path: file:///PATH")
    if parts.query or parts.fragment:
        raise InvalidInput(f"`store_url` is {url!r}; write `?` as %3F and `#` as %23 in a path")
    return Path(unquote(parts.path))


class Store:
    """Content-addressed files and folders. Safe to use from several processes and machines at once."""

    def __init__(self, blobs: Blobs, identity: str) -> None:
        self._blobs = blobs
        self.id = identity

    def put_file(self, path: Path) -> Digest:
        """Store a file; one that is there already is not written again.

        Raises:
            InvalidInput: the file cannot be read.
            StoreError: the store cannot be written, or the file changed meanwhile.
        """
        return self._put_sized(path)[0]

    def put_folder(self, path: Path) -> Digest:
        """Store all files below a folder, as `list_folder` finds them; the digest names the whole.

        Raises:
            InvalidInput: empty, or something in it may not be stored.
            StoreError: as `put_file`.
        """
        return self.put_files(list_folder(path))

    def put_files(self, files: Mapping[str, Path]) -> Digest:
        """Store a folder made of these files under these names.

        Raises:
            InvalidInput: none, a file that cannot be read, or a name that could lead out of the folder.
            StoreError: as `put_file`.
        """
        entries = []
        for name, path in sorted(files.items()):
            digest, size = self._put_sized(path)
            entries.append(build_entry(name, size, digest))
        return self.put_bytes(build_manifest(entries).encode())

    def put_bytes(self, data: bytes) -> Digest:
        """Store a short document.

        Raises:
            StoreError: the store cannot be written.
        """
        digest = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
        if self._blobs.size(digest) != len(data):
            self._blobs.write(digest, [data], digest)
        return digest

    def has(self, digest: Digest) -> bool:
        """Whether the store holds it. A folder's manifest is written last, after its files."""
        return self._blobs.size(digest) is not None

    def get_bytes(self, digest: Digest) -> bytes:
        """A short document, whole.

        Raises:
            StoreError: it is missing or damaged.
        """
        return b"".join(self._blobs.read(digest))

    def get_file(self, digest: Digest, dest: Path) -> None:
        """Bring a file to `dest`, which appears whole and right or not at all.

        Raises:
            StoreError: it is missing or damaged, or `dest` cannot be written.
        """
        with _staged(dest) as partial:
            self._copy(digest, partial)
            os.replace(partial, dest)

    def get_folder(self, digest: Digest, dest: Path) -> None:
        """Bring a folder to `dest`, which appears whole and right or not at all.

        A `dest` that already holds every file at its size is left alone, not read again.

        Raises:
            StoreError: it or one of its files is missing or damaged, or `dest` cannot be written.
            Conflict: `dest` holds something else.
        """
        manifest = self._manifest(digest)
        if _is_complete(dest, manifest):
            return
        with _staged(dest) as partial:
            for entry in manifest.files:
                place = partial / entry.name
                place.parent.mkdir(parents=True, exist_ok=True)
                self._copy(entry.digest, place)
            _move_folder(partial, dest, lambda: _is_complete(dest, manifest))

    def folder_bytes(self, digest: Digest) -> int:
        """Bytes of all files of a folder together.

        Raises:
            StoreError: it is missing or damaged.
        """
        return sum(entry.size for entry in self._manifest(digest).files)

    def _put_sized(self, path: Path) -> tuple[Digest, int]:
        digest, size = _measure(path)
        if self._blobs.size(digest) != size:
            self._blobs.write(digest, _chunks(path), str(path))
        return digest, size

    def _manifest(self, digest: Digest) -> Manifest:
        if (self._blobs.size(digest) or 0) > MAX_MANIFEST_BYTES:
            raise StoreError(f"{digest} names a file, not a folder")
        return decode_manifest(self.get_bytes(digest), digest)

    def _copy(self, digest: Digest, place: Path) -> None:
        with place.open("xb") as file:
            for chunk in self._blobs.read(digest):
                file.write(chunk)


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


def _measure(path: Path) -> tuple[Digest, int]:
    found, size = hashlib.sha256(), 0
    for chunk in _chunks(path):
        found.update(chunk)
        size += len(chunk)
    return Digest(f"sha256:{found.hexdigest()}"), size


def _chunks(path: Path) -> Iterator[bytes]:
    """A file that somebody wants stored: what is wrong with it is theirs to mend, not the store's."""
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _staged(dest: Path) -> Iterator[Path]:
    """A place beside `dest` to build in; gone afterwards, unless it was moved to `dest`."""
    partial = dest.with_name(f".{dest.name}.{uuid4().hex}.partial")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(dest.parent, f".{glob.escape(dest.name)}.*.partial")
        yield partial
    except OSError as error:
        raise StoreError(
            f"cannot write {dest} ({error.strerror}); check free space and permissions"
        ) from error
    finally:
        remove(partial)


def _is_complete(dest: Path, manifest: Manifest) -> bool:
    places = [(dest / entry.name, entry.size) for entry in manifest.files]
    return all(place.is_file() and place.stat().st_size == size for place, size in places)


def _move_folder(partial: Path, dest: Path, is_complete: Callable[[], bool]) -> None:
    """Move the built folder to `dest`, unless another process put the same one there first."""
    try:
        os.rename(partial, dest)
    except OSError as error:
        if is_complete():
            return
        if dest.exists():
            raise Conflict(
                f"{dest} already holds something else; remove it or choose another place"
            ) from error
        raise
