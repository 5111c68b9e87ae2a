"""Attempts whose base the hub keeps from the host, though it looked as if it were here."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.demand import Demand, Request
from graft_scheduler.jobs import TrainJob
from graft_scheduler.records import JobRecord
from graft_scheduler.rooms import Placement
from graft_scheduler.states import HostId, JobId, JobState
from graft_scheduler.transitions import Window
from graft_worker.cached_models import hub_cache
from graft_worker.preparation import Worker
from graft_worker.supervisor import supervise
from tests.hub import running_hub
from tests.worker.test_warm_attempts import GIB, worker

pytest.importorskip("huggingface_hub", reason="nothing is fetched from the hub without its library")
__all__ = ["worker"]
pytestmark = pytest.mark.processes


@pytest.mark.parametrize("seems_here", [True, False])
def test_a_job_that_was_sent_for_a_base_in_part_is_not_sent_again_at_once(
    worker: Worker, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seems_here: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"w")
    with running_hub() as hub:
        commit = hub.add("org/gated", source, tokens=frozenset({"hf_right"})).commit
        for name, value in (("HF_ENDPOINT", hub.url), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
            monkeypatch.setenv(name, value)
        if seems_here:
            snapshot = hub_cache() / "models--org--gated" / "snapshots" / commit
            snapshot.mkdir(parents=True)
        name = f"org/gated@{commit}"
        worker.info = worker.info.model_copy(update={"cached": (name,) if seems_here else ()})
        request = Request(demands={"cpu": Demand.of(GIB)}, store_id=worker.store.id, model=name)
        data = {"source": "data", "digest": worker.store.put_folder(source)}
        model = {"source": "org/gated", "revision": commit}
        job = TrainJob.model_validate({"model": model, "data": data})
        worker.transitions.submit(JobId("j"), job, request)
        worker.transitions.host_beat(worker.info, 5)
        _, leader, _ = worker.transitions.lead("me", 60)
        placement = Placement(JobId("j"), HostId(worker.info.id), GIB)
        token, why = worker.transitions.place(placement, leader, Window(60, 60))
        assert token is not None, why

        supervise(worker, JobId("j"), token)

    record = JobRecord.parse(JobId("j"), redis.hgetall(keys.job(JobId("j"))))  # type: ignore[arg-type]
    assert (record.state, record.failure, record.charged) == (JobState.QUEUED, None, 0)
    assert bool(redis.hget(keys.job(JobId("j")), "not_before")) == seems_here
    worker.transitions.cancel(JobId("j"), "ada")
