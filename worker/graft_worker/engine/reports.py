"""What the engine tells the outside while it works, and how it hears that it has to stop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graft_scheduler.messages import (
    Checkpoint,
    Evaluated,
    Log,
    PhaseChanged,
    Planned,
    Progress,
    Ready,
    Shrunk,
    Start,
)
from graft_scheduler.recovery import CutReport
from graft_scheduler.states import JobId, Phase, StopReason, Token
from graft_worker.engine.device import device_name, versions
from graft_worker.engine.evaluation import Evaluation
from graft_worker.link import Link

PROGRESS_SECONDS = 0.25
"""Progress is reported no more often than this; the first and the last step always are."""


class Stopped(Exception):
    """The link asked for a stop; unwinds to where a checkpoint can be saved."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Pace:
    """How the loop does at one step."""

    loss: float
    learning_rate: float
    gradient_norm: float | None
    """Before clipping; absent when it is no number."""
    tokens_per_second: float
    padding_share: float | None
    memory_bytes: int
    cache_bytes: int
    peak_bytes: int
    seconds_left: float
    trained_seconds: float


class Reporter:
    """The job's end of the link: adds job and token to everything it says."""

    def __init__(self, start: Start, link: Link, began: float) -> None:
        """`began` is when the job did, or the process that was started for it, by `time.time`."""
        self._job: JobId = start.job
        self._token: Token = start.token
        self._link = link
        self._began = began
        self._phase: Phase | None = None
        self._progress_at: float | None = None

    def seconds(self) -> float:
        """Since the job began."""
        return time.time() - self._began

    def check_stop(self) -> None:
        """Go on, unless the link says otherwise.

        Raises:
            Stopped: with the reason.
        """
        reason = self._link.stop_reason()
        if reason is not None:
            raise Stopped(reason)

    def is_shrink_asked(self) -> bool:
        """Whether the link asked to compute less at once since this was last called."""
        return self._link.shrink_requested()

    def shrunk(self, step: int, cut: CutReport) -> None:
        self._link.report(Shrunk(job=self._job, token=self._token, step=step, cut=cut))

    def ready(self) -> None:
        self._link.report(
            Ready(
                job=self._job,
                token=self._token,
                seconds=self.seconds(),
                versions=versions(),
                device=device_name(),
            )
        )

    def planned(self, *, first_step: int, steps: int, rows: tuple[int, int], facts: dict[str, Any]) -> None:
        """Tell the plan; `rows` are those of training and validation."""
        self._link.report(
            Planned(
                job=self._job,
                token=self._token,
                first_step=first_step,
                steps=steps,
                train_rows=rows[0],
                valid_rows=rows[1],
                facts=facts,
            )
        )

    def phase(self, phase: Phase) -> None:
        """Tell what is done now, when it is something else than before."""
        if phase is not self._phase:
            self._phase = phase
            self._link.report(PhaseChanged(job=self._job, token=self._token, phase=phase))

    def log(self, text: str, level: Literal["info", "warning", "error"] = "info") -> None:
        self._link.report(Log(job=self._job, token=self._token, level=level, text=text))

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        self._link.report(
            Evaluated(
                job=self._job,
                token=self._token,
                step=step,
                loss=evaluation.loss,
                perplexity=evaluation.perplexity,
                tokens=evaluation.tokens,
            )
        )

    def checkpoint(self, step: int, folder: Path, loss: float | None) -> None:
        """Tell that a checkpoint is on disk; `loss` is the validation loss, if it was evaluated there."""
        self._link.report(
            Checkpoint(job=self._job, token=self._token, step=step, path=str(folder), loss=loss)
        )

    def is_progress_due(self, *, last: bool) -> bool:
        """Whether the next report of progress should be made now."""
        return last or self._progress_at is None or time.monotonic() - self._progress_at >= PROGRESS_SECONDS

    def progress(self, step: int, steps: int, pace: Pace) -> None:
        self._progress_at = time.monotonic()
        self._link.report(
            Progress(
                job=self._job,
                token=self._token,
                step=step,
                steps=steps,
                loss=pace.loss,
                learning_rate=pace.learning_rate,
                gradient_norm=pace.gradient_norm,
                tokens_per_second=pace.tokens_per_second,
                padding_share=pace.padding_share,
                memory_bytes=pace.memory_bytes,
                cache_bytes=pace.cache_bytes,
                peak_bytes=pace.peak_bytes,
                seconds_left=pace.seconds_left,
                trained_seconds=pace.trained_seconds,
            )
        )
