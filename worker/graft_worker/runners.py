"""The runners of one worker: those at work, and those that wait for another job on what they have loaded.

A runner that waits holds memory that no job was promised, so it goes whenever a job needs the room, the
machine runs short, or nobody came for a while; then it leaves by itself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from graft_scheduler.runner_process import RunnerProcess
from graft_worker.cache.uses import Uses
from graft_worker.memory_judge import is_tight
from graft_worker.pressure import Pressure, read_pressure
from graft_worker.residency import Name

logger = logging.getLogger(__name__)

STAY_SECONDS = 120.0
"""How long a runner waits for its next job."""
MAX_JOBS = 100
"""Done by one runner: what MLX and its libraries may pile up has an end (mlx#4464)."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a job takes of the host's memory, and what the host has."""

    job_bytes: int | None
    """Reserved for it; nothing when it has the whole host."""
    host_bytes: int

    @property
    def taken_bytes(self) -> int:
        return self.host_bytes if self.job_bytes is None else self.job_bytes


@dataclass(frozen=True, slots=True)
class Engaged:
    """A runner with what it has loaded, and the room that its job has, or had."""

    process: RunnerProcess
    name: Name | None
    """As `residency.runner_name`; nothing for one that is never kept."""
    room: Room
    jobs: int = 1
    """Given to it so far."""
    uses: Uses = field(default_factory=Uses)
    """What must stay on the disk while it waits: it has that loaded."""

    @property
    def is_warm(self) -> bool:
        """It has done a job before this one."""
        return self.jobs > 1

    def close(self) -> int:
        """End it, and let go of what it used; its exit code."""
        try:
            return self.process.close()
        finally:
            self.uses.close()


class Runners:
    """Hands out runners, one for each job, and takes them back. Any thread may call."""

    def __init__(
        self,
        slots: int,
        *,
        stay_seconds: float = STAY_SECONDS,
        read_machine: Callable[[], Pressure] = lambda: read_pressure(os.getpid()),
    ) -> None:
        self.stay_seconds = stay_seconds
        self._slots = slots
        self._read_machine = read_machine
        self._lock = threading.Lock()
        self._busy: list[Engaged] = []
        self._waiting: list[tuple[Engaged, float]] = []
        """With the time until when they wait; the oldest first."""
        self._is_closed = False

    def take(self, name: Name | None, room: Room, log_path: Path) -> Engaged:
        """A runner for a job: one that has `name` loaded, else a new one that prints to `log_path`.

        Those that would be in its way have ended.
        """
        with self._lock:
            engaged = self._warm(name, room)
            self._make_room(room)
            if engaged is None:
                engaged = Engaged(RunnerProcess.spawn(log_path), name, room)
            self._busy.append(engaged)
            return engaged

    def keep(self, engaged: Engaged, uses: Uses) -> None:
        """The runner waits for another job, from now on, with what it must find on the disk then."""
        with self._lock:
            self._busy.remove(engaged)
            waiting = replace(engaged, uses=uses)
            if self._is_closed or engaged.name is None or engaged.jobs >= MAX_JOBS:
                waiting.close()
            else:
                self._waiting.append((waiting, time.monotonic() + self.stay_seconds))

    def end(self, engaged: Engaged) -> int:
        """The exit code of a runner that is not wanted any more; it may have left already."""
        try:
            return engaged.process.close()
        finally:
            with self._lock:
                self._busy.remove(engaged)

    def tend(self) -> None:
        """Let go of those that have left, and of all that wait when the machine's memory is tight."""
        with self._lock:
            if self._waiting and is_tight(self._read_machine()):
                logger.info("memory is tight: runners that wait for a job end")
                self._end_all()
            self._end_left()

    def end_waiting(self) -> None:
        """Let go of all that wait: the disk needs the room of what they have in use."""
        with self._lock:
            if self._waiting:
                logger.info("the disk is short of room: runners that wait for a job end")
            self._end_all()

    def close(self) -> None:
        """End those that wait, and from now on each as it comes back."""
        with self._lock:
            self._is_closed = True
            self._end_all()

    def _warm(self, name: Name | None, room: Room) -> Engaged | None:
        self._end_left()
        for place, (engaged, _) in enumerate(self._waiting):
            if name is not None and engaged.name == name:
                del self._waiting[place]
                engaged.uses.close()  # the job has the same in use
                return replace(engaged, room=room, jobs=engaged.jobs + 1, uses=Uses())
        return None

    def _make_room(self, room: Room) -> None:
        """End those that wait, the oldest first, until the job has its slot and its memory beside them."""
        taken = room.taken_bytes + sum(one.room.taken_bytes for one in self._busy)
        while self._waiting:
            held = sum(one.room.taken_bytes for one, _ in self._waiting)
            slots = len(self._busy) + len(self._waiting) + 1
            if slots <= self._slots and taken + held <= room.host_bytes:
                return
            self._waiting.pop(0)[0].close()

    def _end_left(self) -> None:
        now = time.monotonic()
        stay = [(one, until) for one, until in self._waiting if one.process.is_alive and now < until]
        for waiting in self._waiting:
            if waiting not in stay:
                waiting[0].close()
        self._waiting = stay

    def _end_all(self) -> None:
        while self._waiting:
            self._waiting.pop()[0].close()
