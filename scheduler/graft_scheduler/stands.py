"""What a decision knows of hosts, machines and kept room while `Ledger` gives them out."""

from __future__ import annotations

from dataclasses import dataclass

from graft_scheduler.foresight import LONG_SECONDS
from graft_scheduler.rooms import HostRoom, Need, Running
from graft_scheduler.states import JobId


@dataclass(slots=True)
class Machine:
    """What the workers of one machine share."""

    committed_bytes: int
    available_bytes: int | None
    stands: list[Stand]
    kept: Kept | None = None
    """At most one job has a reservation on a machine."""


@dataclass(slots=True)
class Stand:
    """A host as it stands at this point of the decision."""

    index: int
    room: HostRoom
    machine: Machine
    make: int
    size_class: int
    committed_bytes: int
    used_slots: int
    running: list[Running]
    takes_new_jobs: bool
    largest_bytes: int
    free_bytes: int = 0
    """As `count` last found it."""
    shelf: Shelf | None = None
    version: int = 0
    """Rises with every change of what it can give."""

    def count(self) -> None:
        """Work out what is free now."""
        room, machine = self.room, self.machine
        free = min(room.budget_bytes - self.committed_bytes, room.machine_bytes - machine.committed_bytes)
        self.free_bytes = free if machine.available_bytes is None else min(free, machine.available_bytes)


@dataclass(slots=True)
class Shelf:
    """Hosts that were alike in all that a job looks at when the decision began, by their ids."""

    free_bytes: int
    stands: list[Stand]
    _changed: int = 0
    """So many of the first have changed since."""

    def first(self) -> Stand | None:
        """The first that is still as it was."""
        while self._changed < len(self.stands) and self.stands[self._changed].version > 0:
            self._changed += 1
        return self.stands[self._changed] if self._changed < len(self.stands) else None

    def all(self) -> list[Stand]:
        """Those that are still as they were."""
        return [stand for stand in self.stands if stand.version == 0]


@dataclass(slots=True)
class Kept:
    """A reservation, and what it leaves to others."""

    job: JobId
    priority: int
    stand: Stand
    need: Need
    starts_in_seconds: float = LONG_SECONDS
    is_known: bool = False
    """Whether that follows from what is known of the running jobs."""
    host_extra: int = 0
    """Bytes of the host that will be free beside it when it starts; of the machine; and slots."""
    machine_extra: int = 0
    slot_extra: int = 0
    waits_for: JobId | None = None
    """The last running job that must end before."""

    @property
    def bytes(self) -> int:
        return min(self.need.most_bytes, self.stand.largest_bytes)
