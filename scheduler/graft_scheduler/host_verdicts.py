"""What a host answers to a job: whether and when it can run it, how, how long, and what would help.

Pure: the caller has looked at the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import Backend, format_bytes
from graft_scheduler.planning import CutPlan, Question, fastest_cut, smallest_cut, with_cut
from graft_scheduler.remedies import Remedy, remedies
from graft_scheduler.states import HostId, JobId
from graft_scheduler.submission import Resolved
from graft_scheduler.time_estimate import TimeEstimate, estimate_time, flops
from graft_scheduler.waiting import about


class Fit(StrEnum):
    """Whether a host can run the job."""

    NOW = "now"
    LATER = "later"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Holder:
    """A job that holds memory of a host."""

    job: JobId
    reserved_bytes: int
    seconds_left: float | None = None
    """Absent: nobody knows."""


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as a plan sees it."""

    id: HostId
    name: str
    backend: Backend
    device: str
    largest_bytes: int
    """What it can give to one job that is alone."""
    free_bytes: int
    slots: int
    holders: tuple[Holder, ...] = ()
    refusal: str | None = None
    """Why it takes no such job, apart from its size."""
    refuses_for_good: bool = False
    """Waiting does not end the refusal."""
    memory_factor: float = 1.0
    """What estimates for such jobs on such a chip are multiplied by."""
    flops_per_second: float | None = None
    samples: int = 0
    """From how many jobs the last two come."""


@dataclass(frozen=True, slots=True)
class HostVerdict:
    """What one host answers."""

    host: HostView
    fit: Fit
    reason: str
    """In words, with what it waits for or by how much it is too small."""
    starts_in_seconds: float | None = None
    """0 for now; absent where it cannot be told."""
    cut: CutPlan | None = None
    """How it would compute a step; absent where it never runs the job, or nothing is known of the model."""
    time: TimeEstimate | None = None
    short_bytes: int = 0
    remedies: tuple[Remedy, ...] = ()
    """Each of them makes the job fit; looked for where it fits on no host (`with_remedies`)."""


def verdict_of(resolved: Resolved, host: HostView) -> HostVerdict:
    """What the host answers. `now` and `later` promise that the estimate is within what it can give."""
    if host.refuses_for_good:
        return HostVerdict(host, Fit.NEVER, host.refusal or "takes no such job")
    if resolved.base is None:
        return _of_unknown_size(host)
    question = _question(resolved, resolved.base, host)
    most = _most_bytes(resolved.spec, host)
    needed = _needed_bytes(resolved.spec, question)
    if needed > most or smallest_cut(question).peak_bytes > most:
        return _too_small(resolved.spec, host, question, most)
    if host.refusal is not None:
        return _later(resolved, host, question, host.refusal, None, most)
    return _by_room(resolved, host, question, needed)


def with_remedies(resolved: Resolved, verdict: HostVerdict) -> HostVerdict:
    """The same, with what would make the job fit there if it is too large; it takes many estimates."""
    base, host = resolved.base, verdict.host
    if not verdict.short_bytes or base is None or resolved.spec.limits.memory_bytes is not None:
        return verdict
    question = _question(resolved, base, host)
    found = remedies(question, resolved.likely_lengths, host.largest_bytes)
    return replace(verdict, remedies=tuple(found))


def starts(verdict: HostVerdict) -> tuple[int, float, float]:
    """A key to sort by when it starts, then by how long it takes."""
    never = float("inf")
    begins = never if verdict.starts_in_seconds is None else verdict.starts_in_seconds
    return list(Fit).index(verdict.fit), begins, never if verdict.time is None else verdict.time.seconds


def _question(resolved: Resolved, base: BaseModel, host: HostView) -> Question:
    return Question(base, resolved.spec, resolved.lengths, host.backend, host.memory_factor)


def _most_bytes(job: TrainJob, host: HostView) -> int:
    """What the job may use there at most."""
    limit = job.limits.memory_bytes
    return host.largest_bytes if limit is None else min(limit, host.largest_bytes)


