"""The checkpoints of a job that are in the store, which of them stay, and which one a person means.

While a job runs the best (lowest validation loss), the last and those with a name stay in its record;
`lua/prelude.lua` (`keep_checkpoints`) does the same where the names are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from graft_scheduler.errors import InvalidInput, NotFound
from graft_scheduler.states import Digest

Which = Literal["best", "last"] | int
"""A checkpoint as a person names it: by what it is, or by its step."""


class Dated(Protocol):
    """What has a step, and perhaps a validation loss."""

    @property
    def step(self) -> int: ...

    @property
    def loss(self) -> float | None: ...


D = TypeVar("D", bound=Dated)


class KeptCheckpoint(BaseModel):
    """A checkpoint that is in the store."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    digest: Digest
    loss: float | None = None
    """Validation loss after that step, where it was evaluated there."""
    bytes: int = 0
    """Of all its files."""
    at: int = 0
    """When it was recorded: milliseconds since 1970 on Redis' clock, which writes it."""


CHECKPOINTS = TypeAdapter(tuple[KeptCheckpoint, ...])


def best_of(checkpoints: Iterable[D]) -> D | None:
    """The one of the lowest validation loss, the earliest of several; nothing where none was evaluated."""
    evaluated = [(one.loss, one.step, one) for one in checkpoints if one.loss is not None]
    return min(evaluated, key=lambda entry: entry[:2])[2] if evaluated else None


def surviving(checkpoints: Sequence[D]) -> list[D]:
    """The best and the last of them, in the order of their steps."""
    if not checkpoints:
        return []
    last = max(checkpoints, key=lambda one: one.step)
    best = best_of(checkpoints)
    return [last] if best is None or best.step == last.step else [best, last]


def parse_which(text: str) -> Which:
    """`best`, `last` or a step.

    Raises:
        InvalidInput: anything else.
    """
    if text == "best":
        return "best"
    if text == "last":
        return "last"
    if text.isascii() and text.isdigit():
        return int(text)
    raise InvalidInput(f"`--checkpoint` is {text!r}; it must be best, last or the number of a step")


def pick(checkpoints: Sequence[KeptCheckpoint], which: Which, job: str) -> KeptCheckpoint:
    """The checkpoint that is meant.

    Raises:
        NotFound: the job has none like that; says which there are.
    """
    if not checkpoints:
        raise NotFound(f"job {job} has no checkpoint in the store")
    if which == "last":
        return max(checkpoints, key=lambda one: one.step)
    if which == "best":
        found = best_of(checkpoints)
        if found is None:
            raise NotFound(f"no checkpoint of job {job} was evaluated; there is {_listed(checkpoints)}")
        return found
    for one in checkpoints:
        if one.step == which:
            return one
    raise NotFound(f"job {job} has no checkpoint of step {which}; there is {_listed(checkpoints)}")


def _listed(checkpoints: Sequence[KeptCheckpoint]) -> str:
    best = best_of(checkpoints)
    last = max(checkpoints, key=lambda one: one.step)
    words = []
    for one in checkpoints:
        what = [name for name, other in (("best", best), ("last", last)) if other is one]
        words.append(f"{one.step} ({', '.join(what)})" if what else str(one.step))
    return ", ".join(words)
