"""A training job as its link hears it, for the tests of what trackers make of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graft_scheduler.hyperparameters import Tracker
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.messages import (
    Evaluated,
    Log,
    Planned,
    Progress,
    RunnerMessage,
    Start,
    TrainResult,
)
from graft_scheduler.states import JobId, StopReason, Token
from graft_worker.tracking.link import tracked
from graft_worker.tracking.trackers import TRACKERS, Kind

JOB = JobId("job-1")
RESULT = TrainResult(steps=4, final_loss=1.5, best_step=4, tokens=80, facts={"dtype": "float32"})


class Heard:
    """A link that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[RunnerMessage] = []
        self.stop: StopReason | None = None

    def report(self, message: RunnerMessage) -> None:
        self.messages.append(message)

    def stop_reason(self) -> StopReason | None:
        return self.stop

    def shrink_requested(self) -> bool:
        return False

    @property
    def warnings(self) -> list[str]:
        return [log.text for log in self.messages if isinstance(log, Log) and log.level == "warning"]


def train_job(*to: Tracker, uri: str | None = None, **changes: Any) -> TrainJob:
    settings = {
        "model": "some/model",
        "data": "some.jsonl",
        "name": "poems",
        "labels": {"team": "verse"},
        "optimizer": {"learning_rate": 0.5},
        "tracking": {"to": to, "project": "tests", "uri": uri},
        **changes,
    }
    return TrainJob.model_validate(settings)


def make_start(job: TrainJob | CountJob, folder: Path, token: int = 1) -> Start:
    return Start(job=JOB, token=Token(token), spec=job, work_dir=str(folder), deadline=1e12)


def planned(first_step: int = 0) -> Planned:
    return Planned(job=JOB, token=Token(1), first_step=first_step, steps=4, train_rows=8, valid_rows=2)


def progress(step: int, **figures: float) -> Progress:
    values = {"loss": 10.0 - step, "learning_rate": 0.25, "memory_bytes": 1000, **figures}
    return Progress.model_validate({"job": JOB, "token": 1, "step": step, "steps": 4, **values})


def evaluated(step: int) -> Evaluated:
    return Evaluated(job=JOB, token=Token(1), step=step, loss=2.0, perplexity=7.5, tokens=9)


def story(first_step: int = 0) -> list[RunnerMessage]:
    """Two steps, and an evaluation after the second."""
    steps = first_step + 1, first_step + 2
    return [planned(first_step), progress(steps[0]), progress(steps[1]), evaluated(steps[1])]


def tell(
    start: Start,
    messages: Iterable[RunnerMessage],
    *,
    heard: Heard | None = None,
    result: TrainResult | None = RESULT,
    kinds: Mapping[Tracker, Kind] = TRACKERS,
) -> Heard:
    """One attempt from beginning to end."""
    inner = heard or Heard()
    with tracked(start, inner, kinds) as link:
        for message in messages:
            link.report(message)
        if result is not None:
            link.finish(result)
    return inner