def _needed_bytes(job: TrainJob, question: Question) -> int:
    """What placement wants to find free: the size that a person named, or the smallest estimate."""
    return job.limits.memory_bytes or smallest_cut(question).peak_bytes


def _of_unknown_size(host: HostView) -> HostVerdict:
    """Such a job takes a whole host."""
    if host.refusal is not None:
        return HostVerdict(host, Fit.LATER, host.refusal)
    if not host.holders:
        return HostVerdict(host, Fit.NOW, "now: it gets the whole host, as its size is unknown", 0.0)
    seconds = _seconds_until(host, len(host.holders))
    words = _when(host.holders, "end", seconds)
    return HostVerdict(host, Fit.LATER, f"{words}: its size is unknown, so it takes a whole host", seconds)


def _too_small(job: TrainJob, host: HostView, question: Question, most: int) -> HostVerdict:
    needed = smallest_cut(question).peak_bytes
    limit = job.limits.memory_bytes
    if limit is not None and limit > host.largest_bytes:
        short, why = limit - host.largest_bytes, f"`limits.memory_bytes` is {format_bytes(limit)}"
    elif limit is not None:
        short, why = needed - most, f"it needs {format_bytes(needed)}, more than `limits.memory_bytes`"
    else:
        short, why = needed - most, f"it needs {format_bytes(needed)} of {format_bytes(most)} at least"
    reason = f"never, short by {format_bytes(short)}: {why}"
    return HostVerdict(host, Fit.NEVER, reason, short_bytes=short)


def _by_room(resolved: Resolved, host: HostView, question: Question, needed: int) -> HostVerdict:
    """Now, or when enough of what the host runs has ended."""
    leaving = sorted(host.holders, key=_ends)
    for count in range(len(leaving) + 1):
        free = host.free_bytes + sum(one.reserved_bytes for one in leaving[:count])
        free = min(free, host.largest_bytes)
        if free < needed or len(leaving) - count >= host.slots:
            continue
        if count == 0:
            return _with_cut(resolved, HostVerdict(host, Fit.NOW, "now", 0.0), question, free)
        seconds = _seconds_until(host, count)
        return _later(resolved, host, question, _when(leaving[:count], "end", seconds), seconds, free)
    lacking = f"when other processes leave more memory free than {format_bytes(max(0, host.free_bytes))}"
    return _later(resolved, host, question, lacking, None, host.largest_bytes)


def _later(
    resolved: Resolved, host: HostView, question: Question, reason: str, seconds: float | None, free: int
) -> HostVerdict:
    return _with_cut(resolved, HostVerdict(host, Fit.LATER, reason, seconds), question, free)


def _with_cut(resolved: Resolved, verdict: HostVerdict, question: Question, free: int) -> HostVerdict:
    """With what it gets there, and how long it takes."""
    host, job = verdict.host, resolved.spec
    plan = fastest_cut(question, min(free, _most_bytes(job, host)))
    if plan is None:
        return verdict
    work = flops_of(resolved, question.model, with_cut(job, plan.cut))
    time = estimate_time(work, host.backend.value, host.device, host.flops_per_second, host.samples)
    return replace(verdict, cut=plan, time=time)


def flops_of(resolved: Resolved, base: BaseModel, job: TrainJob) -> float:
    """Of the whole training, as the job cuts it."""
    return flops(job, base, resolved.likely_lengths, resolved.valid_rows)


def _ends(holder: Holder) -> float:
    return float("inf") if holder.seconds_left is None else holder.seconds_left


def _seconds_until(host: HostView, count: int) -> float | None:
    """When the first `count` of the host's jobs will have ended, where that can be told."""
    last = sorted(map(_ends, host.holders))[count - 1]
    return None if last == float("inf") else last


def _when(holders: Sequence[Holder], verb: str, seconds: float | None) -> str:
    """`when a1b2c3d4 ends, in about 12 min`."""
    names = " and ".join(one.job for one in holders)
    ends = f"{verb}s" if len(holders) == 1 else verb
    return f"when {names} {ends}" + ("" if seconds is None else f", in about {about(max(1.0, seconds))}")
