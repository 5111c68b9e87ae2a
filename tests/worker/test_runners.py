"""Runners that wait for another job: who gets them, and when they have to go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.runner_process import RunnerProcess
from graft_worker.cache.uses import Uses
from graft_worker.pressure import Pressure
from graft_worker.runners import MAX_JOBS, Engaged, Room, Runners

GIB = 1 << 30
CALM = Pressure(total_bytes=32 * GIB, available_bytes=30 * GIB)
HOST = 10 * GIB


@dataclass(eq=False)
class Process:
    """A runner's process, without one."""

    is_alive: bool = True

    def close(self) -> int:
        self.is_alive = False
        return 0


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunnerProcess, "spawn", lambda path: Process())


def pool(slots: int = 1, pressure: Pressure = CALM, **changes: Any) -> Runners:
    return Runners(slots, read_machine=lambda: pressure, **changes)


def take(runners: Runners, name: str | None, job_bytes: int | None = GIB) -> Engaged:
    return runners.take(None if name is None else (name,), Room(job_bytes, HOST), Path("log.txt"))


def used(runners: Runners, name: str | None, job_bytes: int | None = GIB) -> Engaged:
    """A runner that has done a job."""
    engaged = take(runners, name, job_bytes)
    runners.keep(engaged, Uses())
    return engaged


def test_a_job_gets_the_runner_that_has_its_base() -> None:
    runners = pool()
    first = used(runners, "a")

    second = take(runners, "a")

    assert second.process is first.process
    assert (first.is_warm, second.is_warm) == (False, True)


def test_a_runner_with_another_base_ends_before_a_job_starts() -> None:
    runners = pool()
    first = used(runners, "a")

    second = take(runners, "b")

    assert not first.process.is_alive
    assert not second.is_warm


def test_a_runner_at_work_is_nobody_elses() -> None:
    runners = pool(slots=2)
    first = take(runners, "a")

    assert take(runners, "a").process is not first.process


def test_a_runner_without_a_name_is_not_kept() -> None:
    assert not used(pool(), None).process.is_alive


def test_as_many_wait_as_there_are_slots_and_room() -> None:
    runners = pool(slots=2)
    one, other = take(runners, "a"), take(runners, "b")
    runners.keep(one, Uses())
    runners.keep(other, Uses())

    third = take(runners, "b")

    assert third.process is other.process
    assert one.process.is_alive


@pytest.mark.parametrize("job_bytes", [8 * GIB, None])
def test_a_runner_ends_when_a_job_needs_its_room(job_bytes: int | None) -> None:
    runners = pool(slots=2)
    one = used(runners, "a", 3 * GIB)

    take(runners, "b", job_bytes)

    assert not one.process.is_alive


def test_a_runner_that_waited_too_long_or_has_left_is_not_given_a_job() -> None:
    runners = pool(stay_seconds=0.0)
    late = used(runners, "a")

    assert not take(runners, "a").is_warm
    assert not late.process.is_alive

    runners = pool()
    gone = used(runners, "a")
    gone.process.close()
    assert not take(runners, "a").is_warm


def test_runners_that_wait_end_when_memory_is_tight() -> None:
    calm, tight = pool(), pool(pressure=Pressure(total_bytes=32 * GIB, available_bytes=3 * GIB))
    stays, goes = used(calm, "a"), used(tight, "a")

    calm.tend()
    tight.tend()

    assert stays.process.is_alive
    assert not goes.process.is_alive


def test_a_worker_that_leaves_takes_its_runners_with_it() -> None:
    runners = pool(slots=2)
    busy, waiting = take(runners, "a"), used(runners, "b")

    runners.close()
    runners.keep(busy, Uses())

    assert not waiting.process.is_alive
    assert not busy.process.is_alive


def test_a_runner_does_no_more_than_so_many_jobs() -> None:
    runners = pool()
    for _ in range(MAX_JOBS):
        last = used(runners, "a")

    assert last.jobs == MAX_JOBS
    assert not last.process.is_alive
    assert not take(runners, "a").is_warm
