"""Trackio, with its own local store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.hyperparameters import Tracker
from tests.worker.tracking.stories import make_start, planned, progress, story, tell, train_job

pytest.importorskip("trackio", reason="trackio is not installed: no run can be made")
pytestmark = pytest.mark.filterwarnings("ignore")

RUN = "poems-job-1"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trackio's store, in a folder of this test; it reads its setting when it is imported."""
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    return sqlite_storage.SQLiteStorage


def test_a_run_holds_settings_and_figures(
    tmp_path: Path, store: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = tell(make_start(train_job(Tracker.TRACKIO), tmp_path), story())

    assert heard.warnings == []
    assert store.get_runs("tests") == [RUN]
    assert store.get_run_config("tests", RUN)["optimizer.learning_rate"] == 0.5
    logs = store.get_logs("tests", RUN)
    assert [log["step"] for log in logs] == [1, 2, 2, 4]
    assert logs[0]["train/loss"] == 9.0
    assert logs[-1]["result/final_loss"] == 1.5
    assert capsys.readouterr().out == ""


def test_a_resumed_attempt_goes_on_with_its_run(tmp_path: Path, store: Any) -> None:
    job = train_job(Tracker.TRACKIO)
    tell(make_start(job, tmp_path), story(), result=None)

    tell(make_start(job, tmp_path, token=2), [planned(first_step=2), progress(3)])

    assert store.get_runs("tests") == [RUN]
    assert [log["step"] for log in store.get_logs("tests", RUN)] == [1, 2, 2, 3, 4]
