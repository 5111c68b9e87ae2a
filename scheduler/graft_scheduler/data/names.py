"""Names of data sets in the fleet: `sql` has versions 1, 2, 3, each a digest and what is known of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.errors import InvalidInput, NotFound
from graft_scheduler.jobs import DataFormat
from graft_scheduler.states import Digest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REFERENCE = re.compile(rf"({NAME.pattern})(?:@(v[1-9][0-9]{{0,8}}|sha256:[0-9a-f]{{8,64}}|latest))?")


class Contents(BaseModel):
    """What is known of a version beside its digest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: DataFormat
    """In which it is stored."""
    source: str
    """What it was made of: a file's name, or a hub id with its commit."""
    source_format: DataFormat
    """In which its rows were there."""
    rows: dict[str, int]
    """By split."""
    bytes: int
    """Of the stored files together."""
    duplicates: int = 0
    left_out: int = 0
    """Rows with faults."""


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A data set under its name."""

    name: str
    number: int
    digest: Digest
    contents: Contents
    pushed_at: float
    """Seconds since 1970 on Redis' clock."""
    submitter: str

    def __str__(self) -> str:
        return f"{self.name}@v{self.number}"

    def as_json(self) -> dict[str, Any]:
        """The version for `--json`."""
        return {
            "name": self.name,
            "version": self.number,
            "digest": self.digest,
            "pushed_at": self.pushed_at,
            "submitter": self.submitter,
            **self.contents.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class Reference:
    """What `sql`, `sql@v3` or `sql@sha256:...` means."""

    name: str
    version: str
    """`v3`, `sha256:` and some digits, or `latest`."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The parts of a reference.

        Raises:
            InvalidInput: it is none.
        """
        if (found := _REFERENCE.fullmatch(text)) is None:
            raise InvalidInput(f"{text!r} names no data set; it must be NAME, NAME@v3 or NAME@sha256:...")
        return cls(found[1], found[2] or "latest")

    @classmethod
    def is_one(cls, text: str) -> bool:
        """Whether the text can be a reference; a path of the same name goes before."""
        return _REFERENCE.fullmatch(text) is not None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class DatasetNames:
    """The names on one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._push = redis.register_script(_script("push"))
        self._remove = redis.register_script(_script("remove"))

    def push(
        self, name: str, digest: Digest, contents: Contents, submitter: str
    ) -> tuple[DatasetVersion, bool]:
        """Give what is in the store under `digest` the next version of the name; what has one keeps it.

        Returns the version, and whether it is new.

        Raises:
            InvalidInput: the name cannot be one.
        """
        check_name(name)
        where = [keys.DATASETS, keys.dataset(name)]
        number, is_new = self._push(keys=where, args=[name, digest, submitter, contents.model_dump_json()])
        return self.find(f"{name}@v{number}"), bool(is_new)

    def names(self) -> list[str]:
        """All names, those pushed to last first."""
        found: Any = self._redis.zrange(keys.DATASETS, 0, -1, desc=True)
        return [str(name) for name in found]

    def versions(self, name: str) -> list[DatasetVersion]:
        """The versions of a name, the newest first; none if nobody has the name."""
        fields: Any = self._redis.hgetall(keys.dataset(name))
        digests = {int(number): Digest(key) for key, number in fields.items() if key.startswith("sha256:")}
        return [
            DatasetVersion(
                name,
                number,
                digests[number],
                Contents.model_validate_json(fields[f"v{number}"]),
                int(fields[f"v{number}:at"]) / 1000,
                fields[f"v{number}:by"],
            )
            for number in sorted(digests, reverse=True)
        ]

    def find(self, text: str) -> DatasetVersion:
        """The version that a reference means.

        Raises:
            InvalidInput: it is no reference.
            NotFound: there is no such name or version; says which there are.
        """
        reference = Reference.parse(text)
        versions = self.versions(reference.name)
        if not versions:
            raise NotFound(f"there is no data set {reference.name!r}; `graft data ls` lists them")
        matching = [one for one in versions if _matches(one, reference.version)]
        if not matching:
            there = ", ".join(f"v{one.number}" for one in versions[:10])
            raise NotFound(f"{reference.name} has no version {reference.version}; it has {there}")
        if len({one.digest for one in matching}) > 1 and reference.version != "latest":
            raise NotFound(f"{reference} is the beginning of several digests; give more of it")
        return matching[0]

    def remove(self, name: str, number: int | None = None) -> int:
        """Take the name from a version, or from all; the store keeps what jobs refer to.

        Returns how many lost it.
        """
        where = [keys.DATASETS, keys.dataset(name)]
        return int(self._remove(keys=where, args=[name, "" if number is None else number]))


def check_name(name: str) -> str:
    """The name, if it can be one.

    Raises:
        InvalidInput: it cannot.
    """
    if NAME.fullmatch(name) is None:
        rule = "it must be letters, digits, `.`, `_` and `-`, beginning with a letter or a digit"
        raise InvalidInput(f"`name` is {name!r}; {rule}")
    return name


def dataset_digests(redis: Redis) -> set[Digest]:
    """What names refer to: the store must keep it."""
    names = DatasetNames(redis)
    return {version.digest for name in names.names() for version in names.versions(name)}


def _matches(version: DatasetVersion, wanted: str) -> bool:
    return wanted == "latest" or wanted == f"v{version.number}" or _is_digest_of(wanted, version)


def _is_digest_of(wanted: str, version: DatasetVersion) -> bool:
    return wanted.startswith("sha256:") and version.digest.startswith(wanted)


def _script(name: str) -> str:
    return files("graft_scheduler.data").joinpath("lua", f"{name}.lua").read_text("utf-8")
