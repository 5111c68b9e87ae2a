"""An attempt whose machine runs out of memory: a real runner and a real Redis, a machine as told."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.demand import Demand, Request
from graft_scheduler.jobs import CountJob
from graft_scheduler.records import HostInfo, JobRecord
from graft_scheduler.rooms import Placement
from graft_scheduler.settings import load_settings
from graft_scheduler.states import FailureClass, HostId, JobId, JobState, Token
from graft_scheduler.store import open_store
from graft_scheduler.transitions import Transitions, Window
from graft_worker import attempt
from graft_worker.host import open_folder
from graft_worker.memory_watch import MemoryWatch
from graft_worker.preparation import Worker
from graft_worker.pressure import Pressure
from graft_worker.supervisor import supervise
from tests.acceptance.memory_limits import limit_address_space
from tests.scheduler.test_transitions import host_info
from tests.services import eventually, is_runner

pytestmark = pytest.mark.processes

GIB = 1 << 30
JOB = JobId("job1")
NEED = Pressure(total_bytes=32 * GIB, available_bytes=GIB // 4)


@pytest.fixture
def worker(redis: Redis, tmp_path: Path) -> Iterator[Worker]:
    settings = load_settings({"data_dir": str(tmp_path / "data"), "host_name": "one"})
    transitions = Transitions(redis)
    store = open_store((tmp_path / "store").as_uri())
    info = HostInfo.model_validate({**host_info().model_dump(), "store_id": store.id})
    folder = open_folder(settings)
    with folder.lock:
        yield Worker(info, folder, settings, transitions, transitions, store, threading.Event())


def assign(worker: Worker) -> Token:
    """A long job, placed on the worker."""
    spec = CountJob(steps=100_000, step_seconds=0.01)
    demands = {"cpu": Demand.of(GIB)}
    worker.transitions.submit(JOB, spec, Request(demands=demands, store_id=worker.store.id), demands)
    worker.transitions.host_beat(worker.info, 5)
    _, leader, _ = worker.transitions.lead("me", 60)
    placement = Placement(JOB, HostId(worker.info.id), GIB)
    token, why = worker.transitions.place(placement, leader, Window(60, 60))
    assert token is not None, why
    return token


def events(redis: Redis, name: str) -> list[dict[str, Any]]:
    entries: Any = redis.xrange(keys.job_events(JOB))
    return [json.loads(fields["data"]) for _, fields in entries if fields["name"] == name]


def test_a_job_is_stopped_at_a_checkpoint_before_its_machine_is_hurt(
    worker: Worker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_need = partial(
        MemoryWatch, read_footprint=lambda: 8 * GIB, read_machine=lambda pid: NEED, pause_seconds=0.1
    )
    monkeypatch.setattr(attempt, "MemoryWatch", in_need)

    ended = supervise(worker, JOB, assign(worker))

    fields: Any = redis.hgetall(keys.job(JOB))
    record = JobRecord.parse(JOB, fields)
    assert ended is not None
    assert record.state is JobState.QUEUED
    assert record.resume is not None
    assert (record.memory_failures, record.charged) == (1, 0)
    assert record.failure is not None
    assert record.failure.text.startswith("stopped before memory ran out: the machine has 256 MB left")
    assert [event["action"] for event in events(redis, "memory")] == ["shrink", "stop"]
    assert record.memory[0].footprint_bytes == 8 * GIB
    log = worker.store.get_bytes(record.logs[0].digest).decode()
    assert "it computes less at once" in log
    assert "it stops at a checkpoint" in log


def test_a_job_that_was_not_short_of_memory_learns_nothing(
    worker: Worker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = replace(NEED, available_bytes=30 * GIB)
    monkeypatch.setattr(attempt, "MemoryWatch", partial(MemoryWatch, read_machine=lambda pid: calm))
    token = assign(worker)
    threading.Timer(2.0, worker.leaves.set).start()

    supervise(worker, JOB, token)

    fields: Any = redis.hgetall(keys.job(JOB))
    record = JobRecord.parse(JOB, fields)
    assert (record.state, record.memory_failures, record.memory_limit) == (JobState.QUEUED, 0, None)
    assert record.memory
    assert events(redis, "memory") == []


@pytest.mark.skipif(sys.platform != "linux", reason="address spaces are limited as Linux does it")
@pytest.mark.parametrize("is_limited", [True, False])
def test_a_crash_counts_as_memory_only_where_the_runner_was_limited(
    worker: Worker, redis: Redis, is_limited: bool
) -> None:
    token = assign(worker)

    def crash() -> None:
        runner = eventually(lambda: [one for one in psutil.Process().children() if is_runner(one)])[0]
        if is_limited:
            limit_address_space(64 * GIB)(runner.pid)
        watched = worker.folder.attempt_dir(JOB, token) / "steps.log"
        eventually(lambda: watched.exists() and len(watched.read_text().splitlines()) > 150)
        runner.send_signal(signal.SIGSEGV)

    crashing = threading.Thread(target=crash)
    crashing.start()
    ended = supervise(worker, JOB, token)
    crashing.join()

    assert ended is not None
    assert ended.ending.failure is not None
    assert ended.ending.failure.failure is (FailureClass.MEMORY if is_limited else FailureClass.INTERNAL)
    assert ("limited to 64 GB" in ended.ending.failure.text) is is_limited
