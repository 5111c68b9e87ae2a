"""Training in this process, without a queue."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx_lm
import pytest

import graft_worker
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Evaluated, RunnerMessage


def test_a_job_is_trained_into_a_folder(
    base: Path, make_job: Callable[..., TrainJob], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = graft_worker.train(make_job(), tmp_path / "out")

    assert result.steps == 6
    mlx_lm.load(str(base), adapter_path=str(tmp_path / "out" / "adapter"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 6/6: loss" in captured.err
    assert "after step 6: validation loss" in captured.err


def test_the_packages_import_without_mlx() -> None:
    code = (
        "import sys, graft_worker, graft_worker.engine; "
        "sys.exit(any(name in sys.modules for name in ('mlx', 'mlx_lm', 'transformers')))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_messages_can_be_heard(make_job: Callable[..., TrainJob], tmp_path: Path) -> None:
    heard: list[RunnerMessage] = []

    graft_worker.train(make_job(steps=1), tmp_path / "out", tell=heard.append)

    assert any(isinstance(message, Evaluated) for message in heard)


def test_a_folder_with_something_in_it_is_refused_unless_it_is_gone_on_from(
    make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    job = make_job()
    output = tmp_path / "out"
    graft_worker.train(job, output, tell=lambda message: None)

    with pytest.raises(InvalidInput, match="is not empty"):
        graft_worker.train(job, output)

    checkpoint = output / "checkpoints" / "step-5"
    result = graft_worker.train(job, output, resume_from=checkpoint, tell=lambda message: None)

    assert result.steps == 6
