"""What placement looks at and what it says: plain values, and what a job would need on a host."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from graft_scheduler.demand import Request
from graft_scheduler.lessons import Lesson, LessonKey, Lessons, demand_factor
from graft_scheduler.states import HostId, JobId

WHOLE_SHARE = 0.75
"""Of a host, that a job of unknown size wants to find free; the host has nothing else to do then."""
FETCH_BYTES_PER_SECOND = 100e6
"""At which a host gets a base that it has not cached: a gigabit network."""


@dataclass(frozen=True, slots=True)
class PendingJob:
    """What placement needs to know of a queued job."""

    id: JobId
    request: Request
    priority: int = 5
    """0 is most urgent."""
    avoid: HostId | None = None
    """Where it was lost last; taken only when nothing else will do."""
    pause_seconds: float = 0.0
    """It may not be placed before that; the store failed it."""
    above_bytes: int = 0
    """It ran out of memory with this much: only a host that can give more will do."""
    reserved_on: HostId | None = None
    """Where room is kept for it."""


@dataclass(frozen=True, slots=True)
class Running:
    """What one placed or running job holds of a host."""

    job: JobId
    bytes: int
    seconds_left: float | None = None
    """Absent: nobody knows."""
    beside: JobId | None = None
    """It was let in because it leaves room for this one, which has a reservation."""


@dataclass(frozen=True, slots=True)
class HostRoom:
    """What placement needs to know of a host."""

    id: HostId
    name: str
    backend: str
    machine_id: str
    store_id: str
    budget_bytes: int
    machine_bytes: int
    slots: int
    used_slots: int
    committed_bytes: int
    machine_committed_bytes: int
    """Reserved by all workers of the machine together."""
    is_alive: bool = True
    is_draining: bool = False
    is_cordoned: bool = False
    allow_remote_code: bool = False
    missed_claims: int = 0
    rest_seconds: float = 0.0
    """It took none of its last placements, and is left alone for so long."""
    chip: str = ""
    device: str = ""
    """The chip with the kind of device, for people to read."""
    mlx: str = ""
    cached: frozenset[str] = frozenset()
    """Bases that are on its disk."""
    available_bytes: int | None = None
    """What other processes leave to new jobs, beyond all that is reserved. Absent: unknown."""
    running: tuple[Running, ...] = field(default=())
    free_disk_bytes: int | None = None
    """What jobs may still put on its disk. Absent: unknown."""
    no_access: frozenset[str] = frozenset()
    """Hub ids that it may not fetch."""

    @property
    def free_bytes(self) -> int:
        own = min(self.budget_bytes - self.committed_bytes, self.machine_bytes - self.machine_committed_bytes)
        return own if self.available_bytes is None else min(own, self.available_bytes)

    @property
    def largest_bytes(self) -> int:
        """What the host could give to one job if it had nothing else."""
        return min(self.budget_bytes, self.machine_bytes)

    @property
    def takes_new_jobs(self) -> bool:
        """Whether it may get jobs at all, full or not."""
        return self.is_alive and not self.is_draining and not self.is_cordoned and self.rest_seconds <= 0


@dataclass(frozen=True, slots=True)
class Placement:
    """One decision."""

    job: JobId
    host: HostId
    bytes: int
    """What is reserved for it."""
    seconds: float | None = None
    """How long it will take there, where that can be told."""
    beside: JobId | None = None
    """As in `Running`."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room that is kept for a job which cannot start yet."""

    job: JobId
    host: HostId
    bytes: int
    least_bytes: int
    """With this it starts; what it is kept is `bytes`."""
    is_alone: bool = False
    priority: int = 5
    starts_in_seconds: float | None = None
    """When enough of what runs there will have ended, where that can be told."""
    since: float | None = None
    """When the job was submitted, in seconds since 1970 on Redis' clock."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one job would take of one host."""

    least_bytes: int
    most_bytes: int
    is_alone: bool
    """Only while nothing else runs on the machine: its size is unknown."""


def lacks_base(request: Request, room: HostRoom) -> bool:
    """Whether the host would have to fetch the base."""
    return request.model is not None and request.model not in room.cached


def disk_bytes(request: Request, room: HostRoom) -> int:
    """What the job would put on the host's disk."""
    return request.disk_bytes + (request.weight_bytes if lacks_base(request, room) else 0)


def has_disk(request: Request, room: HostRoom) -> bool:
    """Whether it has the disk for that, as far as is known."""
    return room.free_disk_bytes is None or disk_bytes(request, room) <= room.free_disk_bytes


def has_access(request: Request, room: HostRoom) -> bool:
    """Whether the host has the base or may fetch it, as far as is known."""
    return not room.no_access or request.repository not in room.no_access or not lacks_base(request, room)


def lesson_for(request: Request, host: HostRoom, lessons: Lessons) -> Lesson | None:
    """What was learned of such jobs on such hosts."""
    return lessons.get(LessonKey.of(request, host.chip, host.mlx))


def need_on(request: Request, host: HostRoom, lesson: Lesson | None) -> Need:
    """What the job needs there: its demand on that backend, corrected by what was learned."""
    demand = (request.demands or {}).get(host.backend)
    if demand is None:
        return Need(int(host.largest_bytes * WHOLE_SHARE), host.largest_bytes, is_alone=True)
    factor = demand_factor(request, lesson)
    return Need(
        math.ceil(demand.minimum_bytes * factor), math.ceil(demand.preferred_bytes * factor), is_alone=False
    )


def train_seconds(request: Request, lesson: Lesson | None) -> float | None:
    """How long the training will take where that was learned; absent where it cannot be told."""
    if request.flops is None or lesson is None or lesson.flops_per_second is None:
        return None
    return request.flops / lesson.flops_per_second


def usual_seconds(request: Request, lessons: Lessons) -> float:
    """How long such trainings take on the chips that are known, on average; 0 when none is."""
    speeds = [
        lesson.flops_per_second
        for key, lesson in sorted(lessons.items())
        if key[:2] == (request.family, request.method) and lesson.flops_per_second is not None
    ]
    return (request.flops or 0.0) * len(speeds) / sum(speeds) if speeds else 0.0
