"""MLflow, with its own file store and with a server that is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.hyperparameters import Tracker
from graft_scheduler.states import StopReason
from tests.worker.tracking.stories import Heard, make_start, planned, progress, story, tell, train_job

pytest.importorskip("mlflow", reason="mlflow-skinny is not installed: no run can be made")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return (tmp_path / "mlruns").as_uri()


@pytest.fixture
def find_runs(uri: str) -> Callable[[], list[Any]]:
    """All runs of the project."""
    from mlflow import MlflowClient

    def find() -> list[Any]:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("tests")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id]))

    return find


def test_a_run_holds_settings_tags_and_figures(
    tmp_path: Path, uri: str, find_runs: Callable[[], list[Any]]
) -> None:
    heard = tell(make_start(train_job(Tracker.MLFLOW, uri=uri), tmp_path / "work"), story())

    assert heard.warnings == []
    (run,) = find_runs()
    assert (run.info.run_name, run.info.status) == ("poems", "FINISHED")
    assert run.data.params["optimizer.learning_rate"] == "0.5"
    assert run.data.tags["graft.job"] == "job-1"
    assert run.data.tags["graft.label.team"] == "verse"
    assert run.data.metrics["train/loss"] == 8.0
    assert run.data.metrics["validation/loss"] == 2.0
    assert run.data.metrics["result/final_loss"] == 1.5


def test_a_resumed_attempt_goes_on_with_its_run(
    tmp_path: Path, uri: str, find_runs: Callable[[], list[Any]]
) -> None:
    from mlflow import MlflowClient

    heard = Heard()
    heard.stop = StopReason.YIELD
    job = train_job(Tracker.MLFLOW, uri=uri)
    tell(make_start(job, tmp_path / "1"), story(), heard=heard, result=None)
    (run,) = find_runs()
    assert run.info.status == "SCHEDULED"

    tell(make_start(job, tmp_path / "2", token=2), [planned(first_step=2), progress(3)])

    (run,) = find_runs()
    assert run.info.status == "FINISHED"
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 9.0), (2, 8.0), (3, 7.0)]


def test_labels_that_mlflow_does_not_take_are_changed(
    tmp_path: Path, uri: str, find_runs: Callable[[], list[Any]]
) -> None:
    job = train_job(Tracker.MLFLOW, uri=uri, labels={"a:b": "x" * 9000})

    assert tell(make_start(job, tmp_path / "work"), story()).warnings == []
    assert find_runs()[0].data.tags["graft.label.a_b"] == "x" * 5000


def test_more_points_than_a_request_takes_are_sent_in_parts(
    tmp_path: Path, uri: str, find_runs: Callable[[], list[Any]]
) -> None:
    steps = [progress(step) for step in range(1, 402)]

    heard = tell(make_start(train_job(Tracker.MLFLOW, uri=uri), tmp_path / "work"), [planned(), *steps])

    assert heard.warnings == []
    assert find_runs()[0].data.metrics["train/loss"] == -391.0


def test_a_server_that_is_away_is_one_warning_without_its_password(tmp_path: Path) -> None:
    job = train_job(Tracker.MLFLOW, uri="http://ann:s3cret@127.0.0.1:9")

    (warning,) = tell(make_start(job, tmp_path), story()).warnings

    assert "API request to http://127.0.0.1:9/" in warning
    assert "s3cret" not in warning
    assert "MLFLOW_TRACKING_USERNAME" in warning


def test_a_job_without_a_server_is_told_so(tmp_path: Path) -> None:
    (warning,) = tell(make_start(train_job(Tracker.MLFLOW), tmp_path), story()).warnings

    assert "`tracking.uri` is absent and the host sets no MLFLOW_TRACKING_URI" in warning
    assert list(tmp_path.iterdir()) == []
