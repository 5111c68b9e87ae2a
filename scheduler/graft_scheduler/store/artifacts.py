"""Files and folders in the store: put one and get its digest, get it anywhere by that digest."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from graft_scheduler.errors import Conflict, StoreError
from graft_scheduler.states import Digest
from graft_scheduler.store.brought import bring
from graft_scheduler.store.depots import Depot, Source, check_digest
from graft_scheduler.store.manifest import (
    MAX_MANIFEST_BYTES,
    Entry,
    Manifest,
    build_entry,
    build_manifest,
    decode_manifest,
    list_folder,
)
from graft_scheduler.store.partials import (
    Partial,
    clear_abandoned,
    open_own,
    open_partial,
    open_partial_folder,
    remove,
)


class Store:
    """Content-addressed files and folders. Safe to use from several processes and machines at once."""

    def __init__(self, depot: Depot, cache: Path | None = None) -> None:
        self._depot = depot
        self._cache = cache or Path(gettempdir()) / f"graft-cache-{os.getuid()}"
        self.id = depot.id
        self.place = depot.place
        """Its URL or folder, for a person."""

    def put_file(self, path: Path, most: int | None = None) -> Digest:
        """Store a file, or its first bytes, where it grows; one that is there already is not written again.

        Raises:
            InvalidInput: the file cannot be read.
            StoreError: the store cannot be written, or the file changed meanwhile.
        """
        return self._put(Source.of_file(path, most))

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
            source = Source.of_file(path)
            entries.append(build_entry(name, source.size, self._put(source)))
        return self.put_bytes(build_manifest(entries).encode())

    def put_bytes(self, data: bytes) -> Digest:
        """Store a short document.

        Raises:
            StoreError: the store cannot be written.
        """
        return self._put(Source.of_bytes(data))

    def has(self, digest: Digest) -> bool:
        """Whether the store holds it. A folder's manifest is written last, after its files."""
        return self._depot.size(digest) is not None

    def get_bytes(self, digest: Digest) -> bytes:
        """A short document, whole.

        Raises:
            StoreError: it is missing or damaged.
        """
        data = b"".join(self._depot.read(digest))
        if (actual := Source.of_bytes(data).digest) != digest:
            raise self._damaged(digest, actual)
        return data

    def stream(self, digest: Digest) -> Iterator[bytes]:
        """A file of any size, in chunks; what is wrong with it shows at its end.

        Raises:
            StoreError: it is missing, or was damaged.
        """
        found = hashlib.sha256()
        for chunk in self._depot.read(digest):
            found.update(chunk)
            yield chunk
        if (actual := f"sha256:{found.hexdigest()}") != digest:
            raise self._damaged(digest, actual)

    def get_file(self, digest: Digest, dest: Path) -> None:
        """Bring a file to `dest`, which appears whole and right or not at all.

        What an interrupted call has brought is not brought again.

        Raises:
            StoreError: it is missing or damaged, or `dest` cannot be written.
        """
        with _prepared(dest), open_partial(_place(dest, digest)) as partial:
            self._complete(digest, partial)
            os.replace(partial.path, dest)

    def get_folder(
        self,
        digest: Digest,
        dest: Path,
        only: Container[str] | None = None,
        note: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Bring a folder, or `only` some of its files, to `dest`, which appears right or not at all.

        A `dest` that already holds every file at its size is left alone, not read again. What an
        interrupted call has brought is not brought again. `note` hears of each chunk's bytes, and may end
        the call by raising.

        Raises:
            StoreError: it or one of its files is missing or damaged, or `dest` cannot be written.
            Conflict: `dest` holds something else.
        """
        manifest = self._manifest(digest)
        if only is not None:
            manifest = build_manifest([entry for entry in manifest.files if entry.name in only])
            digest = Source.of_bytes(manifest.encode()).digest
        if _is_complete(dest, manifest):
            return
        with _prepared(dest), open_partial_folder(_place(dest, digest)) as folder:
            for entry in manifest.files:
                with open_own(folder / entry.name) as partial:
                    note(partial.size)
                    self._complete(entry.digest, partial, note)
            _move_folder(folder, dest, lambda: _is_complete(dest, manifest))

    def cached_folder(self, digest: Digest, kind: str = "data", only: Container[str] | None = None) -> Path:
        """The folder, or `only` some of its files, among what this user's commands have brought here.

        `kind` keeps apart what has one digest and not the same files.

        Raises:
            StoreError: as `get_folder`.
        """
        return bring(self._cache, kind, digest, lambda dest: self.get_folder(digest, dest, only))

    def files(self, digest: Digest) -> dict[str, Entry]:
        """The files of a folder by their names.

        Raises:
            StoreError: it is missing or damaged, or a file.
        """
        return {entry.name: entry for entry in self._manifest(digest).files}

    def folder_bytes(self, digest: Digest) -> int:
        """Bytes of all files of a folder together.

        Raises:
            StoreError: it is missing or damaged.
        """
        return sum(entry.size for entry in self._manifest(digest).files)

    def _put(self, source: Source) -> Digest:
        """Written, or there already and renewed: whoever collects garbage goes by its age."""
        if self._depot.size(source.digest) == source.size:
            try:
                self._depot.renew(source.digest)
                return source.digest
            except StoreError:
                pass  # it was removed just now, or is another user's who alone may say that it is used
        self._depot.write(source)
        return source.digest

    @property
    def depot(self) -> Depot:
        """The place itself, for whoever looks after it."""
        return self._depot

    def _manifest(self, digest: Digest) -> Manifest:
        if (self._depot.size(digest) or 0) > MAX_MANIFEST_BYTES:
            raise StoreError(f"{digest} names a file, not a folder")
        return decode_manifest(self.get_bytes(digest), digest)

    def _complete(
        self, digest: Digest, partial: Partial, note: Callable[[int], None] = lambda size: None
    ) -> None:
        """Bring what is missing of the blob, and see that the whole is right."""

        def read(start: int) -> Iterator[bytes]:
            for chunk in self._depot.read(digest, start):
                yield chunk
                note(len(chunk))

        if not partial.fill(digest, read):
            remove(partial.path)
            raise self._damaged(digest, partial.digest)

    def _damaged(self, digest: Digest, actual: str) -> StoreError:
        place = self._depot.locate(digest)
        return StoreError(f"{digest} is damaged, its bytes are {actual}; remove {place} and store it again")


def _place(dest: Path, digest: Digest) -> Path:
    """Beside `dest`, to build in."""
    return dest.with_name(f".{dest.name}.{check_digest(digest)[:16]}.partial")


@contextmanager
def _prepared(dest: Path) -> Iterator[None]:
    """A folder around `dest`, and errors of the file system as one line with a remedy."""
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(dest.parent, f".{glob.escape(dest.name)}.*.partial*")
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {dest} ({error.strerror}); check free space and permissions"
        ) from error


def _is_complete(dest: Path, manifest: Manifest) -> bool:
    places = [(dest / entry.name, entry.size) for entry in manifest.files]
    return all(place.is_file() and place.stat().st_size == size for place, size in places)


def _move_folder(partial: Path, dest: Path, is_complete: Callable[[], bool]) -> None:
    """Move the built folder to `dest`, unless another process put the same one there first."""
    try:
        os.rename(partial, dest)
    except OSError as error:
        if is_complete():
            remove(partial)
            return
        if dest.exists():
            raise Conflict(
                f"{dest} already holds something else; remove it or choose another place"
            ) from error
        raise
