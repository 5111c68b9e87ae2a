"""Blobs on a file server (S3, SFTP): small ones whole, large ones in parts that an index names.

    store.json                                  version and id
    blobs/sha256/ab/abcd...                     a blob, whole
    blobs/sha256/ab/abcd....parts               or the index of its parts, written after them
    parts/sha256/ab/abcd.../000000-PART         one part; PART is the SHA-256 of its bytes

A part's name says what it must be. So an upload goes on with whatever parts are there, whoever brought them,
and every piece is verified before it is handed out.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from uuid import NAMESPACE_URL, uuid5

from graft_scheduler.errors import GraftError, StoreError
from graft_scheduler.states import Digest
from graft_scheduler.store.depots import Blob, Source, absent, check_digest
from graft_scheduler.store.files import Entry, Files, Lanes, at_first, patiently
from graft_scheduler.store.folder import IDENTITY_FILE
from graft_scheduler.store.partials import ABANDONED_SECONDS
from graft_scheduler.store.parts import (
    BLOBS,
    INDEX_SUFFIX,
    PARTS,
    Index,
    Piece,
    blob_name,
    cut,
    digest_in,
    index_name,
    parse_index,
    part_folder,
    part_name,
    part_sizes,
)

PART_BYTES = 8 << 20
"""What a broken connection costs at most. Some parts are in memory at once, one in each lane."""
STORE_VERSION = 2
"""Of `store.json`. Version 1 is a folder, where large blobs are whole: neither would find the other's."""
TRIES, LOOKS = 3, 2
"""At an upload whose parts vanish, as another removes them; at a piece that comes damaged."""


