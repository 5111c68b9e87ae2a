"""Why a job waits, host by host and in words: from the same values as placement, and as pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graft_scheduler.demand import Request
from graft_scheduler.foresight import foresee
from graft_scheduler.kinds import Kind
from graft_scheduler.ledger import Ledger
from graft_scheduler.lessons import Lessons
from graft_scheduler.memory import format_bytes
from graft_scheduler.placement import NOTHING_LEARNED
from graft_scheduler.rooms import (
    HostRoom,
    Need,
    PendingJob,
    Reservation,
    disk_bytes,
    has_access,
    has_disk,
)
from graft_scheduler.stands import Kept, Stand
from graft_scheduler.states import JobId


@dataclass(frozen=True, slots=True)
class HostReason:
    """Why a job does not start on a host now."""

    host_name: str
    reason: str
    fits_ever: bool
    """Whether waiting can help, with the host as it is registered."""
    is_full: bool = False
    """It could run the job, had others not taken its memory or its slots."""
    is_free: bool = False
    """It can take the job now."""
    starts_in_seconds: float | None = None
    """When it will have the room, where that can be told."""


def explain_wait(
    job: PendingJob,
    hosts: Sequence[HostRoom],
    lessons: Lessons = NOTHING_LEARNED,
    reservations: Sequence[Reservation] = (),
    now: float | None = None,
) -> list[HostReason]:
    """Why the job does not start, host by host. `now` is for telling how long others have waited."""
    ledger = Ledger(hosts)
    ledger.restore(reservations)
    since = {one.job: one.since for one in reservations}
    kind = Kind(job, lessons)
    return [_reason(job, kind, stand, ledger, _Told(since, now)) for stand in ledger.stands]


def never_fits(job: PendingJob, hosts: Sequence[HostRoom], lessons: Lessons = NOTHING_LEARNED) -> bool:
    """Whether no registered host could run the job, however long it waits."""
    kind = Kind(job, lessons)
    return bool(hosts) and not any(kind.look(stand).is_allowed for stand in Ledger(hosts).stands)


def about(seconds: float) -> str:
    """A time to come, no finer than it is known: `12 min`, `3 h`."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class _Told:
    since: dict[JobId, float | None]
    now: float | None

    def waited(self, job: JobId) -> str:
        since = self.since.get(job)
        return "" if since is None or self.now is None else f", which has waited {about(self.now - since)}"


def _reason(job: PendingJob, kind: Kind, stand: Stand, ledger: Ledger, told: _Told) -> HostReason:
    room = stand.room
    need = kind.look(stand).need
    if (never := _never(kind, room, need)) is not None:
        return HostReason(room.name, never, fits_ever=False)
    if (later := _not_now(job, room) or _cannot_fetch(job.request, room)) is not None:
        return HostReason(room.name, later, fits_ever=True)
    if ledger.offer(kind, job.id, job.priority, stand) is not None:
        return HostReason(room.name, "free: it will be placed here", fits_ever=True, is_free=True)
    return _full(job, stand, need, told)


def _never(kind: Kind, host: HostRoom, need: Need) -> str | None:
    largest = host.largest_bytes
    if need.least_bytes > largest:
        short = need.least_bytes - largest
        return (
            f"too small: the job needs {format_bytes(need.least_bytes)}, the host may use "
            f"{format_bytes(largest)} (short by {format_bytes(short)})"
        )
    if largest <= kind.above_bytes:
        return (
            f"too small: the job ran out of memory with {format_bytes(kind.above_bytes)}, the host may use "
            f"{format_bytes(largest)}"
        )
    if kind.request.store_id != host.store_id:
        return "uses another store than the submitter; give both the same GRAFT_STORE_URL"
    if kind.request.needs_remote_code and not host.allow_remote_code:
        return "its owner does not allow models to run code of their own"
    return None


def _not_now(job: PendingJob, host: HostRoom) -> str | None:
    if not host.is_alive:
        return "away: its worker does not report"
    if host.is_draining:
        return "draining: it takes nothing new"
    if host.is_cordoned:
        return f"cordoned after failing jobs; look at it, then `graft hosts uncordon {host.name}`"
    if host.rest_seconds > 0:
        return f"it took none of its last {host.missed_claims} jobs; tried again in {host.rest_seconds:.0f} s"
    if job.pause_seconds > 0:
        return f"the job failed to fetch what it needs; it is placed again in {job.pause_seconds:.0f} s"
    return None


def _cannot_fetch(request: Request, host: HostRoom) -> str | None:
    """What keeps the base, the data or checkpoints from the host's disk."""
    if not has_access(request, host):
        return (
            f"has no access to {request.repository}: accept its terms and set HF_TOKEN on that host, or "
            "`graft model pull` it there"
        )
    if not has_disk(request, host):
        needed, free = disk_bytes(request, host), host.free_disk_bytes or 0
        return f"needs {format_bytes(needed)} of disk, this host has {format_bytes(free)} free"
    return None


def _full(job: PendingJob, stand: Stand, need: Need, told: _Told) -> HostReason:
    """Others have the room, or it is kept for another."""
    kept = stand.machine.kept
    kept_for = kept.job if kept is not None else None
    reason = _taken(stand, need)
    if reason is None:
        assert kept_for is not None  # only a reservation refuses where there is room
        reason = f"reserved for job {kept_for}{told.waited(kept_for)}"
        return HostReason(stand.room.name, reason, fits_ever=True, is_full=True)
    mine = Kept(job.id, job.priority, stand, need)
    foresee(mine)
    reason += _when(mine, is_kept=kept_for == job.id)
    if kept_for is not None and kept_for != job.id:
        reason += f"; then reserved for job {kept_for}{told.waited(kept_for)}"
    starts = mine.starts_in_seconds if mine.is_known else None
    return HostReason(stand.room.name, reason, fits_ever=True, is_full=True, starts_in_seconds=starts)


def _taken(stand: Stand, need: Need) -> str | None:
    room = stand.room
    if stand.used_slots >= room.slots:
        return f"busy: {stand.used_slots} of {room.slots} slots in use"
    if need.is_alone and stand.machine.committed_bytes > 0:
        return "busy: the job's size is unknown, so it needs the whole machine"
    free = max(0, stand.free_bytes)
    if need.least_bytes <= free and free > 0:
        return None
    by_jobs = min(
        room.budget_bytes - stand.committed_bytes, room.machine_bytes - stand.machine.committed_bytes
    )
    if free < by_jobs and need.least_bytes <= by_jobs:
        return (
            f"not enough free memory: the job needs {format_bytes(need.least_bytes)}, other programs on the "
            f"machine leave {format_bytes(free)}"
        )
    held = max(stand.committed_bytes, stand.machine.committed_bytes)
    return (
        f"not enough free memory: the job needs {format_bytes(need.least_bytes)}, "
        f"{format_bytes(free)} of {format_bytes(room.largest_bytes)} is free "
        f"({format_bytes(held)} reserved)"
    )


def _when(mine: Kept, *, is_kept: bool) -> str:
    """When the host will have the room, as far as that can be told."""
    if mine.waits_for is None:
        return "; room is kept for it" if is_kept else ""
    known = f" (in about {about(mine.starts_in_seconds)})" if mine.is_known else ""
    verb = "starts here" if is_kept else "fits"
    return f"; {verb} when job {mine.waits_for} ends{known}"
