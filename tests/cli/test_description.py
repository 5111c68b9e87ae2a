"""What `show` tells of a job that has been through everything."""

from __future__ import annotations

import time

import pytest

from graft_cli.description import describe, history
from graft_cli.generate import generate_command
from graft_cli.listing import progress_of
from graft_scheduler.demand import Demand
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import TrainResult
from graft_scheduler.records import Event, Removed
from graft_scheduler.states import Digest, FailureClass, JobState, Token
from graft_scheduler.tags import Tag
from tests.cli.records import QUEUED, record

RESULT = TrainResult(
    steps=120,
    initial_loss=3.0,
    final_loss=2.0,
    best_loss=1.5,
    best_step=100,
    training_seconds=80,
    tokens_per_second=1500,
    peak_memory_bytes=3 << 30,
)
TRAINED = record(
    JobState.COMPLETED,
    spec=build_train_job(
        {
            "model": "org/base",
            "data": "rows.jsonl",
            "batch_size": 8,
            "labels": {"team": "search"},
            "steps": 120,
        }
    ),
    result=RESULT,
    token=Token(2),
    lost=1,
    demands={"metal": Demand.of(4 << 30)},
    started_at=QUEUED.queued_at + 60,
    finished_at=QUEUED.queued_at + 150,
    adapter=Digest("sha256:" + "a" * 64),
)


def event(number: int, name: str, **data: object) -> Event:
    return Event(str(number), QUEUED.submitted_at + number, QUEUED.id, name, Token(1), data)


def test_a_trained_job_is_told_with_memory_losses_and_the_way_to_its_adapter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    describe(TRAINED, [])

    told = capsys.readouterr()
    for words in (
        "1m30s, waited 1m00s",
        "2 (1 lost with a host)",
        "team=search",
        "org/base",
        "120 steps, batches of 8",
        "3.0000 (validation; perplexity 20.09)",
        "1.5000 at step 100",
        "on metal",
        "at the peak",
        "1,500 tokens/s",
    ):
        assert words in told.out
    assert "graft pull a1b2c3d4" in told.err
    assert progress_of(TRAINED) == "loss 2.000"


def test_names_versions_and_what_was_removed_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    spec = TrainJob.model_validate(
        {
            "model": {"source": "org/base", "revision": "c0ffee"},
            "data": {"source": "tickets", "version": "tickets@v1", "digest": "sha256:" + "1" * 64},
        }
    )
    digest = Digest("sha256:" + "a" * 64)
    early = Tag(name="early", what="checkpoint", digest=digest, job=QUEUED.id, step=4, by="ada", at=0)
    removed = Removed(by="ada", at=int((time.time() - 7200) * 1000))
    failed = record(JobState.FAILED, spec=spec, removed=removed, token=Token(5), stalled=1, memory_failures=2)

    describe(failed, [], [early])

    told = capsys.readouterr().out
    for words in (
        "5 (1 without the store, 2 out of memory)",
        "early (checkpoint of step 4)",
        "removed by ada 2h",
        "tickets@v1",
        "c0ffee",
    ):
        assert words in told


def test_a_failure_is_told_with_its_class_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    failed = record(JobState.FAILED, FailureClass.DIVERGED)
    describe(failed, [])

    told = capsys.readouterr().out
    assert "diverged" in told
    assert "a lower `--lr` usually helps" in told
    assert progress_of(failed) == "diverged: it broke"


def test_history_tells_what_repeats_once_with_its_number() -> None:
    events = [event(0, "submitted"), *(event(n, "checkpoint", step=n, jobs=["x"]) for n in range(1, 31))]

    told = history([*events, event(40, "completed", loss=1.23456)], QUEUED.submitted_at)

    assert told == [
        ("+0s", "submitted (attempt 1)"),
        ("+30s", "checkpoint (attempt 1) 30 times, last: step=30"),
        ("+40s", "completed (attempt 1) loss=1.235"),
    ]


def test_a_prompt_that_looks_like_an_option_stays_a_prompt() -> None:
    command = generate_command("base", "--json", max_tokens=3, temperature=0.0)

    assert command[3:] == ["--model=base", "--prompt=--json", "--max-tokens=3", "--temperature=0.0"]
