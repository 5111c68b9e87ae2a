"""The hosts of a fleet as a plan sees them: their room, what holds it, and what was learned there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from graft_scheduler.fleet import Commitment, host_rooms
from graft_scheduler.host_verdicts import Holder, HostView
from graft_scheduler.memory import Backend
from graft_scheduler.placement import HostRoom, PendingJob, explain_wait
from graft_scheduler.records import HostRecord
from graft_scheduler.states import JobId
from graft_scheduler.submission import Resolved

PLANNED = JobId("planned")
"""Stands for the job that nobody has submitted yet."""
FREE = "free"
"""Begins the reason of a host that would take the job."""


class Lesson(Protocol):
    """What finished jobs of one kind taught on one kind of chip."""

    @property
    def memory_factor(self) -> float: ...
    @property
    def flops_per_second(self) -> float | None: ...
    @property
    def samples(self) -> int: ...


Lessons = Mapping[tuple[str, str, str, str], Lesson]
"""By the base's `model_type`, the method, the chip and the version of MLX."""


def host_views(
    resolved: Resolved,
    store_id: str,
    hosts: Sequence[HostRecord],
    commitments: Sequence[Commitment],
    seconds_left: Mapping[JobId, float],
    lessons: Lessons,
) -> list[HostView]:
    """The hosts as they answer to this job."""
    rooms = host_rooms(hosts)
    return [
        _view(resolved, store_id, host, room, _holders(host, commitments, seconds_left), lessons)
        for host, room in zip(hosts, rooms, strict=True)
    ]


def _view(
    resolved: Resolved,
    store_id: str,
    host: HostRecord,
    room: HostRoom,
    holders: tuple[Holder, ...],
    lessons: Lessons,
) -> HostView:
    refusal, for_good = _refusal(resolved, store_id, room)
    family = "" if resolved.base is None else resolved.base.model_type
    chip, mlx = host.info.device, host.info.versions.get("mlx", "")
    lesson = lessons.get((family, resolved.spec.method.value, chip, mlx))
    return HostView(
        id=room.id,
        name=room.name,
        backend=Backend(room.backend),
        device=host.info.device,
        largest_bytes=room.largest_bytes,
        free_bytes=room.free_bytes,
        slots=room.slots,
        holders=holders,
        refusal=refusal,
        refuses_for_good=for_good,
        memory_factor=1.0 if lesson is None else lesson.memory_factor,
        flops_per_second=None if lesson is None else lesson.flops_per_second,
        samples=0 if lesson is None else lesson.samples,
    )


def _holders(
    host: HostRecord, commitments: Sequence[Commitment], seconds_left: Mapping[JobId, float]
) -> tuple[Holder, ...]:
    return tuple(
        Holder(one.job, one.bytes, seconds_left.get(one.job))
        for one in commitments
        if one.host == host.info.id
    )


def _refusal(resolved: Resolved, store_id: str, room: HostRoom) -> tuple[str | None, bool]:
    """Why placement gives the host no such job, were it of no size; and whether that is for good."""
    sizeless = PendingJob(
        id=PLANNED,
        estimates={room.backend: 0},
        store_id=store_id,
        needs_remote_code=resolved.spec.model.trust_remote_code,
    )
    (reason,) = explain_wait(sizeless, [room])
    if reason.is_full or (reason.fits_ever and reason.reason.startswith(FREE)):
        return None, False
    return reason.reason, not reason.fits_ever
