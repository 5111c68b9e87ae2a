"""What every place for blobs can do: hold bytes under their digests, and give them back from any byte on.

A depot knows nothing of folders or manifests and need not verify what it gives back; `Store` does both.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from graft_scheduler.errors import InvalidInput, StoreError
from graft_scheduler.states import Digest

CHUNK_BYTES = 1 << 20
"""What is held in memory of a file of any size."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Blob:
    """One of the blobs that are there."""

    digest: Digest
    size: int
    stored_at: float
    """When it was stored or last renewed: seconds since 1970, by the clock of the place."""


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes to be stored. They are read again from where an interrupted upload stopped."""

    name: str
    """As an error names it."""
    digest: Digest
    size: int
    read: Callable[[int], Iterator[bytes]]
    """From that byte on, in chunks."""

    @classmethod
    def of_bytes(cls, data: bytes) -> Source:
        """A short document."""
        digest = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
        return cls(digest, digest, len(data), lambda start: iter([data[start:]]))

    @classmethod
    def of_file(cls, path: Path, most: int | None = None) -> Source:
        """A file, or its first bytes, measured now.

        Raises:
            InvalidInput: it cannot be read.
        """
        found, size = hashlib.sha256(), 0
        for chunk in read_file(path, most=most):
            found.update(chunk)
            size += len(chunk)
        digest = Digest(f"sha256:{found.hexdigest()}")
        return cls(str(path), digest, size, lambda start: read_file(path, start, most))

    def changed(self) -> StoreError:
        """What to raise when it is no longer what it was when it was measured."""
        return StoreError(f"{self.name} changed while it was being stored; store it again")


class Depot(Protocol):
    """A place for blobs. Safe to use from several threads, processes and machines at once."""

    @property
    def id(self) -> str:
        """Equal for two machines that look at one place."""
        ...

    @property
    def place(self) -> str:
        """The whole of it, as a person names it."""
        ...

    def size(self, digest: Digest) -> int | None:
        """Bytes of the blob; `None` when it is not there.

        Raises:
            Unreachable: the place does not answer.
            StoreError: it answers that it cannot.
        """
        ...

    def write(self, source: Source) -> None:
        """Store the bytes; they appear under their digest whole and verified, or not at all.

        What an interrupted call has brought there is not brought again.

        Raises:
            StoreError: the source changed since it was measured, or there is no room.
            Unreachable: the place does not answer.
        """
        ...

    def read(self, digest: Digest, start: int = 0) -> Iterator[bytes]:
        """The bytes from `start` on, in chunks; nothing where that is at or beyond the end.

        Raises:
            StoreError: the blob is not there.
            Unreachable: the place does not answer.
        """
        ...

    def locate(self, digest: Digest) -> str:
        """Where a person finds the blob, for an error."""
        ...

    def listing(self, after: str = "", most: int | None = None) -> list[Blob]:
        """Blobs in the order of their digests, those behind `after`, at most so many.

        Raises:
            Unreachable: the place does not answer.
        """
        ...

    def renew(self, digest: Digest) -> None:
        """Have the blob count as stored now.

        Raises:
            StoreError: it is not there, or may not be changed by whoever asks.
            Unreachable: the place does not answer.
        """
        ...

    def remove(self, digest: Digest) -> None:
        """Remove the blob; one that is not there is no error. Who reads it just then gets all of it, or hears
        that it is not there.

        Raises:
            StoreError: it cannot be removed.
            Unreachable: the place does not answer.
        """
        ...

    def clear_abandoned(self) -> int:
        """Remove what was left half-written and nobody went on with for a day; how many there were.

        Raises:
            Unreachable: the place does not answer.
        """
        ...


def check_digest(digest: Digest) -> str:
    """The hexadecimal digits of a digest; it may come from anywhere and becomes part of a path.

    Raises:
        InvalidInput: it is not `sha256:` and 64 digits.
    """
    if match := _DIGEST.fullmatch(digest):
        return match[1]
    raise InvalidInput(f"{digest!r} is not a digest; it must be `sha256:` and 64 hexadecimal digits")


def absent(digest: Digest, place: str) -> StoreError:
    """What to raise for a blob that is not there."""
    return StoreError(f"{digest} is not in store {place}; store it again, or check `store_url`")


def read_file(path: Path, start: int = 0, most: int | None = None) -> Iterator[bytes]:
    """A file that somebody wants stored, up to byte `most`: what is wrong with it is theirs to mend, not the
    store's.

    Raises:
        InvalidInput: it is no file, or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            place = file.seek(start)
            while chunk := file.read(CHUNK_BYTES if most is None else min(CHUNK_BYTES, max(0, most - place))):
                place += len(chunk)
                yield chunk
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
