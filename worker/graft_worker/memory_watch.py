"""Watches one runner's memory while it lives: samples, has them judged, and asks for what follows.

A thread of its own, as `lease` has: a slow upload must not hide that memory runs out.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from graft_scheduler.memory import format_bytes
from graft_scheduler.messages import PhaseChanged, Planned, Progress, RunnerMessage, Shrunk
from graft_scheduler.records import MemorySample
from graft_scheduler.recovery import CutReport
from graft_scheduler.states import Phase
from graft_worker.footprint import Footprint
from graft_worker.memory_judge import Action, Budget, History, Sample, is_short, judge
from graft_worker.memory_timeline import Timeline
from graft_worker.pressure import Pressure, read_pressure

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was done about memory, for the job's log and its events."""

    action: Action
    reason: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class Orders:
    """What the watch may ask for; called from its thread."""

    shrink: Callable[[], None]
    stop: Callable[[], None]


class MemoryWatch:
    """Samples from `__enter__` to `__exit__`; what it learned stays to be asked for."""

    def __init__(
        self,
        pid: int,
        budget: Budget,
        orders: Orders,
        *,
        read_footprint: Callable[[], int | None] | None = None,
        read_machine: Callable[[int], Pressure] = read_pressure,
        pause_seconds: float = SAMPLE_SECONDS,
    ) -> None:
        self._pid, self._budget, self._orders = pid, budget, orders
        self._read_footprint = read_footprint or Footprint(pid).read
        self._read_machine = read_machine
        self._pause_seconds = pause_seconds
        self._began = time.monotonic()
        self._history = History()
        self._newest: Sample | None = None
        self._timeline = Timeline()
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._phase = Phase.PREPARING
        self._active_bytes: int | None = None
        self._cache_bytes: int | None = None
        self.cut: CutReport | None = None
        """How the runner cuts its steps now; nothing before it has said so."""
        self.is_shrunk = False
        """It computes less at once than it planned."""
        self.stop_text: str | None = None
        """Why it was asked to stop, if it was."""
        self._thread = threading.Thread(target=self._watch, name=f"memory {pid}", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def hear(self, message: RunnerMessage) -> None:
        """Take note of what the runner says of its memory, phase and cut."""
        match message:
            case PhaseChanged(phase=phase):
                self._phase = phase
            case Progress():
                self._active_bytes, self._cache_bytes = message.memory_bytes, message.cache_bytes
            case Planned(facts=facts) if "cut" in facts:
                self.cut = CutReport.model_validate(facts["cut"])
            case Shrunk(cut=cut):
                self.cut, self.is_shrunk = cut, True
            case _:
                pass

    def notes(self) -> list[Note]:
        """What was done since this was last asked."""
        found = []
        while not self._notes.empty():
            found.append(self._notes.get())
        return found

    def explain_crash(self) -> str | None:
        """Why a crash was most likely for lack of memory; nothing when it was not short."""
        limit = self._newest.pressure.address_limit_bytes if self._newest else None
        if limit is not None:
            return f"its address space was limited to {format_bytes(limit)}"
        return "memory was short" if is_short(self._history) else None

    @property
    def timeline(self) -> tuple[MemorySample, ...]:
        """The runner's memory so far."""
        return self._timeline.samples

    def _watch(self) -> None:
        try:
            while (sample := self._sample()) is not None:
                self._act(sample)
                if self._ended.wait(self._pause_seconds):
                    return
        except Exception:  # a job must not fail because it could not be watched
            logger.exception("the memory of runner %d is not watched any more", self._pid)

    def _sample(self) -> Sample | None:
        """What there is now; nothing when the runner has ended."""
        footprint = self._read_footprint()
        if footprint is None:
            return None
        seconds = time.monotonic() - self._began
        active, cache = self._active_bytes, self._cache_bytes
        self._timeline.add(
            MemorySample(
                seconds=round(seconds, 2),
                phase=self._phase,
                active_bytes=active,
                cache_bytes=cache,
                footprint_bytes=footprint,
            )
        )
        device = None if active is None else active + (cache or 0)
        return Sample(seconds, footprint, self._read_machine(self._pid), device)

    def _act(self, sample: Sample) -> None:
        self._newest = sample
        verdict = judge(sample, self._history, self._budget)
        self._history = verdict.history
        if verdict.action is Action.OK:
            return
        logger.warning("runner %d: %s: %s", self._pid, verdict.action.name.lower(), verdict.reason)
        self._notes.put(Note(verdict.action, verdict.reason, sample))
        match verdict.action:
            case Action.SHRINK:
                self._orders.shrink()
            case Action.STOP:
                self.stop_text = verdict.reason
                self._orders.stop()
            case Action.WARN:
                pass
