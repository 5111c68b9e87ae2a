"""The hosts of a fleet as a plan sees them: their room, what holds it, and what was learned there."""

from __future__ import annotations

from collections.abc import Sequence

from graft_scheduler.demand import Demand, Request, coarse_disk
from graft_scheduler.host_verdicts import Holder, HostView
from graft_scheduler.lessons import LessonKey, Lessons, factor_of
from graft_scheduler.memory import Backend
from graft_scheduler.rooms import HostRoom, PendingJob
from graft_scheduler.states import JobId
from graft_scheduler.submission import Resolved, base_name, disk_bytes
from graft_scheduler.waiting import explain_wait

PLANNED = JobId("planned")
"""Stands for the job that nobody has submitted yet."""


def host_views(
    resolved: Resolved, store_id: str, rooms: Sequence[HostRoom], lessons: Lessons
) -> list[HostView]:
    """The hosts as they answer to this job."""
    request = Request(
        demands={one.value: Demand.of(0) for one in Backend},
        store_id=store_id,
        needs_remote_code=resolved.spec.model.trust_remote_code,
        family="" if resolved.base is None else resolved.base.model_type,
        method=resolved.spec.method.value,
        model=base_name(resolved.spec.model),
        weight_bytes=0 if resolved.base is None else resolved.base.weight_bytes,
        disk_bytes=coarse_disk(disk_bytes(resolved)),
    )
    return [_view(request, room, lessons) for room in rooms]


def _view(request: Request, room: HostRoom, lessons: Lessons) -> HostView:
    """As it answers to a job that asks for this and is of no size."""
    refusal, for_good = _refusal(request, room)
    lesson = lessons.get(LessonKey.of(request, room.chip, room.mlx))
    return HostView(
        id=room.id,
        name=room.name,
        backend=Backend(room.backend),
        device=room.device,
        largest_bytes=room.largest_bytes,
        free_bytes=room.free_bytes,
        slots=room.slots,
        holders=tuple(Holder(one.job, one.bytes, one.seconds_left) for one in room.running),
        refusal=refusal,
        refuses_for_good=for_good,
        memory_factor=factor_of(lesson),
        flops_per_second=None if lesson is None else lesson.flops_per_second,
        samples=0 if lesson is None else lesson.samples,
    )


def _refusal(request: Request, room: HostRoom) -> tuple[str | None, bool]:
    """Why placement gives the host no such job; and whether that is for good."""
    (reason,) = explain_wait(PendingJob(PLANNED, request), [room])
    if reason.is_full or reason.is_free:
        return None, False
    return reason.reason, not reason.fits_ever
