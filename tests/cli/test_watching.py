"""Staying with a job: what is told meanwhile, and what the exit code says."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import typer

from graft_cli import progress, watching
from graft_cli.progress import LineView, QuietView
from graft_scheduler.errors import NeverFits, Unreachable
from graft_scheduler.messages import Evaluated, PhaseChanged, Planned, Progress
from graft_scheduler.reader import Explanation
from graft_scheduler.records import JobProgress, JobRecord
from graft_scheduler.states import FailureClass, JobId, JobState, Phase, Token
from graft_scheduler.waiting import HostReason
from tests.cli.records import QUEUED, record
from tests.cli.test_output import Terminal

RUNNING = record(
    JobState.RUNNING, progress=JobProgress(phase=Phase.TRAINING, step=3, steps=9, loss=2.5, seconds_left=70)
)
BUSY = Explanation("first in the queue", [], scheduler_alive=True, never_fits=False)
TOO_BIG = Explanation(
    "no registered host can ever run it",
    [HostReason("mini", "too small: 8 GB", fits_ever=False)],
    scheduler_alive=True,
    never_fits=True,
)


@dataclass
class ScriptedClient:
    """Tells the records it was given, then stays silent until it is released."""

    records: list[JobRecord | Exception]
    explanation: Explanation = BUSY
    released: threading.Event = field(default_factory=threading.Event)

    def follow(self, job_id: str) -> Iterator[JobRecord]:
        for one in self.records:
            if isinstance(one, Exception):
                raise one
            yield one
        self.released.wait(10)

    def why(self, job_id: str) -> Explanation:
        return self.explanation


def watch_to_exit(client: Any, **options: Any) -> int:
    try:
        watching.watch_to_exit(
            client, QUEUED.id, **{"with_progress": True, "timeout": None, "as_json": False, **options}
        )
    except typer.Exit as leaving:
        return leaving.exit_code
    finally:
        client.released.set()
    return 0


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (record(JobState.COMPLETED), 0),
        (record(JobState.FAILED, FailureClass.DATA), 20),
        (record(JobState.CANCELLED), 21),
        (record(JobState.FAILED, FailureClass.MEMORY), 22),
        (record(JobState.FAILED, FailureClass.HOST), 23),
        (record(JobState.FAILED, FailureClass.TIMEOUT), 24),
    ],
)
def test_the_exit_code_says_how_the_job_ended(last: JobRecord, code: int) -> None:
    assert watch_to_exit(ScriptedClient([QUEUED, RUNNING, last])) == code


def test_a_failure_is_told_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    watch_to_exit(ScriptedClient([record(JobState.FAILED, FailureClass.MEMORY)]))

    told = capsys.readouterr()
    assert told.out == ""
    assert "failed (memory): it broke" in told.err
    assert "--grad-checkpoint" in told.err


def test_json_is_the_record_alone(capsys: pytest.CaptureFixture[str]) -> None:
    watch_to_exit(ScriptedClient([QUEUED, record(JobState.COMPLETED)]), as_json=True)

    assert capsys.readouterr().out.startswith('{\n  "id": "a1b2c3d4"')


def test_a_job_that_can_never_run_ends_the_waiting_with_the_reasons() -> None:
    client = ScriptedClient([QUEUED], TOO_BIG)

    with pytest.raises(NeverFits, match="mini: too small"):
        watch_to_exit(client)


def test_waiting_too_long_is_a_timeout() -> None:
    with pytest.raises(TimeoutError, match="it goes on"):
        watch_to_exit(ScriptedClient([RUNNING]), timeout=0.0)


def test_an_error_while_following_reaches_the_caller() -> None:
    with pytest.raises(Unreachable):
        watch_to_exit(ScriptedClient([QUEUED, Unreachable("gone")]))


def test_ctrl_c_detaches_and_says_that_the_job_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.Changes, "take", interrupted)

    assert watch_to_exit(ScriptedClient([RUNNING])) == 130
    assert "detached; job a1b2c3d4 goes on" in capsys.readouterr().err


def test_a_waiting_job_is_explained_once_per_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    said: list[str] = []
    view = QuietView()
    monkeypatch.setattr(view, "say", said.append)
    client: Any = ScriptedClient([])
    waiting = watching.Waiting(client, QUEUED.id, clock=lambda: now)
    for _ in range(8):
        waiting.look(QUEUED, view)
        now += 3

    assert said == ["waiting: first in the queue"]


def test_lines_without_a_terminal_tell_phase_step_and_losses(capsys: pytest.CaptureFixture[str]) -> None:
    view = LineView()
    view.show("queued", None)
    for _ in range(3):
        view.show("", RUNNING.progress)

    assert capsys.readouterr().err.splitlines() == ["queued", "training  step 3/9  loss 2.500  1m10s left"]


def test_the_messages_of_a_local_runner_become_progress(capsys: pytest.CaptureFixture[str]) -> None:
    job, token = JobId("local"), Token(1)
    with progress.LocalProgress("here") as local:
        local.take(Planned(job=job, token=token, first_step=0, steps=20, train_rows=8, valid_rows=2))
        local.take(PhaseChanged(job=job, token=token, phase=Phase.TRAINING))
        local.take(Progress(job=job, token=token, step=5, steps=20, loss=1.25, tokens_per_second=900.0))
        local.take(Evaluated(job=job, token=token, step=5, loss=1.5, perplexity=4.48, tokens=10))

    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "training  step 5/20  loss 1.250  validation 1.500  900 tokens/s"


def test_on_a_terminal_the_bar_shows_step_losses_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    view = progress.progress_view()
    assert RUNNING.progress is not None
    view.show("queued", None)
    view.show("", RUNNING.progress.model_copy(update={"validation_loss": 1.0}))
    view.close()

    for told in ("training", "step 3/9", "1m10s left", "loss 2.500", "validation loss 1.000"):
        assert told in screen.getvalue()
