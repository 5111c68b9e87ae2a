"""An attempt whose store is slow or away: it trains, reports and hears on, and leaves what it made there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.demand import Demand, Request
from graft_scheduler.errors import Unreachable
from graft_scheduler.jobs import CountJob
from graft_scheduler.records import Event, Hold, HostInfo, JobRecord
from graft_scheduler.rooms import Placement
from graft_scheduler.settings import load_settings
from graft_scheduler.states import Digest, HostId, JobId, JobState, Token
from graft_scheduler.store import Store
from graft_scheduler.store.folder import FolderDepot
from graft_scheduler.transitions import Report, Transitions, Window
from graft_worker import attempt
from graft_worker.attempt import Ended
from graft_worker.host import open_folder
from graft_worker.preparation import Worker
from graft_worker.relay import MAX_KEPT_LINES, MAX_LINE, Relay
from graft_worker.supervisor import supervise
from tests.scheduler.test_transitions import host_info, run, submit
from tests.services import eventually, is_runner

pytestmark = pytest.mark.processes

GIB = 1 << 30
JOB = JobId("job1")


class Gate(Store):
    """A store that takes folders only while its gate is open."""

    def __init__(self, root: Path) -> None:
        super().__init__(FolderDepot.open(root))
        self.is_open = threading.Event()
        self.is_asked = threading.Event()
        self.is_away, self.refused = False, 0

    def put_folder(self, path: Path) -> Digest:
        self.is_asked.set()
        assert self.is_open.wait(30)
        if self.is_away:
            self.refused += 1
            raise Unreachable("the store does not answer")
        return super().put_folder(path)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "store")


@pytest.fixture
def worker(redis: Redis, tmp_path: Path, gate: Gate) -> Iterator[Worker]:
    settings = load_settings({"data_dir": str(tmp_path / "data"), "host_name": "one"})
    transitions = Transitions(redis)
    info = HostInfo.model_validate({**host_info().model_dump(), "store_id": gate.id})
    folder = open_folder(settings)
    with folder.lock:
        yield Worker(info, folder, settings, transitions, transitions, gate, threading.Event())


def read(redis: Redis) -> JobRecord:
    found: Any = redis.hgetall(keys.job(JOB))
    return JobRecord.parse(JOB, found)


def place(worker: Worker) -> Token:
    worker.transitions.host_beat(worker.info, 5)
    _, leader, _ = worker.transitions.lead("me", 60)
    placement = Placement(JOB, HostId(worker.info.id), GIB)
    token, why = worker.transitions.place(placement, leader, Window(60, 60))
    assert token is not None, why
    return token


@contextmanager
def supervised(worker: Worker, token: Token) -> Iterator[Callable[[], Ended]]:
    """The attempt in a thread; what it is called with gives its end."""
    ended: list[Ended | None] = []
    thread = threading.Thread(target=lambda: ended.append(supervise(worker, JOB, token)))
    thread.start()

    def end() -> Ended:
        thread.join(30)
        assert ended
        assert ended[0] is not None
        return ended[0]

    yield end
    thread.join(30)


def test_a_slow_upload_delays_neither_training_nor_a_cancel_and_the_last_checkpoint_gets_there(
    worker: Worker, redis: Redis, gate: Gate
) -> None:
    demands = {"cpu": Demand.of(GIB)}
    spec = CountJob(steps=100_000, step_seconds=0.01, checkpoint_every=5)
    worker.transitions.submit(JOB, spec, Request(demands=demands, store_id=gate.id), demands)

    with supervised(worker, place(worker)) as end:
        assert gate.is_asked.wait(30)
        seen = step_of(redis)
        eventually(lambda: step_of(redis) > seen + 20)
        worker.transitions.cancel(JOB, "ada")
        eventually(lambda: not runners(), 2, "the runner has left, though its checkpoint is on its way")
        assert read(redis).state is JobState.RUNNING
        gate.is_open.set()
        ended = end()

    record = read(redis)
    assert ended.state is JobState.CANCELLED
    assert record.resume is not None
    assert record.checkpoints[-1].step == record.resume.step
    counted = gate.files(record.resume.digest)["count.json"]
    assert gate.get_bytes(counted.digest) == f'{{"count": {record.resume.step}}}'.encode()
    assert len(record.checkpoints) == 1
    assert not list(worker.folder.root.rglob("uploading"))


def counting(worker: Worker, gate: Gate) -> Token:
    """A long job of which nothing gets into the store, placed."""
    gate.is_open.set()
    gate.is_away = True
    demands = {"cpu": Demand.of(GIB)}
    spec = CountJob(steps=100_000, step_seconds=0.01, checkpoint_every=5)
    worker.transitions.submit(JOB, spec, Request(demands=demands, store_id=gate.id), demands)
    return place(worker)


def test_a_job_that_pauses_while_the_store_is_away_has_its_last_checkpoint_there_when_it_is_back(
    worker: Worker, redis: Redis, gate: Gate
) -> None:
    with supervised(worker, counting(worker, gate)) as end:
        eventually(lambda: step_of(redis) > 20)
        worker.transitions.pause(JOB, "ada")
        eventually(lambda: not runners())
        refused = gate.refused
        eventually(lambda: gate.refused > refused, what="another try")
        gate.is_away = False
        ended = end()

    record = read(redis)
    assert ended.state is JobState.PAUSED
    assert record.resume is not None
    assert record.progress is not None
    assert record.resume.step >= record.progress.step


def test_what_never_got_into_the_store_is_told_and_gone_on_from_where_it_was_made(
    worker: Worker, redis: Redis, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "FLUSH_SECONDS", 0.2)
    with supervised(worker, counting(worker, gate)) as end:
        eventually(lambda: step_of(redis) > 20)
        worker.transitions.pause(JOB, "ada")
        ended = end()
    paused = read(redis)
    told = [event.data for event in events(redis) if event.name == "checkpoint not stored"]
    gate.is_away = False
    worker.transitions.resume(JOB, "ada", pause_step=None)

    with supervised(worker, place(worker)) as end:
        eventually(lambda: read(redis).resume is not None)
        worker.transitions.cancel(JOB, "ada")
        end()

    assert (ended.state, paused.resume) == (JobState.PAUSED, None)
    assert [(one["why"], one["step"] > 20) for one in told] == [("the store does not answer", True)]
    log = b"".join(gate.get_bytes(one.digest) for one in read(redis).logs)
    assert f"going on from step {told[0]['step']}".encode() in log


def events(redis: Redis) -> list[Event]:
    entries: Any = redis.xrange(keys.job_events(JOB))
    return [Event.parse(*entry) for entry in entries]


def step_of(redis: Redis) -> int:
    progress = read(redis).progress
    return progress.step if progress else 0


def runners() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if is_runner(one)]


def test_of_a_runner_that_prints_faster_than_it_is_followed_redis_gets_the_end(
    redis: Redis, transitions: Transitions, tmp_path: Path
) -> None:
    submit(transitions)
    held = run(transitions)
    path = tmp_path / "log.txt"
    path.write_bytes(b"a line\n" * (1 << 20) + b"x" * 10_000)
    relay = Relay(transitions, held, read(redis), path)

    relay.flush(is_last=True)

    entries: Any = redis.xrange(keys.job_log(JOB))
    lines = [fields["line"] for _, fields in entries]
    assert len(lines) <= MAX_KEPT_LINES
    assert lines[-1] == "x" * MAX_LINE
    assert {fields["token"] for _, fields in entries} == {str(held.token)}


def test_the_log_of_an_attempt_whose_host_was_lost_is_kept_by_the_next_one(
    worker: Worker, redis: Redis, gate: Gate
) -> None:
    gate.is_open.set()
    demands = {"cpu": Demand.of(GIB)}
    spec = CountJob(steps=1)
    worker.transitions.submit(JOB, spec, Request(demands=demands, store_id=gate.id), demands)
    first = Hold(JOB, place(worker), "nonce")
    worker.transitions.claim(first, HostId(worker.info.id), "b", 60)
    worker.transitions.report(first, Report(lines=["one", "two"]))
    redis.zadd(keys.LEASES, {JOB: 1})
    worker.transitions.expire(JOB, HostId(worker.info.id))

    supervise(worker, JOB, place(worker))

    record = read(redis)
    assert record.state is JobState.COMPLETED
    lost, own = record.logs
    assert (lost.token, lost.is_whole, gate.get_bytes(lost.digest)) == (1, False, b"one\ntwo\n")
    assert (own.token, own.is_whole) == (2, True)
    assert b"attempt 2 on" in gate.get_bytes(own.digest)
