"""Which host gets which job, and why one waits: pure functions of plain values.

First version: enough memory, a free slot, best fit, oldest first. A large job can be passed by
smaller ones for as long as they keep coming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graft_scheduler.memory import format_bytes
from graft_scheduler.states import HostId, JobId


@dataclass(frozen=True, slots=True)
class PendingJob:
    """What placement needs to know of a queued job."""

    id: JobId
    estimates: Mapping[str, int] | None
    """Peak memory in bytes by backend. Absent: the size is unknown, and the job takes a whole host."""
    store_id: str
    needs_remote_code: bool = False
    avoid: HostId | None = None
    """Where it was lost last; taken only when nothing else will do."""
    pause_seconds: float = 0.0
    """It may not be placed before that; the store failed it."""


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

    @property
    def free_bytes(self) -> int:
        return min(
            self.budget_bytes - self.committed_bytes, self.machine_bytes - self.machine_committed_bytes
        )

    @property
    def largest_bytes(self) -> int:
        """What the host could give to one job if it had nothing else."""
        return min(self.budget_bytes, self.machine_bytes)


@dataclass(frozen=True, slots=True)
class Placement:
    """One decision."""

    job: JobId
    host: HostId


@dataclass(frozen=True, slots=True)
class HostReason:
    """Why a job does not start on a host now."""

    host_name: str
    reason: str
    fits_ever: bool
    """Whether waiting can help, with the host as it is registered."""
    is_full: bool = False
    """It could run the job, had others not taken its memory or its slots."""


def place(pending: Sequence[PendingJob], hosts: Sequence[HostRoom]) -> list[Placement]:
    """Placements for the pending jobs, first one first, none above a host's or a machine's budget."""
    rooms = {host.id: host for host in hosts}
    placements = []
    for job in pending:
        if not any(_takes_jobs(room) for room in rooms.values()):
            break
        chosen = _choose(job, list(rooms.values()))
        if chosen is not None:
            placements.append(Placement(job.id, chosen.id))
            rooms = _commit(rooms, chosen, reserved_bytes(job, chosen))
    return placements


def reserved_bytes(job: PendingJob, host: HostRoom) -> int:
    """What the job would take of the host."""
    return (job.estimates or {}).get(host.backend, host.largest_bytes)


def explain_wait(job: PendingJob, hosts: Sequence[HostRoom]) -> list[HostReason]:
    """Why the job does not start, host by host."""
    return [_reason(job, host) for host in hosts]


def never_fits(job: PendingJob, hosts: Sequence[HostRoom]) -> bool:
    """Whether no registered host could run the job, however long it waits."""
    return bool(hosts) and not any(reason.fits_ever for reason in explain_wait(job, hosts))


def _choose(job: PendingJob, rooms: list[HostRoom]) -> HostRoom | None:
    able = [room for room in rooms if _is_able(job, room)]
    return min(able, key=lambda room: _preference(job, room), default=None)


def _preference(job: PendingJob, room: HostRoom) -> tuple[int, bool, int, int, str]:
    """Lower is better: hosts that take what they are given, then the tightest fit."""
    left = room.free_bytes - reserved_bytes(job, room)
    return (room.missed_claims, room.id == job.avoid, left, room.used_slots, room.id)


def _commit(rooms: dict[HostId, HostRoom], chosen: HostRoom, taken: int) -> dict[HostId, HostRoom]:
    def after(room: HostRoom) -> HostRoom:
        if room.machine_id != chosen.machine_id:
            return room
        is_chosen = room.id == chosen.id
        return replace(
            room,
            machine_committed_bytes=room.machine_committed_bytes + taken,
            committed_bytes=room.committed_bytes + taken * is_chosen,
            used_slots=room.used_slots + is_chosen,
        )

    return {host_id: after(room) for host_id, room in rooms.items()}


def _takes_jobs(host: HostRoom) -> bool:
    return (
        host.is_alive
        and not host.is_draining
        and not host.is_cordoned
        and host.rest_seconds <= 0
        and host.used_slots < host.slots
        and host.free_bytes > 0
    )


def _is_able(job: PendingJob, host: HostRoom) -> bool:
    """Whether the host can take the job now: as `_refusal`, without the words."""
    return (
        _takes_jobs(host)
        and job.pause_seconds <= 0
        and reserved_bytes(job, host) <= host.free_bytes
        and job.store_id == host.store_id
        and (host.allow_remote_code or not job.needs_remote_code)
    )


def _refusal(job: PendingJob, host: HostRoom) -> HostReason | None:
    """Why the host cannot take the job now; nothing when it can."""
    if (never := _never(job, host)) is not None:
        return HostReason(host.name, never, fits_ever=False)
    if (later := _not_now(job, host)) is not None:
        return HostReason(host.name, later, fits_ever=True)
    full = _full(job, host)
    return None if full is None else HostReason(host.name, full, fits_ever=True, is_full=True)


def _never(job: PendingJob, host: HostRoom) -> str | None:
    needed = reserved_bytes(job, host)
    if needed > host.largest_bytes:
        short = needed - host.largest_bytes
        return (
            f"too small: the job needs {format_bytes(needed)}, the host may use "
            f"{format_bytes(host.largest_bytes)} (short by {format_bytes(short)})"
        )
    if job.store_id != host.store_id:
        return "uses another store than the submitter; give both the same GRAFT_STORE_URL"
    if job.needs_remote_code and not host.allow_remote_code:
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


def _full(job: PendingJob, host: HostRoom) -> str | None:
    if host.used_slots >= host.slots:
        return f"busy: {host.used_slots} of {host.slots} slots in use"
    needed = reserved_bytes(job, host)
    if needed > host.free_bytes:
        held = max(host.committed_bytes, host.machine_committed_bytes)
        return (
            f"not enough free memory: the job needs {format_bytes(needed)}, "
            f"{format_bytes(max(0, host.free_bytes))} of {format_bytes(host.largest_bytes)} is free "
            f"({format_bytes(held)} reserved)"
        )
    return None


def _reason(job: PendingJob, host: HostRoom) -> HostReason:
    return _refusal(job, host) or HostReason(host.name, "free: it will be placed here", fits_ever=True)
