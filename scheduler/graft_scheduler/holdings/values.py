"""The values: a model on a host, and what a host was asked to do with one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath

from graft_scheduler.records import HostRecord, Value

FEWEST_DIGITS = 6
"""Of a digest or a commit that names a model by its beginning."""


class Action(StrEnum):
    """What a host can be asked to do with a model."""

    PULL = "pull"
    REMOVE = "rm"


class WishState(StrEnum):
    """How far that is."""

    WAITING = "waiting"
    AT_WORK = "at work"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self in {WishState.DONE, WishState.FAILED}


class Wish(Value):
    """One thing that a host was asked to do."""

    id: str
    """New for each; a later one for the same model takes the place of an earlier one."""
    action: Action
    model: str
    """A digest, `org/name@commit`, or `org/name` for the newest."""
    source: str = ""
    """As a person named it."""
    by: str
    at: float
    """Seconds since 1970 on Redis' clock: when it was asked for."""
    state: WishState = WishState.WAITING
    text: str = ""
    """Why it failed, or what came of it."""
    brought_bytes: int = 0
    total_bytes: int = 0


class HeldModel(Value):
    """A model on the disk of one host."""

    name: str
    """A digest, or `org/name@commit`."""
    source: str = ""
    """The folder it was put into the store from, or its hub id, where that is known."""
    bytes: int
    used_at: float
    """Seconds since 1970, by the host's clock."""
    is_ours: bool = True
    """Graft brought it; what the machine's owner downloaded is never removed."""
    is_in_use: bool = False
    is_whole: bool = True
    """Not while it is fetched, or where that was given up; the next fetch keeps the files that are whole."""

    def is_meant(self, text: str) -> bool:
        """Whether somebody may mean this model: by its name, a beginning of it that has all of the hub id, a
        beginning of its digest, or the folder that it came from, as a path or by its last name.
        """
        if text in {self.name, self.source, self.name.partition("@")[0]}:
            return True
        if text and self.name.startswith("sha256:") and text == PurePath(self.source).name:
            return True
        if "@" in text:
            return self.name.startswith(text)
        digits = text.removeprefix("sha256:")
        return len(digits) >= FEWEST_DIGITS and self.name.startswith(f"sha256:{digits}")


@dataclass(frozen=True, slots=True)
class Holding:
    """What one host holds and is asked to do."""

    host: HostRecord
    models: tuple[HeldModel, ...]
    wishes: tuple[Wish, ...]
    pins: frozenset[str]
