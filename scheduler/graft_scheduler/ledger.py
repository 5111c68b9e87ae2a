"""The fleet within one decision: what each host still has to give, and the room that is kept.

Nothing here outlives the decision, and nothing looks at a clock or at Redis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from graft_scheduler.foresight import LONG_SECONDS, beside_kept, foresee
from graft_scheduler.kinds import Kind
from graft_scheduler.rooms import (
    HostRoom,
    Need,
    Placement,
    Reservation,
    Running,
)
from graft_scheduler.stands import Kept, Machine, Shelf, Stand
from graft_scheduler.states import HostId, JobId

ALIKE = 1.1
"""Hosts whose sizes differ by no more are of one size class."""


Make = tuple[str, str, str, int, str, bool]
"""All that a job finds on a host other than what it has to do and has cached."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host can give to a job now."""

    bytes: int
    beside: JobId | None


class Ledger:
    """All hosts, and what this decision has given out so far."""

    def __init__(self, rooms: Sequence[HostRoom]) -> None:
        self._machines: dict[str, Machine] = {}
        self._makes: dict[Make, int] = {}
        sizes = [room.largest_bytes for room in rooms]
        classes = _size_classes(sizes)
        self.stands = [
            self._stand(index, room, size, classes[size])
            for index, (room, size) in enumerate(zip(rooms, sizes, strict=True))
        ]
        for stand in self.stands:
            stand.count()
        self.by_id: dict[HostId, Stand] = {stand.room.id: stand for stand in self.stands}
        self.open: list[dict[int, list[Shelf]]] = [{} for _ in range(1 + max(classes.values(), default=-1))]
        """Hosts with something to give when the decision began, by size class and make; alike ones together,
        those with the most free first."""
        self._fill_shelves()
        self._soonest: list[tuple[int, int, int, float, Stand]] | None = None
        self.changes: list[Stand] = []
        """Every change of what a host can give, in order."""
        self.changed: list[dict[int, Stand]] = [{} for _ in self.open]
        """The hosts that changed, by size class and number."""

    def offer(self, kind: Kind, job: JobId, priority: int, stand: Stand) -> Offer | None:
        """What the host can give to such a job now, and leave room that is kept intact."""
        if not self._is_open(stand) or kind.is_paused:
            return None
        look = kind.look(stand)
        if not look.is_allowed or not kind.can_fetch(stand):
            return None
        need = look.need
        if need.is_alone and (stand.machine.committed_bytes > 0 or stand.committed_bytes > 0):
            return None
        most = stand.free_bytes
        beside = None
        kept = stand.machine.kept
        if kept is not None and kept.job != job and priority >= kept.priority:
            beside, extra = beside_kept(kept, kind, stand)
            if extra is not None:
                most = min(most, extra)
        return Offer(min(most, need.most_bytes), beside) if need.least_bytes <= most else None

    def commit(self, placement: Placement) -> None:
        """Give it out."""
        stand = self.by_id[placement.host]
        stand.committed_bytes += placement.bytes
        stand.used_slots += 1
        stand.machine.committed_bytes += placement.bytes
        if stand.machine.available_bytes is not None:
            stand.machine.available_bytes -= placement.bytes
        stand.running.append(Running(placement.job, placement.bytes, placement.seconds, placement.beside))
        self._changed(stand.machine)

    def restore(self, reservations: Iterable[Reservation]) -> None:
        """Keep what an earlier decision kept."""
        for one in reservations:
            stand = self.by_id.get(one.host)
            if stand is not None:
                need = Need(one.least_bytes, one.bytes, one.is_alone)
                self.keep(Kept(one.job, one.priority, stand, need))

    def keep(self, kept: Kept) -> None:
        """Keep room for a job; whatever was kept on that machine is kept no longer."""
        kept.stand.machine.kept = kept
        self._changed(kept.stand.machine)

    def let_go(self, stand: Stand) -> None:
        """Keep nothing on that machine any longer."""
        stand.machine.kept = None
        self._changed(stand.machine)

    def by_soonest(self) -> list[tuple[int, int, int, float, Stand]]:
        """Hosts that may get jobs, the soonest first that the first of their jobs ends: claims missed,
        the time in coarse steps, size class, the time. No full host can have room before.
        """
        if self._soonest is None:
            ends = {id(machine): _first_end(machine) for machine in self._machines.values()}
            found = []
            for one in self.stands:
                if one.takes_new_jobs:
                    at = ends[id(one.machine)]
                    rank = (one.room.missed_claims, coarse_time(at), one.size_class, at, one.index)
                    found.append(rank)
            self._soonest = [(*rank[:4], self.stands[rank[4]]) for rank in sorted(found)]
        return self._soonest

    def reservations(self) -> list[Reservation]:
        """All that is kept, by host."""
        return [
            Reservation(
                job=kept.job,
                host=kept.stand.room.id,
                bytes=kept.bytes,
                least_bytes=kept.need.least_bytes,
                is_alone=kept.need.is_alone,
                priority=kept.priority,
                starts_in_seconds=kept.starts_in_seconds if kept.is_known else None,
            )
            for machine in self._machines.values()
            if (kept := machine.kept) is not None
        ]

    def rooms(self) -> list[HostRoom]:
        """The hosts as they are after this decision."""
        return [_room_after(stand) for stand in self.stands]

    def dissolve(self) -> None:
        """Let go of all of it, at the end of a decision: stands know their machine, and that knows them,
        so that all would stay until the collector of cycles found them.
        """
        for machine in self._machines.values():
            machine.stands, machine.kept = [], None
        for stand in self.stands:
            stand.shelf = None

    def _fill_shelves(self) -> None:
        shelves: dict[tuple[object, ...], Shelf] = {}
        for stand in sorted(self.stands, key=lambda stand: stand.room.id):
            if not self._is_open(stand):
                continue
            room = stand.room
            done = (stand.committed_bytes, stand.machine.committed_bytes, stand.used_slots)
            alike = (stand.make, stand.free_bytes, room.slots, room.missed_claims, *done)
            key = (room.cached, room.free_disk_bytes, room.no_access, alike)
            shelf = shelves.get(key)
            if shelf is None:
                shelf = shelves[key] = Shelf(stand.free_bytes, [])
                self.open[stand.size_class].setdefault(stand.make, []).append(shelf)
            shelf.stands.append(stand)
            stand.shelf = shelf
        for makes in self.open:
            for alike_made in makes.values():
                alike_made.sort(key=lambda shelf: -shelf.free_bytes)

    def _changed(self, machine: Machine) -> None:
        if machine.kept is not None:
            foresee(machine.kept)
        for stand in machine.stands:
            stand.count()
            stand.version += 1
            self.changes.append(stand)
            self.changed[stand.size_class][stand.index] = stand

    def _stand(self, index: int, room: HostRoom, largest_bytes: int, size_class: int) -> Stand:
        machine = self._machines.get(room.machine_id)
        if machine is None:
            machine = Machine(room.machine_committed_bytes, room.available_bytes, [])
            self._machines[room.machine_id] = machine
        else:
            machine.committed_bytes = max(machine.committed_bytes, room.machine_committed_bytes)
            both = [one for one in (machine.available_bytes, room.available_bytes) if one is not None]
            machine.available_bytes = min(both, default=None)
        stand = Stand(
            index=index,
            room=room,
            machine=machine,
            make=self._makes.setdefault(_make(room, largest_bytes), len(self._makes)),
            size_class=size_class,
            committed_bytes=room.committed_bytes,
            used_slots=room.used_slots,
            running=list(room.running),
            takes_new_jobs=room.takes_new_jobs,
            largest_bytes=largest_bytes,
        )
        machine.stands.append(stand)
        return stand

    @staticmethod
    def _is_open(stand: Stand) -> bool:
        return stand.takes_new_jobs and stand.used_slots < stand.room.slots and stand.free_bytes > 0


