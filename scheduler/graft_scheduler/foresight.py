"""When a job that room is kept for can start, and what may run beside it until then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft_scheduler.kinds import Kind
from graft_scheduler.rooms import Running
from graft_scheduler.states import JobId

if TYPE_CHECKING:
    from graft_scheduler.stands import Kept, Stand

LONG_SECONDS = 7 * 86_400.0
"""A running job of which nobody knows when it ends is taken to end after this: late, but it ends."""
SURELY = 2.0
"""A job surely ends before a time when twice its estimate does."""


def foresee(kept: Kept) -> None:
    """Work out when the job will be able to start, and what will be free beside it then.

    Jobs that were let in beside it are taken to stay for ever: they were let in because they leave
    its room. All others end, so it waits no longer than the host takes to finish them.
    """
    stand, need = kept.stand, kept.need
    room, machine = stand.room, stand.machine
    host_free = room.budget_bytes - stand.committed_bytes
    machine_free = room.machine_bytes - machine.committed_bytes
    others = machine.available_bytes
    slots = room.slots - stand.used_slots
    seconds, known, last = 0.0, True, None

    def fits() -> bool:
        free = min(host_free, machine_free) if others is None else min(host_free, machine_free, others)
        is_empty = machine_free >= room.machine_bytes and host_free >= room.budget_bytes
        return slots > 0 and need.least_bytes <= free and (is_empty or not need.is_alone)

    for ends_in, is_known, one, is_here in _endings(kept):
        if fits():
            break
        seconds, known, last = ends_in, known and is_known, one.job
        machine_free += one.bytes
        others = None if others is None else others + one.bytes
        if is_here:
            host_free += one.bytes
            slots += 1
    if not fits():  # something is held that no running job accounts for, or other processes hold it
        seconds, known, last = LONG_SECONDS, False, None
        beside = [(one, at is stand) for at in machine.stands for one in at.running if one.beside == kept.job]
        host_free = room.budget_bytes - sum(one.bytes for one, is_here in beside if is_here)
        machine_free = room.machine_bytes - sum(one.bytes for one, _ in beside)
        slots = room.slots - sum(is_here for _, is_here in beside)
    kept.starts_in_seconds, kept.is_known, kept.waits_for = seconds, known, last
    kept.host_extra, kept.machine_extra = host_free - kept.bytes, machine_free - kept.bytes
    kept.slot_extra = slots - 1


def _endings(kept: Kept) -> list[tuple[float, bool, Running, bool]]:
    """The running jobs of the machine that will make room, in the order in which they end."""
    found = [
        (
            LONG_SECONDS if one.seconds_left is None else min(one.seconds_left, LONG_SECONDS),
            one.seconds_left is not None,
            one,
            at is kept.stand,
        )
        for at in kept.stand.machine.stands
        for one in at.running
        if one.beside != kept.job
    ]
    return sorted(found, key=lambda ending: (ending[0], ending[2].job))


def beside_kept(kept: Kept, kind: Kind, stand: Stand) -> tuple[JobId | None, int | None]:
    """Beside which reservation a job would run, and the most it may take; nothing and nothing when
    it will surely have ended before.
    """
    seconds = kind.seconds(stand) if kept.is_known else None
    if seconds is not None and seconds * SURELY <= kept.starts_in_seconds:
        return None, None
    if kept.need.is_alone or kind.look(stand).need.is_alone:
        return kept.job, -1
    if stand is not kept.stand:
        return kept.job, kept.machine_extra
    return kept.job, min(kept.host_extra, kept.machine_extra) if kept.slot_extra > 0 else -1
