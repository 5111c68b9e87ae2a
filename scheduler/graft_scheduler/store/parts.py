"""Names and parts of blobs on a file server; `remote` says how they lie there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from graft_scheduler.errors import StoreError
from graft_scheduler.states import Digest
from graft_scheduler.store.depots import Source, check_digest

BLOBS, PARTS, INDEX_SUFFIX = "blobs/sha256", "parts/sha256", ".parts"
_DIGITS = re.compile(r"[0-9a-f]{64}")


class Index(BaseModel):
    """The parts of a large blob."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    size: int = Field(gt=0)
    part_bytes: int = Field(gt=0)
    parts: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")], ...]
    """Their SHA-256, in order."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of a blob as a file of their own: the whole blob, or a part."""

    name: str
    digest: str
    """Hexadecimal digits of the SHA-256 that it must have."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def cut(source: Source, part_bytes: int, found: _Hash) -> Iterator[tuple[int, bytes]]:
    """Its bytes in parts with their numbers; `found` learns them all.

    Raises:
        StoreError: there are more of them than there were.
    """
    number, left, part = 0, source.size, bytearray()
    for chunk in source.read(0):
        found.update(chunk)
        if (left := left - len(chunk)) < 0:
            raise source.changed()
        part += chunk
        while len(part) >= part_bytes:
            yield number, bytes(part[:part_bytes])
            del part[:part_bytes]
            number += 1
    if part:
        yield number, bytes(part)


def parse_index(data: bytes, where: str) -> Index | None:
    """The index at `where`; `None` when it is damaged.

    Raises:
        StoreError: it is of a version that we do not know.
    """
    with suppress(ValidationError):
        index = Index.model_validate_json(data)
        return index if len(index.parts) == -(-index.size // index.part_bytes) else None
    with suppress(ValueError, TypeError, KeyError):
        if json.loads(data)["version"] != 1:
            raise StoreError(f"{where} is not of a version this Graft knows; update Graft")
    return None


def blob_name(digest: Digest) -> str:
    """A whole blob's."""
    digits = check_digest(digest)
    return f"{BLOBS}/{digits[:2]}/{digits}"


def index_name(digest: Digest) -> str:
    return f"{blob_name(digest)}{INDEX_SUFFIX}"


def part_folder(digest: Digest) -> str:
    digits = check_digest(digest)
    return f"{PARTS}/{digits[:2]}/{digits}"


def part_name(digest: Digest, number: int, digits: str) -> str:
    return f"{part_folder(digest)}/{number:06}-{digits}"


def part_sizes(digest: Digest, index: Index) -> dict[str, int]:
    """By name, in order."""
    last = len(index.parts) - 1
    return {
        part_name(digest, number, digits): index.part_bytes
        if number < last
        else index.size - last * index.part_bytes
        for number, digits in enumerate(index.parts)
    }


def digest_in(name: str) -> Digest | None:
    """Of the blob that a file, an index or a folder of parts belongs to; `None` for what is not ours."""
    digits = name.rpartition("/")[2].removesuffix(INDEX_SUFFIX)
    return Digest(f"sha256:{digits}") if _DIGITS.fullmatch(digits) else None
