"""A folder as data: the names, sizes and digests of its files, in one canonical JSON document.

Names come from other people's machines. They are checked here, before any becomes a path.
"""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from graft_scheduler.errors import InvalidInput, StoreError
from graft_scheduler.states import Digest

MAX_MANIFEST_BYTES = 64 << 20
"""About 400,000 files; anything larger was never a manifest."""


def check_name(name: str) -> str:
    """The name, if it can only lead to a file below the folder that it is put in.

    Raises:
        ValueError: says what is wrong with it.
    """
    if not name or name.startswith("/"):
        raise ValueError(f"{name!r} is not a relative name")
    if "\\" in name or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        raise ValueError(f"{name!r} has a backslash, a control character or bytes that are not UTF-8")
    if any(part in {"", ".", ".."} for part in name.split("/")):
        raise ValueError(f"{name!r} has an empty part, `.` or `..`")
    return name


class Entry(BaseModel):
    """One file of a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(check_name)]
    size: int = Field(ge=0)
    """Bytes."""
    digest: Digest = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a folder holds. The digest of `encode()` names the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    files: tuple[Entry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_apart(self) -> Self:
        """On a Mac's disk names that differ by case or accents' encoding are one file."""
        names = [unicodedata.normalize("NFC", entry.name).casefold() for entry in self.files]
        seen: set[str] = set()
        for name, entry in zip(names, self.files, strict=True):
            if name in seen:
                raise ValueError(f"{entry.name!r} is there twice, perhaps in another case")
            seen.add(name)
        for name in names:
            if any(str(parent) in seen for parent in PurePosixPath(name).parents):
                raise ValueError(f"{name!r} lies below the name of a file")
        return self

    def encode(self) -> bytes:
        """The same bytes for the same files, whatever order they were found in."""
        values = self.model_dump(mode="json")
        values["files"].sort(key=lambda file: file["name"])
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def build_manifest(entries: list[Entry]) -> Manifest:
    """The manifest of a folder with these files.

    Raises:
        InvalidInput: there are none, or two of them cannot lie in one folder.
    """
    try:
        return Manifest(files=tuple(entries))
    except ValidationError as error:
        raise InvalidInput(f"the folder cannot be stored: {_complaint(error)}") from error


def build_entry(name: str, size: int, digest: Digest) -> Entry:
    """One line of a manifest.

    Raises:
        InvalidInput: the name could lead out of the folder.
    """
    try:
        return Entry(name=name, size=size, digest=digest)
    except ValidationError as error:
        raise InvalidInput(f"the file cannot be stored: {_complaint(error)}") from error


def decode_manifest(data: bytes, digest: Digest) -> Manifest:
    """The manifest stored under `digest`.

    Raises:
        StoreError: the bytes are no manifest of a version we know, or a name in it is not safe.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(f"{digest} does not name a folder that can be read: {_complaint(error)}") from error


def list_folder(folder: Path) -> dict[str, Path]:
    """The files of a folder by relative name: all but dot files and `__pycache__`.

    A link to a file is followed if it stays in the folder, or in the `blobs` of a Hugging Face cache.

    Raises:
        InvalidInput: no such folder, a link that leaves it, or something that is no plain file.
    """
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder")
    root = folder.resolve()
    found: dict[str, Path] = {}
    for here, folders, files in os.walk(root, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if _is_kept(name)]
        for name in filter(_is_kept, files):
            path = Path(here, name)
            _check_file(path, root)
            found[path.relative_to(root).as_posix()] = path
        for name in folders:
            if (path := Path(here, name)).is_symlink():
                raise InvalidInput(f"{path} is a link to a folder; replace it with the folder")
    return found


def _is_kept(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def _check_file(path: Path, root: Path) -> None:
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(place) for place in allowed):
        raise InvalidInput(f"{path} is a link that leaves the folder (to {target}); replace it with the file")
    if not target.is_file():
        raise InvalidInput(f"{path} is not a file; remove it")


def _refuse_unreadable(error: OSError) -> None:
    raise InvalidInput(f"{error.filename} cannot be read: {error.strerror}") from error


def _complaint(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
