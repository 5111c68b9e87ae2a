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


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What a failure of one class leads to."""

    retried: bool
    charged: bool
    """Counts against the job's own attempts; otherwise it counts as a lost host."""
    blames_host: bool
    """Counts towards cordoning the host it happened on."""


POLICIES: dict[FailureClass, FailurePolicy] = {
    FailureClass.CONFIG: FailurePolicy(retried=False, charged=True, blames_host=False),
    FailureClass.DATA: FailurePolicy(retried=False, charged=True, blames_host=False),
    FailureClass.MEMORY: FailurePolicy(retried=True, charged=True, blames_host=False),
    FailureClass.DIVERGED: FailurePolicy(retried=False, charged=True, blames_host=False),
    FailureClass.HOST: FailurePolicy(retried=True, charged=False, blames_host=True),
    FailureClass.STORE: FailurePolicy(retried=True, charged=False, blames_host=False),
    FailureClass.TIMEOUT: FailurePolicy(retried=False, charged=True, blames_host=False),
    FailureClass.INTERNAL: FailurePolicy(retried=True, charged=True, blames_host=True),
}

MAX_LOST = 3
"""A job whose hosts were lost this often is likely what kills them: it fails with class `host`."""


def is_retried(failure: FailureClass, charged: int, lost: int, max_attempts: int) -> bool:
    """Whether a job is queued again after `failure`, given the counts *including* this failure."""
    policy = POLICIES[failure]
    if not policy.retried:
        return False
    return charged < max_attempts if policy.charged else lost < MAX_LOST
