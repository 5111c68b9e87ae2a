"""What a host may keep: by the names that jobs use, each with its place on the disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from graft_scheduler.errors import InvalidInput

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)@([0-9A-Za-z][\w.-]*)")
"""A hub id and a commit; neither can lead out of the hub's folder."""
HUB_PREFIX = "models--"
SNAPSHOTS = "snapshots"


class Kind(StrEnum):
    """What kind of thing is kept, which says where."""

    MODEL = "models"
    """A folder of the store."""
    DATA = "data"
    """Another one."""
    HUB = "hub"
    """A snapshot in the hub's own cache, which the owner's other programs use too."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be kept."""

    kind: Kind
    name: str
    """A digest, or `org/name@commit`."""

    @property
    def key(self) -> str:
        """The name of the small files about it."""
        return f"{self.kind}-{self.name.removeprefix('sha256:').replace('/', '--')}"

    @property
    def repository(self) -> str:
        """The hub id."""
        return self.name.partition("@")[0]

    @property
    def commit(self) -> str:
        return self.name.partition("@")[2]

    def folder(self, cache: Path, hub: Path) -> Path:
        """Where it is, or would be."""
        if self.kind is Kind.HUB:
            return hub_folder(hub, self.repository) / SNAPSHOTS / self.commit
        return cache / self.kind / self.name.removeprefix("sha256:")


def model_item(name: str) -> Item:
    """The model of that name.

    Raises:
        InvalidInput: it is neither a digest nor `org/name@commit`.
    """
    if DIGEST.fullmatch(name):
        return Item(Kind.MODEL, name)
    if HUB_NAME.fullmatch(name) and ".." not in name and "--" not in name.partition("/")[0]:
        return Item(Kind.HUB, name)
    raise InvalidInput(f"`model` is {name!r}; it must be a digest, or a hub id with its commit")


def data_item(digest: str) -> Item:
    """The data set of that digest.

    Raises:
        InvalidInput: it is none.
    """
    if not DIGEST.fullmatch(digest):
        raise InvalidInput(f"`data` is {digest!r}; it must be a digest")
    return Item(Kind.DATA, digest)


def hub_folder(hub: Path, repository: str) -> Path:
    """Where the hub's library keeps a repository."""
    return hub / (HUB_PREFIX + repository.replace("/", "--"))


def items_in(cache: Path, hub: Path) -> Iterator[tuple[Item, Path]]:
    """All that is there, with its folder; of the hub's cache every snapshot of a model, whole or not."""
    for kind in (Kind.MODEL, Kind.DATA):
        for folder in folders(cache / kind):
            if DIGEST.fullmatch(f"sha256:{folder.name}"):
                yield Item(kind, f"sha256:{folder.name}"), folder
    for repository in folders(hub):
        if not repository.name.startswith(HUB_PREFIX):
            continue
        name = repository.name.removeprefix(HUB_PREFIX).replace("--", "/", 1)
        for snapshot in folders(repository / SNAPSHOTS):
            yield Item(Kind.HUB, f"{name}@{snapshot.name}"), snapshot


def folders(folder: Path) -> list[Path]:
    """The folders in a folder that may not be there."""
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
