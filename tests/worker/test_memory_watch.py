"""The watch over one runner, its footprint, and what is kept of it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.messages import PhaseChanged, Planned, Progress, Shrunk
from graft_scheduler.records import MemorySample
from graft_scheduler.recovery import CutReport
from graft_scheduler.states import JobId, Phase, Token
from graft_worker.footprint import FOOTPRINT_OFFSET, LOOK_EVERY, RUSAGE_BYTES, Footprint, parse_rusage
from graft_worker.memory_judge import Action, Budget
from graft_worker.memory_timeline import MAX_SAMPLES, Timeline
from graft_worker.memory_watch import MemoryWatch, Orders
from graft_worker.pressure import Pressure
from tests.services import eventually

GIB = 1 << 30
JOB, TOKEN = JobId("j"), Token(1)
CALM = Pressure(total_bytes=32 * GIB, available_bytes=20 * GIB)
NEED = replace(CALM, available_bytes=GIB // 4)
HOLDS_20_MIB = """
import sys
held = bytearray(b"x" * (20 << 20))
print("held", flush=True)
sys.stdin.read()
"""


class Machine:
    """A machine whose memory is what a test says; a runner of 8 GiB lives on it."""

    def __init__(self) -> None:
        self.pressure = CALM
        self.asked: list[str] = []
        self.is_alive = True
        self.samples = 0

    def footprint(self) -> int | None:
        self.samples += 1
        return 8 * GIB if self.is_alive else None

    def watch(self, pause_seconds: float = 0.001) -> MemoryWatch:
        orders = Orders(lambda: self.asked.append("shrink"), lambda: self.asked.append("stop"))
        return MemoryWatch(
            1,
            Budget(None),
            orders,
            read_footprint=self.footprint,
            read_machine=lambda pid: self.pressure,
            pause_seconds=pause_seconds,
        )


def test_a_machine_in_need_has_its_runner_shrunk_and_the_log_told_why() -> None:
    machine = Machine()
    with machine.watch() as watch:
        machine.pressure = NEED
        eventually(lambda: machine.asked)

    (note,) = watch.notes()
    assert machine.asked == ["shrink"]
    assert note.action is Action.SHRINK
    assert "256 MB left" in note.reason
    assert watch.notes() == []
    assert watch.stop_text is None


def test_a_watch_ends_with_its_runner() -> None:
    machine = Machine()
    with machine.watch():
        machine.is_alive = False
        eventually(lambda: not any(thread.name == "memory 1" for thread in threading.enumerate()))


def test_the_timeline_tells_phase_and_what_mlx_says_beside_the_footprint() -> None:
    machine = Machine()
    progress = Progress(job=JOB, token=TOKEN, step=1, steps=2, memory_bytes=5, cache_bytes=2)
    with machine.watch() as watch:
        eventually(lambda: machine.samples > 1)
        watch.hear(PhaseChanged(job=JOB, token=TOKEN, phase=Phase.TRAINING))
        watch.hear(progress)
        seen = machine.samples
        eventually(lambda: machine.samples > seen + 1)

    first, *_, last = watch.timeline
    assert (first.phase, first.active_bytes, first.footprint_bytes) == (Phase.PREPARING, None, 8 * GIB)
    assert (last.phase, last.active_bytes, last.cache_bytes) == (Phase.TRAINING, 5, 2)


def test_the_newest_cut_is_known_whoever_made_it() -> None:
    first = CutReport(micro_batch_tokens=4096, gradient_checkpointing=False, rows=8, width=512)
    halved = CutReport(micro_batch_tokens=2048, gradient_checkpointing=False, rows=4, width=512)
    planned = Planned(job=JOB, token=TOKEN, first_step=0, steps=2, train_rows=1, valid_rows=1)
    watch = Machine().watch()

    watch.hear(planned)  # a count job cuts nothing
    known = [watch.cut]
    watch.hear(planned.model_copy(update={"facts": {"cut": first.model_dump()}}))
    known.append(watch.cut)
    was_shrunk = watch.is_shrunk
    watch.hear(Shrunk(job=JOB, token=TOKEN, step=1, cut=halved))
    known.append(watch.cut)

    assert known == [None, first, halved]
    assert (was_shrunk, watch.is_shrunk) == (False, True)


def sample(place: int, footprint: int) -> MemorySample:
    return MemorySample(seconds=float(place), phase=Phase.TRAINING, footprint_bytes=footprint)


@given(footprints=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=3 * MAX_SAMPLES))
def test_a_long_life_is_kept_in_few_samples_with_its_largest_in_order(footprints: list[int]) -> None:
    timeline = Timeline()
    for place, footprint in enumerate(footprints):
        timeline.add(sample(place, footprint))
    kept = timeline.samples

    assert len(kept) <= MAX_SAMPLES
    assert [one.seconds for one in kept] == sorted(one.seconds for one in kept)
    assert max(one.footprint_bytes for one in kept) == max(footprints)
    if len(footprints) < MAX_SAMPLES:
        assert len(kept) == len(footprints)


def test_the_footprint_is_found_in_what_macos_hands_out() -> None:
    buffer = bytearray(RUSAGE_BYTES)
    struct.pack_into("=Q", buffer, FOOTPRINT_OFFSET, 3 * GIB)

    assert parse_rusage(bytes(buffer)) == 3 * GIB


@pytest.mark.processes
def test_a_footprint_holds_what_processes_below_hold() -> None:
    ours = Footprint(os.getpid())
    before = ours.read()
    assert before is not None
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS_20_MIB], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = max(ours.read() or 0 for _ in range(LOOK_EVERY))
        childs = Footprint(child.pid)
        own = childs.read()

    assert own is not None
    assert own >= 20 << 20
    assert with_child >= before + (20 << 20) - (8 << 20)  # our own may have shrunk meanwhile
    assert childs.read() is None
    assert Footprint(child.pid).read() is None
