"""The words for where a job is, why one failed, and what follows from a failure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

JobId = NewType("JobId", str)
HostId = NewType("HostId", str)
Token = NewType("Token", int)
"""Rises with every assignment of a job and fences every write made under it."""
Digest = NewType("Digest", str)
"""`sha256:` and 64 hexadecimal digits: the name of a file or folder in the store."""


class JobState(StrEnum):
    """Where a job is. People see `placed` as queued: no worker has taken it yet."""

    QUEUED = "queued"
    PLACED = "placed"
    RUNNING = "running"
    PAUSED = "paused"
    """Holds no host and waits to be told to go on, with its checkpoint kept."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL

    @property
    def shown(self) -> str:
        """The word for people."""
        return JobState.QUEUED.value if self is JobState.PLACED else self.value


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


class Phase(StrEnum):
    """What a running job is doing; kept in its progress and its events, not in its state."""

    PREPARING = "preparing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"


class StopReason(StrEnum):
    """Why a runner is asked to stop at its next safe point, with a checkpoint saved."""

    CANCEL = "cancel"
    """The person said so: the job ends as cancelled."""
    YIELD = "yield"
    """The host must let go (shutdown, a long outage): the job is queued again and resumes."""
    SHRINK = "shrink"
    """The host's memory runs out: the job is queued again and resumes with less computed at once."""
    PAUSE = "pause"
    """It has come to the step that it was to pause at, or somebody asked for a pause."""
    PRUNE = "prune"
    """A study's trial that others have left behind: the job ends as cancelled."""


class FailureClass(StrEnum):
    """What kind of thing went wrong. `POLICIES` says what follows."""

    CONFIG = "config"
    DATA = "data"
    MEMORY = "memory"
    DIVERGED = "diverged"
    HOST = "host"
    STORE = "store"
    TIMEOUT = "timeout"
    INTERNAL = "internal"


class Count(StrEnum):
    """What a failure counts against."""

    CHARGED = "charged"
    """The job itself, up to `limits.attempts`."""
    LOST = "lost"
    """Hosts that went away under it, up to `MAX_LOST`; a new checkpoint clears it."""
    STALLED = "stalled"
    """Times that the store was not to be had, up to `MAX_STALLED`, with growing pauses."""
    MEMORY = "memory_failures"
    """Times that memory ran out; `recovery` decides by those that no larger host came between."""


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What a failure of one class leads to."""

    count: Count
    retried: bool = True


POLICIES: dict[FailureClass, FailurePolicy] = {
    FailureClass.CONFIG: FailurePolicy(Count.CHARGED, retried=False),
    FailureClass.DATA: FailurePolicy(Count.CHARGED, retried=False),
    FailureClass.MEMORY: FailurePolicy(Count.MEMORY),
    FailureClass.DIVERGED: FailurePolicy(Count.CHARGED, retried=False),
    FailureClass.HOST: FailurePolicy(Count.LOST),
    FailureClass.STORE: FailurePolicy(Count.STALLED),
    FailureClass.TIMEOUT: FailurePolicy(Count.CHARGED, retried=False),
    FailureClass.INTERNAL: FailurePolicy(Count.CHARGED),
}

MAX_LOST = 3
"""A job whose hosts were lost this often without it getting any further is likely what kills them."""
MAX_STALLED = 10
"""So often the store may fail a job: with the pauses between, it has been away for over half an hour."""
MAX_OUT_OF_MEMORY = 3
"""So often memory may run out before a job needs a larger host."""
STALL_SECONDS = 10.0
"""The first pause after a failure of the store; each next one is twice as long."""
MAX_STALL_SECONDS = 300.0


def is_retried(failure: FailureClass, count: int, max_attempts: int) -> bool:
    """Whether a job is queued again after `failure`; `count` is its policy's, this failure included."""
    match POLICIES[failure].count:
        case Count.CHARGED:
            return POLICIES[failure].retried and count < max_attempts
        case Count.LOST:
            return count < MAX_LOST
        case Count.STALLED:
            return count < MAX_STALLED
        case Count.MEMORY:
            return count < MAX_OUT_OF_MEMORY


def pause_seconds(failure: FailureClass, count: int) -> float:
    """How long a job waits before it is placed again after its `count`th failure of this class."""
    if POLICIES[failure].count is not Count.STALLED:
        return 0.0
    return float(min(MAX_STALL_SECONDS, STALL_SECONDS * 2 ** (count - 1)))
