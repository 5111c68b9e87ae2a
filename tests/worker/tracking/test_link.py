"""What a tracked link passes on, and what becomes of trackers that fail."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from graft_scheduler.hyperparameters import Tracker
from graft_scheduler.jobs import CountJob
from graft_scheduler.messages import PhaseChanged
from graft_scheduler.states import Phase, StopReason, Token
from graft_worker.tracking import feed
from graft_worker.tracking.figures import METRICS, End, Outcome, Point, TrackedJob
from graft_worker.tracking.link import tracked
from graft_worker.tracking.trackers import TRACKERS, Kind
from tests.worker.tracking.stories import JOB, Heard, make_start, planned, progress, story, tell, train_job


class Recorder:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.jobs: list[TrackedJob] = []
        self.points: list[Point] = []
        self.ends: list[End] = []

    def log(self, points: Sequence[Point]) -> None:
        self.points += points

    def finish(self, end: End) -> None:
        self.ends.append(end)

    def kind(self) -> Kind:
        return Kind(self._open, "try again")

    def _open(self, job: TrackedJob) -> Recorder:
        self.jobs.append(job)
        return self


class Failing(Recorder):
    """A tracker in which `error` is raised at the call named `at`."""

    def __init__(self, at: str, error: BaseException) -> None:
        super().__init__()
        self._at = at
        self._error = error
        self.calls = 0

    def log(self, points: Sequence[Point]) -> None:
        self._fail("log")

    def finish(self, end: End) -> None:
        self._fail("finish")

    def _open(self, job: TrackedJob) -> Failing:
        self._fail("open")
        return self

    def _fail(self, call: str) -> None:
        if call == self._at:
            self.calls += 1
            raise self._error


class Hanging(Recorder):
    """A tracker that does not come back from its first point until `released`."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = threading.Event()
        self.released = threading.Event()

    def log(self, points: Sequence[Point]) -> None:
        self.hangs.set()
        self.released.wait()
        super().log(points)

    def release(self) -> None:
        """Let it go on, and wait until its thread has left."""
        self.released.set()
        for thread in threading.enumerate():
            if thread.name.startswith("tracking"):
                thread.join()


@pytest.fixture
def both() -> Callable[[Recorder, Recorder], dict[Tracker, Kind]]:
    """Two trackers at once, under the names csv and wandb."""
    return lambda csv, wandb: {Tracker.CSV: csv.kind(), Tracker.WANDB: wandb.kind()}


def test_a_job_that_names_no_tracker_starts_nothing(tmp_path: Path) -> None:
    threads = threading.active_count()

    heard = tell(make_start(train_job(), tmp_path), story())

    assert heard.messages == story()
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


def test_a_job_of_another_kind_is_not_tracked(tmp_path: Path) -> None:
    heard = tell(make_start(CountJob(), tmp_path), story())

    assert heard.messages == story()
    assert list(tmp_path.iterdir()) == []


def test_every_message_reaches_the_inner_link_unchanged(tmp_path: Path) -> None:
    phase = PhaseChanged(job=JOB, token=Token(1), phase=Phase.TRAINING)
    messages = [phase, *story(), phase]

    heard = tell(make_start(train_job(Tracker.CSV), tmp_path), messages)

    assert heard.messages == messages


def test_the_inner_link_says_when_to_stop(tmp_path: Path) -> None:
    inner = Heard()
    inner.stop = StopReason.YIELD

    with tracked(make_start(train_job(), tmp_path), inner) as link:
        assert link.stop_reason() is StopReason.YIELD


def test_nothing_is_opened_before_the_plan(tmp_path: Path) -> None:
    recorder = Recorder()

    tell(make_start(train_job(Tracker.CSV), tmp_path), [progress(1)], kinds={Tracker.CSV: recorder.kind()})

    assert recorder.jobs == []


def test_a_tracker_is_given_settings_tags_points_and_the_result(tmp_path: Path) -> None:
    recorder = Recorder()

    tell(make_start(train_job(Tracker.CSV), tmp_path), story(), kinds={Tracker.CSV: recorder.kind()})

    (job,) = recorder.jobs
    assert job.settings["optimizer.learning_rate"] == 0.5
    assert job.settings["method"] == "lora"
    assert not any(name.startswith(("tracking", "labels")) for name in job.settings)
    assert job.tags == {"graft.job": "job-1", "graft.name": "poems", "graft.label.team": "verse"}
    assert [(point.step, dict(point.values)) for point in recorder.points] == [
        (1, {"train/loss": 9.0, "train/learning_rate": 0.25, "train/memory_bytes": 1000}),
        (2, {"train/loss": 8.0, "train/learning_rate": 0.25, "train/memory_bytes": 1000}),
        (2, {"validation/loss": 2.0, "validation/perplexity": 7.5}),
    ]
    (end,) = recorder.ends
    assert (end.outcome, end.step) == (Outcome.COMPLETED, 4)
    assert end.summary["result/final_loss"] == 1.5
    assert "result/facts" not in end.summary


def test_every_figure_of_a_report_has_its_name(tmp_path: Path) -> None:
    recorder = Recorder()
    figures = {"gradient_norm": 1.0, "tokens_per_second": 2.0, "padding_share": 0.1, "peak_bytes": 3}

    tell(
        make_start(train_job(Tracker.CSV), tmp_path),
        [planned(), progress(1, **figures)],
        kinds={Tracker.CSV: recorder.kind()},
    )

    assert tuple(recorder.points[0].values) == METRICS[:7]


