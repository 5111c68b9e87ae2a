"""What follows when a job ran out of memory: a smaller cut, then a larger host, then advice.

Pure decisions. A smaller cut never changes what a step learns: its tokens are weighed alike however
they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from graft_scheduler.hyperparameters import Method
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.memory import format_bytes
from graft_scheduler.states import MAX_OUT_OF_MEMORY, HostId


class CutReport(BaseModel):
    """How the engine cuts a step, and the largest micro-batch that comes of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    micro_batch_tokens: int = Field(ge=1)
    """The most that may be computed at once, unless a single row is longer."""
    gradient_checkpointing: bool
    rows: int = Field(ge=1)
    """Of the largest micro-batch: rows, or lines of packed ones."""
    width: int = Field(ge=1)
    is_smallest: bool = False
    """The longest row is computed alone: no smaller budget makes the largest micro-batch smaller."""

    @property
    def tokens(self) -> int:
        """What the largest micro-batch computes, padding included."""
        return self.rows * self.width


class MemoryLimit(BaseModel):
    """What a job has learned about the memory of hosts; kept in its record, obeyed by its engine."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    micro_batch_tokens: int | None = None
    """The engine computes no more at once; absent as long as no cut was known to be too large."""
    gradient_checkpointing: bool = False
    """On, whatever the job says."""
    host: HostId | None = None
    """Where memory ran out last."""
    host_bytes: int = 0
    """The largest budget under which memory ran out."""
    failures: int = 0
    """So often it ran out without a larger budget being tried."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """The decision."""

    limit: MemoryLimit
    above_bytes: int | None = None
    """Hosts that may use no more than this are not tried again."""
    is_retried: bool = True


def learn(limit: MemoryLimit | None, cut: CutReport | None, host: HostId, host_bytes: int) -> MemoryLimit:
    """The limit after memory ran out on a host with this budget, computing `cut` if it came so far."""
    before = limit or MemoryLimit()
    is_larger = host_bytes > before.host_bytes
    counted = {
        "host": host,
        "host_bytes": max(host_bytes, before.host_bytes),
        "failures": 1 if is_larger else before.failures + 1,
    }
    return (before if cut is None else smaller(before, cut)).model_copy(update=counted)


def smaller(limit: MemoryLimit, cut: CutReport) -> MemoryLimit:
    """Half of what was computed at once; below single rows, activations are computed again."""
    if cut.is_smallest:
        tokens, checkpointing = cut.tokens, True
    else:
        tokens, checkpointing = max(1, cut.tokens // 2), cut.gradient_checkpointing
    return limit.model_copy(
        update={
            "micro_batch_tokens": min(tokens, limit.micro_batch_tokens or tokens),
            "gradient_checkpointing": checkpointing or limit.gradient_checkpointing,
        }
    )


def keep(limit: MemoryLimit | None, cut: CutReport) -> MemoryLimit:
    """The limit of a job that was shrunk to `cut` and did not fail of it."""
    before = limit or MemoryLimit()
    tokens = min(cut.micro_batch_tokens, before.micro_batch_tokens or cut.micro_batch_tokens)
    return before.model_copy(update={"micro_batch_tokens": tokens})


def recover(learned: MemoryLimit, *, has_larger_host: bool) -> Recovery:
    """Again with the smaller cut; after the third time on a larger host, where counting starts anew."""
    if learned.failures < MAX_OUT_OF_MEMORY:
        return Recovery(learned)
    if not has_larger_host:
        return Recovery(learned, is_retried=False)
    return Recovery(learned.model_copy(update={"failures": 0}), above_bytes=learned.host_bytes)


def what_would_fit(spec: TrainJob | CountJob, limit: MemoryLimit) -> str:
    """Advice for a job that no registered host has the memory for."""
    larger = f"a host that may use more than {format_bytes(limit.host_bytes)}"
    if not isinstance(spec, TrainJob):
        return f"what would fit: {larger}"
    changes = []
    if not (spec.gradient_checkpointing or limit.gradient_checkpointing):
        changes.append("`gradient_checkpointing`")
    changes.append(f"a `max_length` below {spec.max_length}")
    if spec.method is not Method.FULL:
        changes.append("fewer `adapter.layers`")
    if spec.method is not Method.QLORA:
        changes.append("the method qlora")
    return f"what would fit: {larger}, or {', '.join(changes[:-1])} or {changes[-1]}"