def coarse_time(seconds: float) -> int:
    """Times within a factor of two are alike."""
    return int(math.log2(1 + seconds / 60))


def _first_end(machine: Machine) -> float:
    first, is_idle = LONG_SECONDS, True
    for stand in machine.stands:
        for one in stand.running:
            is_idle = False
            if one.seconds_left is not None and one.seconds_left < first:
                first = one.seconds_left
    return 0.0 if is_idle else first


def _make(room: HostRoom, largest_bytes: int) -> Make:
    return (
        room.backend,
        room.chip,
        room.mlx,
        largest_bytes,
        room.store_id,
        room.allow_remote_code,
    )


def _size_classes(sizes: Iterable[int]) -> dict[int, int]:
    """Size to class, smallest first; a class ends where a size is a tenth above its smallest."""
    classes: dict[int, int] = {}
    number, smallest = -1, 0.0
    for size in sorted(set(sizes)):
        if number < 0 or size > smallest * ALIKE:
            number, smallest = number + 1, size
        classes[size] = number
    return classes


def _room_after(stand: Stand) -> HostRoom:
    room = stand.room
    if stand.used_slots == room.used_slots and stand.machine.committed_bytes == room.machine_committed_bytes:
        return room
    return replace(
        room,
        committed_bytes=stand.committed_bytes,
        used_slots=stand.used_slots,
        machine_committed_bytes=stand.machine.committed_bytes,
        available_bytes=stand.machine.available_bytes,
        running=tuple(stand.running),
    )
