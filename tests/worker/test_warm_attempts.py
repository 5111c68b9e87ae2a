"""Attempts one after another on one worker, with real runners: what they share and what they do not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from safetensors.numpy import load_file

from graft_scheduler import keys
from graft_scheduler.demand import Demand, Request
from graft_scheduler.errors import NotAllowed
from graft_scheduler.jobs import TrainJob
from graft_scheduler.records import HostInfo, JobRecord
from graft_scheduler.rooms import Placement
from graft_scheduler.settings import load_settings
from graft_scheduler.states import Digest, FailureClass, HostId, JobId, JobState
from graft_scheduler.store import Store, open_store
from graft_scheduler.transitions import Transitions, Window
from graft_worker.host import open_folder
from graft_worker.preparation import Worker
from graft_worker.pressure import Pressure
from graft_worker.runners import Runners
from graft_worker.supervisor import supervise
from tests.scheduler.test_transitions import host_info
from tests.services import eventually, has_left

pytestmark = pytest.mark.processes

GIB = 1 << 30
CALM = Pressure(total_bytes=32 * GIB, available_bytes=30 * GIB)


@pytest.fixture
def worker(redis: Redis, tmp_path: Path) -> Iterator[Worker]:
    settings = load_settings({"data_dir": str(tmp_path / "data"), "host_name": "one"})
    transitions = Transitions(redis)
    store = open_store((tmp_path / "store").as_uri())
    info = HostInfo.model_validate({**host_info().model_dump(), "store_id": store.id})
    folder = open_folder(settings)
    runners = Runners(1, read_machine=lambda: CALM)
    leaves = threading.Event()
    with folder.lock:
        yield Worker(info, folder, settings, transitions, transitions, store, leaves, runners)
        runners.close()


class Bench:
    """Gives a worker one job after another."""

    def __init__(self, worker: Worker, redis: Redis, base: Path, data: Path) -> None:
        self.worker, self._redis = worker, redis
        digests = {"model": worker.store.put_folder(base), "data": worker.store.put_folder(data)}
        self._places = {name: {"source": name, "digest": digest} for name, digest in digests.items()}

    def job(self, **changes: Any) -> TrainJob:
        settings = {**self._places, "batch_size": 4, "steps": 4, "max_length": 64, **changes}
        return TrainJob.model_validate(settings)

    def run(self, name: str, spec: TrainJob, pause_step: int | None = None) -> JobRecord:
        """Submit, place, and do it, up to `pause_step`."""
        demands = {"cpu": Demand.of(GIB)}
        request = Request(demands=demands, store_id=self.worker.store.id)
        self.worker.transitions.submit(JobId(name), spec, request, demands, pause_step=pause_step)
        return self._attempt(JobId(name))

    def resume(self, name: str) -> JobRecord:
        """Have a paused job go on, to its end."""
        self.worker.transitions.resume(JobId(name), "ada", pause_step=None)
        return self._attempt(JobId(name))

    def _attempt(self, job: JobId) -> JobRecord:
        transitions = self.worker.transitions
        transitions.host_beat(self.worker.info, 5)
        _, leader, _ = transitions.lead("me", 60)
        placement = Placement(job, HostId(self.worker.info.id), GIB)
        token, why = transitions.place(placement, leader, Window(60, 60))
        assert token is not None, why
        supervise(self.worker, job, token)
        found: Any = self._redis.hgetall(keys.job(job))
        return JobRecord.parse(job, found)

    def runner(self, name: str) -> tuple[int, bool]:
        """The process that did the job last, and whether it was warm."""
        entries: Any = self._redis.xrange(keys.job_events(JobId(name)))
        *_, last = [json.loads(found["data"]) for _, found in entries if found["name"] == "spawned"]
        return last["pid"], last["warm"]

    def log(self, record: JobRecord) -> str:
        return "".join(self.worker.store.get_bytes(log.digest).decode() for log in record.logs)

    def adapter(self, record: JobRecord, folder: Path) -> dict[str, Any]:
        assert record.adapter is not None
        self.worker.store.get_folder(record.adapter, folder)
        return dict(load_file(folder / "adapters.safetensors"))

    def in_use(self) -> set[str]:
        """What may not be removed from the disk."""
        return {entry.item.name for entry in self.worker.cache.entries() if entry.is_in_use}


@pytest.fixture
def bench(worker: Worker, redis: Redis, tmp_path: Path) -> Bench:
    from tests.worker.engine.tiny import make_model, make_tokenizer, text_rows, write_rows

    base, data = tmp_path / "base", tmp_path / "texts"
    for folder in (base, data):
        folder.mkdir()
    make_tokenizer(base)
    make_model(base)
    write_rows(data / "train.jsonl", text_rows(12))
    write_rows(data / "valid.jsonl", text_rows(14)[12:])
    return Bench(worker, redis, base, data)


def test_trials_of_one_base_take_turns_in_one_runner(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path] = []
    get_folder = Store.get_folder

    def recording(store: Store, digest: Digest, dest: Path, **options: Any) -> None:
        fetched.append(dest)
        get_folder(store, digest, dest, **options)

    monkeypatch.setattr(Store, "get_folder", recording)
    alone = bench.run("alone", bench.job())

    paused = bench.run("turns", bench.job(), pause_step=2)
    other = bench.run("other", bench.job(optimizer={"learning_rate": 1e-2}))
    ended = bench.resume("turns")

    pid = bench.runner("alone")[0]
    assert bench.runner("alone") == (pid, False)
    assert [bench.runner(name) for name in ("other", "turns")] == [(pid, True)] * 2
    assert (paused.state, ended.state) == (JobState.PAUSED, JobState.COMPLETED)
    assert not [path for path in fetched if path.name == "resume"]
    one, two = bench.adapter(alone, tmp_path / "1"), bench.adapter(ended, tmp_path / "2")
    assert all((one[name] == two[name]).all() for name in one)
    assert other.result is not None
    assert alone.result is not None
    assert alone.result.first_step_seconds is not None
    assert other.result.first_step_seconds is not None
    assert other.result.first_step_seconds < alone.result.first_step_seconds / 3
    assert bench.log(other).count("trainable parameters") == 1
    assert bench.log(alone).count("trainable parameters") == 1

    assert bench.in_use() == {bench.job().model.digest, bench.job().data.digest}
    runner = psutil.Process(pid)
    bench.run("elsewhere", bench.job(max_length=32))
    assert has_left(runner)
    assert bench.runner("elsewhere")[1] is False
    bench.worker.runners.close()
    assert bench.in_use() == set()
    last = bench.runner("elsewhere")[0]
    eventually(lambda: not psutil.pid_exists(last) or has_left(psutil.Process(last)), 2)


def test_a_job_whose_host_the_store_refuses_fails_with_the_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(store: Store, digest: Digest, dest: Path, **options: Any) -> None:
        raise NotAllowed("store s3://lab: the credentials ran out")

    monkeypatch.setattr(Store, "get_folder", refusing)

    record = bench.run("refused", bench.job())

    assert record.state is JobState.QUEUED
    assert record.failure is not None
    assert record.failure.failure is FailureClass.STORE
    assert "the credentials ran out" in record.failure.text
