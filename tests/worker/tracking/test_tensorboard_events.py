"""TensorBoard's event files, read back record by record."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.hyperparameters import Tracker
from tests.worker.tracking.stories import make_start, planned, progress, story, tell, train_job

pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: no event file can be written")


def events(folder: Path) -> Iterator[Any]:
    """Every event of every file: records of a length, its checksum, the data and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted((folder / "tracking" / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def test_scalars_and_settings_are_in_the_events(tmp_path: Path) -> None:
    heard = tell(make_start(train_job(Tracker.TENSORBOARD), tmp_path), story())

    assert heard.warnings == []
    found = scalars(tmp_path)
    assert (1, "train/loss", 9.0) in found
    assert (2, "validation/perplexity", 7.5) in found
    assert (4, "result/final_loss", 1.5) in found
    texts = b"".join(event.SerializeToString() for event in events(tmp_path))
    assert b"| optimizer.learning_rate | 0.5 |" in texts
    assert b"| graft.job | job-1 |" in texts


def test_a_resumed_attempt_hides_what_was_written_after_its_checkpoint(tmp_path: Path) -> None:
    job = train_job(Tracker.TENSORBOARD)
    tell(make_start(job, tmp_path), story(), result=None)

    tell(make_start(job, tmp_path, token=2), [planned(first_step=1), progress(2)])

    restarts = [event.step for event in events(tmp_path) if event.session_log.status == 1]
    assert restarts == [2]
    assert scalars(tmp_path).count((2, "train/loss", 8.0)) == 2