@pytest.mark.parametrize(
    ("stop", "outcome"),
    [
        (StopReason.CANCEL, Outcome.CANCELLED),
        (StopReason.YIELD, Outcome.INTERRUPTED),
        (None, Outcome.FAILED),
    ],
)
def test_a_job_without_a_result_ends_as_it_was_stopped(
    tmp_path: Path, stop: StopReason | None, outcome: Outcome
) -> None:
    recorder, heard = Recorder(), Heard()
    heard.stop = stop

    tell(
        make_start(train_job(Tracker.CSV), tmp_path),
        story(),
        heard=heard,
        result=None,
        kinds={Tracker.CSV: recorder.kind()},
    )

    assert [end.outcome for end in recorder.ends] == [outcome]


def test_a_job_that_fails_closes_its_trackers(tmp_path: Path) -> None:
    recorder = Recorder()
    start = make_start(train_job(Tracker.CSV), tmp_path)

    def fail() -> None:
        with tracked(start, Heard(), {Tracker.CSV: recorder.kind()}) as link:
            link.report(planned())
            raise ValueError("no such row")

    with pytest.raises(ValueError, match="no such row"):
        fail()
    assert [end.outcome for end in recorder.ends] == [Outcome.FAILED]


@pytest.mark.parametrize("tracker", [Tracker.TENSORBOARD, Tracker.MLFLOW, Tracker.WANDB, Tracker.TRACKIO])
def test_a_missing_package_is_one_warning_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: Tracker
) -> None:
    kind = TRACKERS[tracker]
    monkeypatch.setitem(sys.modules, kind.module, None)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    job = train_job(tracker, uri="http://127.0.0.1:9")

    heard = tell(make_start(job, tmp_path), story())

    assert [message for message in heard.messages if message in story()] == story()
    (warning,) = heard.warnings
    assert warning.startswith(f"tracking: {tracker} gets no more of this job's figures: ")
    assert warning.endswith(f"; run `pip install {kind.package}` on the host")


def test_a_package_that_lacks_another_one_asks_for_that(tmp_path: Path) -> None:
    failing = Failing("open", ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy.orm"))

    heard = tell(make_start(train_job(Tracker.CSV), tmp_path), story(), kinds={Tracker.CSV: failing.kind()})

    assert heard.warnings[0].endswith("; run `pip install sqlalchemy` on the host")


@pytest.mark.parametrize("at", ["open", "log", "finish"])
@pytest.mark.parametrize("error", [OSError("no network"), SystemExit(3), KeyboardInterrupt()])
def test_a_tracker_that_raises_is_one_warning_and_the_other_goes_on(
    tmp_path: Path,
    both: Callable[[Recorder, Recorder], dict[Tracker, Kind]],
    at: str,
    error: BaseException,
) -> None:
    failing, recorder = Failing(at, error), Recorder()
    start = make_start(train_job(Tracker.CSV, Tracker.WANDB), tmp_path)

    heard = tell(start, story(), kinds=both(failing, recorder))

    (warning,) = heard.warnings
    assert "csv" in warning
    assert type(error).__name__ in warning
    assert warning.endswith("; try again")
    assert failing.calls == 1
    assert len(recorder.points) == 3
    assert len(recorder.ends) == 1


def test_a_warning_names_no_credentials(tmp_path: Path) -> None:
    error = OSError("POST https://ann:s3cret@tracking.example/api failed")

    heard = tell(
        make_start(train_job(Tracker.CSV), tmp_path),
        story(),
        kinds={Tracker.CSV: Failing("log", error).kind()},
    )

    assert "POST https://tracking.example/api failed" in heard.warnings[0]
    assert "s3cret" not in heard.warnings[0]


def test_a_tracker_that_hangs_neither_delays_reports_nor_the_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    both: Callable[[Recorder, Recorder], dict[Tracker, Kind]],
) -> None:
    monkeypatch.setattr(feed, "CLOSE_SECONDS", 0.05)
    hanging, recorder = Hanging(), Recorder()
    start = make_start(train_job(Tracker.CSV, Tracker.WANDB), tmp_path)

    heard = tell(start, story(), kinds=both(hanging, recorder))

    assert not hanging.released.is_set()
    assert [message for message in heard.messages if message in story()] == story()
    assert heard.warnings == [
        "tracking: csv did not finish within 0.05 seconds; the job goes on, and its last figures may be "
        "missing; check the network of the host"
    ]
    hanging.release()


def test_a_tracker_given_up_does_nothing_any_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    both: Callable[[Recorder, Recorder], dict[Tracker, Kind]],
) -> None:
    monkeypatch.setattr(feed, "CLOSE_SECONDS", 0.05)
    hanging, recorder = Hanging(), Recorder()
    tell(make_start(train_job(Tracker.CSV, Tracker.WANDB), tmp_path), story(), kinds=both(hanging, recorder))

    hanging.release()

    assert hanging.ends == []
    assert len(recorder.ends) == 1


def test_a_slow_tracker_loses_the_oldest_points_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "QUEUE_POINTS", 3)
    hanging, heard = Hanging(), Heard()
    start = make_start(train_job(Tracker.CSV), tmp_path)

    with tracked(start, heard, {Tracker.CSV: hanging.kind()}) as link:
        link.report(planned())
        link.report(progress(1))
        hanging.hangs.wait()
        for step in range(2, 9):
            link.report(progress(step))
        assert heard.warnings == [
            "tracking: csv is slower than the job; some figures are left out; check the network of the host"
        ]
        hanging.released.set()

    steps = [point.step for point in hanging.points]
    assert steps[0] == 1
    assert steps[-2:] == [7, 8]
    assert len(steps) < 6
    assert len(heard.warnings) == 1
