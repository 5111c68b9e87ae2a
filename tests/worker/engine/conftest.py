"""Fixtures of the engine's tests: one tiny model and data set a session, jobs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.messages import Start
from graft_scheduler.states import JobId, Token
from tests.worker.engine.tiny import make_model, make_tokenizer, text_rows, write_rows


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny chat model."""
    folder = tmp_path_factory.mktemp("base")
    make_tokenizer(folder)
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 24 texts for training and 4 for validation."""
    folder = tmp_path_factory.mktemp("texts")
    write_rows(folder / "train.jsonl", text_rows(24))
    write_rows(folder / "valid.jsonl", text_rows(28)[24:])  # none of them is trained on
    return folder


@pytest.fixture
def make_job(base: Path, texts: Path) -> Callable[..., TrainJob]:
    """A short job on the tiny model; changes are nested settings."""

    def make(**changes: Any) -> TrainJob:
        settings = {
            "model": str(base),
            "data": str(texts),
            "batch_size": 4,
            "steps": 6,
            "max_length": 64,
            "micro_batch_tokens": 128,
            "adapter": {"rank": 4},
            "optimizer": {"learning_rate": 3e-3},
            **changes,
        }
        return TrainJob.model_validate(settings)

    return make


@pytest.fixture
def make_start(tmp_path: Path) -> Callable[..., Start]:
    """The message that starts `job`, in a folder of this test."""

    def make(job: TrainJob | CountJob, name: str = "work", **changes: Any) -> Start:
        return Start(
            job=JobId("job"),
            token=Token(1),
            spec=job,
            work_dir=str(tmp_path / name),
            deadline=1e12,
            **changes,
        )

    return make
