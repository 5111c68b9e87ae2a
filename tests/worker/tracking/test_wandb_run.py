"""Weights & Biases: its real offline mode, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("wandb", reason="wandb is not installed: no run can be made")
pytestmark = pytest.mark.processes

SCRIPT = """
import signal, sys
from pathlib import Path
from graft_scheduler.hyperparameters import Tracker
from tests.worker.tracking.stories import *
handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
heard = tell(make_start(train_job(Tracker.WANDB), Path(sys.argv[1])), story(int(sys.argv[2])))
assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
sys.stderr.write("".join(f"warning: {text}" for text in heard.warnings))
"""


def run(work: Path, first_step: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
    """One attempt by a home of its own; the process leaves as a runner does."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(work), str(first_step)],
        env={**plain, "HOME": str(work.parent), "WANDB_ERROR_REPORTING": "false", **settings},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def read_run(work: Path) -> bytes:
    (file,) = (work / "tracking" / "wandb").glob("offline-run-*-job-1/run-job-1.wandb")
    return file.read_bytes()


def test_an_offline_run_holds_settings_and_figures_and_prints_nothing(tmp_path: Path) -> None:
    done = run(tmp_path / "work", WANDB_MODE="offline")

    assert (done.stdout, done.stderr) == ("", "")
    written = read_run(tmp_path / "work")
    for text in (b"job-1", b"poems", b"team:verse", b"optimizer.learning_rate", b"train/loss"):
        assert text in written
    assert b"validation/perplexity" in written
    assert b"result/final_loss" in written


def test_a_resumed_attempt_writes_the_same_run(tmp_path: Path) -> None:
    run(tmp_path / "1", WANDB_MODE="offline")

    done = run(tmp_path / "2", first_step=2, WANDB_MODE="offline")

    assert done.stderr == ""
    assert b"train/loss" in read_run(tmp_path / "2")


def test_a_host_that_is_not_logged_in_is_one_warning(tmp_path: Path) -> None:
    done = run(tmp_path / "work")

    assert done.stdout == ""
    assert done.stderr.startswith("warning: tracking: wandb gets no more of this job's figures: UsageError")
    assert done.stderr.endswith("run `wandb login` there, or set WANDB_MODE=offline")