class RemoteDepot:
    """The blobs on one file server."""

    def __init__(self, files: Files) -> None:
        self._files, self._lanes = files, Lanes()
        self.place = files.place
        self.id = ""

    @classmethod
    def open(cls, files: Files) -> RemoteDepot:
        """The depot below the root of `files`, made on first use; a reader without write access may open one.

        Raises:
            NotAllowed, Unreachable: the server refuses, or does not answer.
            StoreError: it is of another kind or version.
        """
        depot = cls(files)
        depot.id = at_first(depot._identify)
        return depot

    def size(self, digest: Digest) -> int | None:
        """As `Depot`."""
        name = blob_name(digest)
        whole = patiently(partial(self._files.size, name))
        if whole is not None:
            return whole
        index = self._index(digest)
        return index.size if index else None

    def write(self, source: Source) -> None:
        """As `Depot`; parts that are there are renewed, and not sent again. Parts of another length stay:
        they may be another writer's.
        """
        if source.size <= PART_BYTES:
            self._write_whole(source)
            return
        for _ in range(TRIES):
            index = self._write_parts(source)
            wanted = part_sizes(source.digest, index)
            if wanted.items() <= self._parts_there(source.digest).items():
                break
        else:
            raise StoreError(
                f"parts of {source.digest} vanish from {self.place}; who else removes them there?"
            )
        document = index.model_dump_json().encode()
        patiently(partial(self._files.put, index_name(source.digest), document))

    def read(self, digest: Digest, start: int = 0) -> Iterator[bytes]:
        """As `Depot`; verified piece by piece."""
        pieces, skipped = self._pieces(digest, start)
        for data in self._lanes.each(partial(self._fetch, digest), pieces):
            if rest := data[skipped:]:
                yield rest
            skipped = 0

    def locate(self, digest: Digest) -> str:
        """The blob's file, or the index of its parts."""
        name = blob_name(digest)
        is_whole = patiently(partial(self._files.size, name)) is not None
        return self._files.locate(name if is_whole else index_name(digest))

    def listing(self, after: str = "", most: int | None = None) -> list[Blob]:
        """Blobs in the order of their digests, those behind `after`."""
        found: list[Blob] = []
        digits = after.removeprefix("sha256:")
        last = f"{BLOBS}/{digits[:2]}/{digits}" if digits else ""
        last += INDEX_SUFFIX if len(digits) == 64 else ""  # behind both forms of that blob
        for entry in self._entries(BLOBS, last):
            if most is not None and len(found) >= most:
                break
            if (digest := digest_in(entry.name)) is None or (found and found[-1].digest == digest):
                continue
            index = self._index(digest) if entry.name.endswith(INDEX_SUFFIX) else None
            if index or not entry.name.endswith(INDEX_SUFFIX):
                found.append(Blob(digest, index.size if index else entry.size, entry.modified_at))
        return found

    def remove(self, digest: Digest) -> None:
        """The blob and its parts; not there is no error. Nobody finds half of it meanwhile, and who stores it
        again just then keeps the parts: what was renewed since is spared.
        """
        parts = list(self._entries(part_folder(digest)))
        for name in (index_name(digest), blob_name(digest)):
            patiently(partial(self._files.remove, name))
        self._remove_unchanged(parts)

    def renew(self, digest: Digest) -> None:
        """The blob counts as stored now.

        Raises:
            StoreError: it is not there.
        """
        for name in (blob_name(digest), index_name(digest)):
            with suppress(FileNotFoundError):
                patiently(partial(self._files.renew, name))
                return
        raise absent(digest, self.place)

    def clear_abandoned(self) -> int:
        """Remove what uploads left that nobody went on with for a day; how many files that were."""
        old = time.time() - ABANDONED_SECONDS
        left = [entry for entry in patiently(self._files.leftovers) if entry.modified_at < old]
        for folder, group in groupby(self._entries(PARTS), lambda entry: entry.name.rpartition("/")[0]):
            entries = list(group)
            digest = digest_in(folder)
            if digest and max(entry.modified_at for entry in entries) < old:
                index = self._index(digest)
                wanted = part_sizes(digest, index) if index else {}
                left += [entry for entry in entries if entry.name not in wanted]
        return self._remove_unchanged(left)

    def _identify(self) -> str:
        """The store's id; the first to open it writes one, and everybody reads the same."""
        try:
            document = self._files.get(IDENTITY_FILE)
        except FileNotFoundError:
            made = {"version": STORE_VERSION, "id": str(uuid5(NAMESPACE_URL, self._files.address))}
            self._files.create(IDENTITY_FILE, json.dumps(made).encode())
            document = self._files.get(IDENTITY_FILE)
        return _identity(document, self._files.locate(IDENTITY_FILE))

    def _write_whole(self, source: Source) -> None:
        found = hashlib.sha256()
        data = b"".join(part for _, part in cut(source, PART_BYTES, found))
        if found.hexdigest() != check_digest(source.digest):
            raise source.changed()
        patiently(partial(self._files.put, blob_name(source.digest), data))

    def _write_parts(self, source: Source) -> Index:
        """Bring the parts that are not there; what they are. Those that are there count as stored now, so
        that nobody removes them who saw them before.
        """
        there = self._parts_there(source.digest)

        def send(part: tuple[int, bytes], stopped: threading.Event) -> str:
            number, data = part
            digits = hashlib.sha256(data).hexdigest()
            name = part_name(source.digest, number, digits)
            if there.get(name) != len(data) or not self._is_renewed(name, stopped):
                patiently(partial(self._files.put, name, data), stopped)
            return digits

        found = hashlib.sha256()
        parts = tuple(self._lanes.each(send, cut(source, PART_BYTES, found)))
        if found.hexdigest() != check_digest(source.digest):
            raise source.changed()
        return Index(size=source.size, part_bytes=PART_BYTES, parts=parts)

    def _pieces(self, digest: Digest, start: int) -> tuple[list[Piece], int]:
        """What holds the bytes from `start` on, and how many of the first piece's come before it."""
        name = blob_name(digest)
        if (size := patiently(partial(self._files.size, name))) is not None:
            return [Piece(name, check_digest(digest))] if start < max(size, 1) else [], start
        if (index := self._index(digest)) is None:
            raise absent(digest, self.place)
        first, skipped = divmod(start, index.part_bytes)
        names = list(part_sizes(digest, index))
        pieces = [Piece(name, digits) for name, digits in zip(names, index.parts, strict=True)]
        return pieces[first:], skipped

    def _fetch(self, digest: Digest, piece: Piece, stopped: threading.Event) -> bytes:
        """The piece, verified.

        One that is damaged also at a second look is of no use to anybody. It is removed: the blob is no
        longer there, and storing it again repairs it.
        """
        fault = ""
        for _ in range(LOOKS):
            try:
                data = patiently(partial(self._files.get, piece.name), stopped)
            except FileNotFoundError:
                if self.size(digest) is None:
                    raise absent(digest, self.place) from None  # removed meanwhile
                fault = f"{self._files.locate(piece.name)} is not there"
                continue
            if (actual := hashlib.sha256(data).hexdigest()) == piece.digest:
                return data
            where = self._files.locate(piece.name)
            fault = f"the bytes of {where} are sha256:{actual}, not sha256:{piece.digest}"
        names = dict.fromkeys((index_name(digest), piece.name))
        try:
            for name in names:
                patiently(partial(self._files.remove, name), stopped)
        except GraftError as error:
            places = " and ".join(map(self._files.locate, names))
            raise StoreError(f"{digest} is damaged, {fault}; remove {places}, and store it again") from error
        raise StoreError(f"{digest} is damaged, {fault}; it was removed, store it again")

    def _index(self, digest: Digest) -> Index | None:
        """The index of the blob's parts. A damaged one is none: storing the blob again replaces it.

        Raises:
            StoreError: it is of a version that we do not know.
        """
        name = index_name(digest)
        try:
            data = patiently(partial(self._files.get, name))
        except FileNotFoundError:
            return None
        return parse_index(data, self._files.locate(name))

    def _parts_there(self, digest: Digest) -> dict[str, int]:
        """Names and sizes."""
        return {entry.name: entry.size for entry in self._entries(part_folder(digest))}

    def _entries(self, folder: str, after: str = "") -> Iterator[Entry]:
        """All files below the folder, behind `after`."""
        while page := patiently(partial(self._files.page, folder, after)):
            yield from page
            after = page[-1].name

    def _is_renewed(self, name: str, stopped: threading.Event) -> bool:
        try:
            patiently(partial(self._files.renew, name), stopped)
        except FileNotFoundError:
            return False
        return True

    def _remove_unchanged(self, entries: Iterable[Entry]) -> int:
        """Remove what was neither renewed nor written again since it was listed; how many that were."""

        def remove(entry: Entry, stopped: threading.Event) -> bool:
            now = patiently(partial(self._files.modified_at, entry.name), stopped)
            is_same = now is not None and int(now) == int(entry.modified_at)
            if is_same:
                patiently(partial(self._files.remove, entry.name), stopped)
            return is_same

        return sum(self._lanes.each(remove, entries))


def _identity(document: bytes, where: str) -> str:
    try:
        values = json.loads(document)
        version, found = values["version"], values["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{where} does not tell which store this is; restore it from a copy of the store"
        ) from error
    if version == 1:
        raise StoreError(
            f"{where} is of a folder or gateway; reach it as file:// or http://, or choose another place"
        )
    if version != STORE_VERSION or not isinstance(found, str):
        raise StoreError(
            f"{where} is not of a version this Graft knows; update Graft, or choose another place"
        )
    return found
