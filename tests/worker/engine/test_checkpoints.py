"""Checkpoints: exact to go on from, refused when they do not fit, whole at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import psutil
import pytest

from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Checkpoint, Evaluated, Planned, Progress, RunnerMessage, Start
from graft_scheduler.states import FailureClass, StopReason
from graft_worker.engine.training import train
from graft_worker.link import JobError
from tests.worker.engine.tiny import RecordingLink

MakeJob = Callable[..., TrainJob]
MakeStart = Callable[..., Start]


def weights(folder: str | Path | None) -> dict[str, mx.array]:
    assert folder is not None
    arrays = mx.load(str(Path(folder) / "adapters.safetensors"))
    assert isinstance(arrays, dict)
    return arrays


def are_equal(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return one.keys() == other.keys() and all(mx.array_equal(one[name], other[name]).item() for name in one)


def stop_at_step(step: int) -> RecordingLink:
    def stop_when(message: RunnerMessage) -> StopReason | None:
        return StopReason.YIELD if isinstance(message, Checkpoint) and message.step >= step else None

    return RecordingLink(stop_when)


def checkpoint_of(job: TrainJob, make_start: MakeStart, step: int) -> str:
    """The folder of a checkpoint of `job`, which stopped there."""
    link = stop_at_step(step)
    train(make_start(job, "interrupted"), link)
    return link.of(Checkpoint)[-1].path


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_job_ends_as_if_it_had_not_been(
    make_job: MakeJob, make_start: MakeStart, optimizer: str
) -> None:
    job = make_job(
        steps=10,
        adapter={"rank": 4, "dropout": 0.3},
        optimizer={"name": optimizer, "learning_rate": 3e-3, "weight_decay": 0.01},
        schedule={"name": "cosine"},
        checkpoint={"every": 1},
    )
    whole = train(make_start(job, "whole"), RecordingLink())

    link = RecordingLink()
    resumed = train(make_start(job, "resumed", resume_dir=checkpoint_of(job, make_start, 4)), link)

    assert link.of(Planned)[0].first_step == 4
    assert are_equal(weights(whole.output_dir), weights(resumed.output_dir))
    assert whole.result is not None
    assert resumed.result is not None
    for name in ("steps", "tokens", "initial_loss", "final_loss", "best_loss", "best_step"):
        assert getattr(whole.result, name) == getattr(resumed.result, name)


def test_a_resumed_job_does_not_measure_the_untrained_model_again(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    job = make_job()
    link = RecordingLink()

    train(make_start(job, resume_dir=checkpoint_of(job, make_start, 2)), link)

    assert [message.step for message in link.of(Evaluated)] == [3, 4, 5, 6]


def test_seconds_of_earlier_attempts_count(make_job: MakeJob, make_start: MakeStart) -> None:
    job = make_job()
    folder = checkpoint_of(job, make_start, 2)

    done = train(make_start(job, resume_dir=folder, trained_seconds=1000.0), RecordingLink())

    assert done.result is not None
    assert done.result.training_seconds > 1000.0


def test_another_micro_batch_may_go_on_from_a_checkpoint(make_job: MakeJob, make_start: MakeStart) -> None:
    folder = checkpoint_of(make_job(), make_start, 2)

    done = train(make_start(make_job(micro_batch_tokens=32), resume_dir=folder), RecordingLink())

    assert done.result is not None
    assert done.result.steps == 6


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"adapter": {"rank": 8}}, "was made with adapter.rank 4; this job has 8"),
        ({"adapter": {"rank": 4, "targets": ["q_proj"]}}, "was made with adapter.targets"),
        ({"seed": 1}, "was made with seed 0; this job has 1"),
        ({"steps": 7}, "was made with rows to train 24; this job has 28"),
        ({"max_length": 8}, "was made with training rows of digest"),
        ({"optimizer": {"learning_rate": 1.0}}, "was made with optimizer"),
    ],
)
def test_a_checkpoint_of_another_job_is_refused(
    make_job: MakeJob, make_start: MakeStart, changes: dict[str, object], complaint: str
) -> None:
    folder = checkpoint_of(make_job(), make_start, 2)

    with pytest.raises(JobError) as refusal:
        train(make_start(make_job(**changes), resume_dir=folder), RecordingLink())

    assert refusal.value.failure is FailureClass.CONFIG
    assert complaint in refusal.value.text


@pytest.mark.parametrize("name", ["state.json", "adapters.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_checkpoint_is_refused(
    make_job: MakeJob, make_start: MakeStart, name: str, damage: str
) -> None:
    folder = checkpoint_of(make_job(), make_start, 2)
    file = Path(folder) / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-20])

    with pytest.raises(JobError, match=f"{name} cannot be read") as refusal:
        train(make_start(make_job(), resume_dir=folder), RecordingLink())

    assert refusal.value.failure is FailureClass.STORE


def test_arrays_of_other_shapes_are_refused(make_job: MakeJob, make_start: MakeStart) -> None:
    folder = checkpoint_of(make_job(), make_start, 2)
    path = Path(folder) / "adapters.safetensors"
    mx.save_safetensors(str(path), {name: array[:1] + 0 for name, array in weights(folder).items()})

    with pytest.raises(JobError, match="its adapters have other shapes") as refusal:
        train(make_start(make_job(), resume_dir=folder), RecordingLink())

    assert refusal.value.failure is FailureClass.CONFIG


def test_only_the_newest_checkpoints_stay(make_job: MakeJob, make_start: MakeStart) -> None:
    start = make_start(make_job(checkpoint={"every": 2, "keep": 2}))

    train(start, RecordingLink())

    folders = {path.name for path in (Path(start.work_dir) / "checkpoints").iterdir()}
    assert folders == {"step-4", "step-6"}


def test_a_stopped_job_keeps_what_it_has_learned(make_job: MakeJob, make_start: MakeStart) -> None:
    def stop_when(message: RunnerMessage) -> StopReason | None:
        return StopReason.CANCEL if isinstance(message, Progress) else None

    link = RecordingLink(stop_when)

    done = train(make_start(make_job(checkpoint={"every": 100})), link)

    assert done.stopped is StopReason.CANCEL
    assert done.output_dir is None
    assert done.result is not None
    assert done.result.steps == 1
    assert [message.step for message in link.of(Checkpoint)] == [1]


def test_a_stop_right_after_a_checkpoint_writes_no_other(make_job: MakeJob, make_start: MakeStart) -> None:
    link = stop_at_step(2)

    done = train(make_start(make_job(checkpoint={"every": 1})), link)

    assert done.stopped is StopReason.YIELD
    assert [message.step for message in link.of(Checkpoint)] == [1, 2]


def test_a_job_stopped_before_it_trains_has_no_checkpoint(make_job: MakeJob, make_start: MakeStart) -> None:
    link = RecordingLink(reason=StopReason.CANCEL)

    done = train(make_start(make_job()), link)

    assert done.stopped is StopReason.CANCEL
    assert link.of(Checkpoint) == []


def test_what_an_interrupted_save_left_is_cleared(make_job: MakeJob, make_start: MakeStart) -> None:
    start = make_start(make_job(steps=1))
    left = Path(start.work_dir) / "checkpoints" / ".partial-step-3"
    left.mkdir(parents=True)

    train(start, RecordingLink())

    assert not left.exists()


@pytest.mark.processes
def test_a_process_killed_at_any_moment_leaves_a_checkpoint_to_go_on_from(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path, base: Path
) -> None:
    job = make_job(steps=3000, checkpoint={"every": 1}, evaluation={"every": 10_000})
    output = tmp_path / "killed"
    code = (
        "import pathlib, sys; from graft_scheduler.jobs import parse_job; from graft_worker import train; "
        "train(parse_job(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, job.model_dump_json(), str(output)])
    try:
        for moment in range(6):
            wait_for_checkpoint(output, after=moment)
            time.sleep(random.Random(moment).uniform(0.0, 0.05))
            stop(child.pid)
            survivor = shutil.copytree(output / "checkpoints", tmp_path / f"moment-{moment}")
            check_newest(survivor, base)
            os.kill(child.pid, signal.SIGCONT)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()

    newest = newest_checkpoint(output / "checkpoints")
    step = json.loads((newest / "state.json").read_text())["state"]["step"]
    link = stop_at_step(step + 2)
    train(make_start(job, resume_dir=str(newest)), link)

    assert link.of(Checkpoint)[0].step == step + 1


def wait_for_checkpoint(output: Path, after: int, deadline_seconds: float = 60.0) -> None:
    """Until more than `after` checkpoints were written."""
    end = time.monotonic() + deadline_seconds
    while time.monotonic() < end:
        steps = [int(path.name.removeprefix("step-")) for path in output.glob("checkpoints/step-*")]
        if steps and max(steps) > after:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint after {deadline_seconds} seconds")


def stop(pid: int) -> None:
    """Halt the process, and come back when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def newest_checkpoint(folder: Path) -> Path:
    return max(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def check_newest(folder: Path, base: Path) -> None:
    newest = newest_checkpoint(folder)
    mlx_lm.load(str(base), adapter_path=str(newest))
    state = json.loads((newest / "state.json").read_text())["state"]
    assert newest.name == f"step-{state['step']}"
