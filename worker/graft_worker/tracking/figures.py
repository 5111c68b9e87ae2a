"""What a tracker is told of a job: its settings and tags, points of its metrics, its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Evaluated, Planned, Progress, RunnerMessage, Start, TrainResult
from graft_scheduler.states import JobId

PROGRESS_METRICS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "tokens_per_second": "train/tokens_per_second",
    "padding_share": "train/padding_share",
    "memory_bytes": "train/memory_bytes",
    "peak_bytes": "train/peak_bytes",
}
"""Fields of `Progress` by the names that trackers show."""
EVALUATED_METRICS = {"loss": "validation/loss", "perplexity": "validation/perplexity"}
"""The same of `Evaluated`."""
METRICS = (*PROGRESS_METRICS.values(), *EVALUATED_METRICS.values())
FOLDER = "tracking"
"""Inside the attempt's own folder."""
NO_SETTINGS = {"tracking", "labels", "name"}
"""Parts of a job that are no parameters; `tracking.uri` may hold credentials."""

Setting = str | int | float | bool


@dataclass(frozen=True, slots=True)
class TrackedJob:
    """A job as its trackers see it; the same at every attempt but for folder and first step."""

    job: JobId
    title: str
    """The job's name, or its id if it has none."""
    settings: Mapping[str, Setting]
    """The specification, flat: `optimizer.learning_rate`."""
    labels: Mapping[str, str]
    project: str
    uri: str | None
    folder: Path
    """Of this attempt; it need not exist yet."""
    first_step: int

    @property
    def tags(self) -> dict[str, str]:
        """Id, name and labels by names that are the same in every tracker."""
        labels = {f"graft.label.{name}": value for name, value in self.labels.items()}
        return {"graft.job": self.job, "graft.name": self.title, **labels}


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured after one optimizer step."""

    step: int
    values: Mapping[str, float]
    at: float = field(default_factory=time.time)
    """Seconds since 1970."""


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    """It goes on as another attempt."""
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class End:
    """The last that a tracker hears."""

    outcome: Outcome
    step: int = 0
    summary: Mapping[str, float] = field(default_factory=dict)


class Exporter(Protocol):
    """One tracker's side of one job; opened by its constructor, used by one thread, free to raise."""

    def log(self, points: Sequence[Point]) -> None:
        """Take points, oldest first."""

    def finish(self, end: End) -> None:
        """Take the end and leave nothing unsent."""


def describe(start: Start, spec: TrainJob, planned: Planned) -> TrackedJob:
    """The job that `start` started and that has said its plan."""
    return TrackedJob(
        job=start.job,
        title=spec.name or start.job,
        settings=dict(_flat(spec.model_dump(mode="json", exclude=NO_SETTINGS))),
        labels=spec.labels,
        project=spec.tracking.project,
        uri=spec.tracking.uri,
        folder=Path(start.work_dir) / FOLDER,
        first_step=planned.first_step,
    )


def point_of(message: RunnerMessage) -> Point | None:
    """What `message` measured; nothing for one without a figure."""
    match message:
        case Progress():
            values = _figures(message, PROGRESS_METRICS)
        case Evaluated():
            values = _figures(message, EVALUATED_METRICS)
        case _:
            return None
    return Point(message.step, values) if values else None


def completed(result: TrainResult) -> End:
    """The end of a job that was trained, with every figure of its result."""
    figures = {f"result/{name}": value for name, value in result if isinstance(value, int | float)}
    return End(Outcome.COMPLETED, result.steps, figures)


def _figures(message: Progress | Evaluated, names: Mapping[str, str]) -> dict[str, float]:
    values = {name: getattr(message, field) for field, name in names.items()}
    return {name: value for name, value in values.items() if value is not None}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, ", ".join(str(item) for item in value)
        elif value is not None:
            yield prefix + name, value
