"""The CSV file of a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from graft_scheduler.hyperparameters import Tracker
from tests.worker.tracking.stories import make_start, planned, progress, story, tell, train_job

HEADER = (
    "step,train/loss,train/learning_rate,train/gradient_norm,train/tokens_per_second,train/padding_share,"
    "train/memory_bytes,train/peak_bytes,validation/loss,validation/perplexity\r\n"
)


def rows(folder: Path) -> str:
    return (folder / "tracking" / "metrics.csv").read_bytes().decode()


def test_there_is_a_row_for_every_report(tmp_path: Path) -> None:
    heard = tell(make_start(train_job(Tracker.CSV), tmp_path), story())

    assert heard.warnings == []
    assert rows(tmp_path) == HEADER + (
        "1,9.0,0.25,,,,1000,,,\r\n" + "2,8.0,0.25,,,,1000,,,\r\n" + "2,,,,,,,,2.0,7.5\r\n"
    )


def test_a_loss_that_is_no_number_is_written_as_such(tmp_path: Path) -> None:
    tell(make_start(train_job(Tracker.CSV), tmp_path), [planned(), progress(1, loss=float("nan"))])

    assert rows(tmp_path) == HEADER + "1,nan,0.25,,,,1000,,,\r\n"


def test_an_attempt_resumed_in_the_same_folder_appends(tmp_path: Path) -> None:
    job = train_job(Tracker.CSV)
    tell(make_start(job, tmp_path), story(), result=None)
    first = rows(tmp_path)

    tell(make_start(job, tmp_path, token=2), [planned(first_step=2), progress(3)])

    assert rows(tmp_path) == first + "3,7.0,0.25,,,,1000,,,\r\n"


def test_an_attempt_resumed_in_another_folder_begins_a_file(tmp_path: Path) -> None:
    job = train_job(Tracker.CSV)
    tell(make_start(job, tmp_path / "1"), story(), result=None)

    tell(make_start(job, tmp_path / "2", token=2), [planned(first_step=2), progress(3)])

    assert rows(tmp_path / "2") == HEADER + "3,7.0,0.25,,,,1000,,,\r\n"


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "tracking").write_text("in the way")

    heard = tell(make_start(train_job(Tracker.CSV), tmp_path), story())

    assert "csv gets no more of this job's figures: FileExistsError" in heard.warnings[0]


@pytest.mark.parametrize("to", [(Tracker.CSV, Tracker.CSV), (Tracker.CSV,)])
def test_a_tracker_named_twice_is_one(tmp_path: Path, to: tuple[Tracker, ...]) -> None:
    tell(make_start(train_job(*to), tmp_path), story())

    assert rows(tmp_path).count("\r\n") == 4
