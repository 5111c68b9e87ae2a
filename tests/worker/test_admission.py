"""What a host refuses to run, whatever the record says."""

from __future__ import annotations

from typing import Any

import pytest

from graft_scheduler.errors import NotAllowed
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.records import JobRecord
from graft_scheduler.settings import load_settings
from graft_scheduler.states import JobId, JobState, Token
from graft_worker.admission import check_id, check_record

DIGEST = "sha256:" + "0" * 64


def record(spec: TrainJob | CountJob) -> JobRecord:
    absent = dict.fromkeys(
        (
            *("demands", "request", "reserved_bytes", "started_at", "finished_at", "assignment"),
            *("stop_requested", "progress", "resume", "result", "failure", "adapter"),
            *("memory_limit", "above_bytes", "memory_text", "pause_step"),
        )
    )
    known: dict[str, Any] = {"id": JobId("job1"), "spec": spec, "state": JobState.RUNNING, "token": Token(1)}
    counts = dict.fromkeys(("charged", "lost", "stalled", "memory_failures"), 0)
    return JobRecord(**known, **counts, **absent, store_id="s", submitted_at=0.0, queued_at=0.0)  # type: ignore[arg-type]  # absent ones are None


def train_job(model: dict[str, Any], data: dict[str, Any]) -> TrainJob:
    return TrainJob.model_validate({"model": model, "data": data})


@pytest.mark.parametrize("job", ["../../etc", "/etc/passwd", "", "a b", "UPPER", "x" * 33])
def test_an_id_that_could_be_a_path_is_refused(job: str) -> None:
    with pytest.raises(NotAllowed):
        check_id(JobId(job))


@pytest.mark.parametrize(
    ("model", "data", "complaint"),
    [
        (
            {"source": "org/name", "trust_remote_code": True},
            {"source": "d", "digest": DIGEST},
            "code of the model's own",
        ),
        ({"source": "org/name"}, {"source": "/home/ada/secret.jsonl"}, "data is not in the store"),
        ({"source": "/home/ada/model"}, {"source": "d", "digest": DIGEST}, "neither in the store"),
    ],
)
def test_a_job_that_would_reach_into_the_host_is_refused(
    model: dict[str, Any], data: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(NotAllowed, match=complaint):
        check_record(record(train_job(model, data)), load_settings())


def test_what_the_client_submits_is_let_in() -> None:
    stored = {"source": "/on/the/laptop", "digest": DIGEST}

    check_id(JobId("7d2kq8m4"))
    check_record(record(CountJob()), load_settings())
    check_record(record(train_job(stored, stored)), load_settings())
    check_record(record(train_job({"source": "org/name"}, stored)), load_settings())


def test_code_of_a_models_own_runs_where_the_owner_allows_it() -> None:
    stored = {"source": "/on/the/laptop", "digest": DIGEST}
    job = train_job({**stored, "trust_remote_code": True}, stored)

    check_record(record(job), load_settings({"allow_remote_code": "true"}))
