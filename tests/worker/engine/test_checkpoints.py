"""Checkpoints: exact to go on from, refused when they do not fit, whole at any moment."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import psutil
import pytest

from graft_scheduler.hyperparameters import CheckpointConfig
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import (
    Checkpoint,
    Evaluated,
    PhaseChanged,
    Planned,
    Progress,
    RunnerMessage,
    Start,
)
from graft_scheduler.states import FailureClass, Phase, StopReason
from graft_worker.engine.training import train
from graft_worker.link import JobError
from tests.worker.engine.tiny import RecordingLink

MakeJob = Callable[..., TrainJob]
MakeStart = Callable[..., Start]


BEST = {
    "steps": 12,
    "optimizer": {"learning_rate": 0.1},
    "schedule": {"name": "constant", "warmup": 0.0},
    "evaluation": {"every": 1},
    "checkpoint": {"keep": 1, "output": "best"},
}


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


def test_a_job_that_pauses_at_two_steps_ends_as_if_it_had_not(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    job = make_job(steps=10, evaluation={"every": 4}, checkpoint={"every": 100})
    whole = train(make_start(job, "whole"), RecordingLink())

    folder = None
    for step in (3, 7):
        link = RecordingLink()
        done = train(make_start(job, f"to {step}", resume_dir=folder, pause_step=step), link)
        assert (done.stopped, done.output_dir) == (StopReason.PAUSE, None)
        assert done.result is not None
        assert done.result.steps == step
        assert done.result.final_loss == link.of(Evaluated)[-1].loss
        assert link.of(Evaluated)[-1].step == step
        folder = link.of(Checkpoint)[-1].path
    resumed = train(make_start(job, "resumed", resume_dir=folder), RecordingLink())

    assert are_equal(weights(whole.output_dir), weights(resumed.output_dir))


def test_a_job_that_was_lost_as_it_paused_pauses_again(make_job: MakeJob, make_start: MakeStart) -> None:
    job = make_job()
    link = RecordingLink()
    train(make_start(job, "first", pause_step=2), link)

    again = train(make_start(job, resume_dir=link.of(Checkpoint)[-1].path, pause_step=2), RecordingLink())

    assert again.stopped is StopReason.PAUSE
    assert again.result is not None
    assert again.result.final_loss == link.of(Evaluated)[-1].loss


def test_a_step_to_pause_at_beyond_the_end_is_no_pause(make_job: MakeJob, make_start: MakeStart) -> None:
    done = train(make_start(make_job(steps=3), pause_step=3), RecordingLink())
    assert done.stopped is None
    assert done.output_dir is not None


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
        ({"optimizer": {"learning_rate": 1.0}}, "was made with learning_rate 0.003; this job has 1"),
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
    start = make_start(make_job(checkpoint={"every": 2, "keep": 2}, evaluation={"every": 6}))

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


def test_the_best_checkpoint_stays_and_may_become_the_adapter(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    job = make_job(**BEST)
    start, link = make_start(job), RecordingLink()

    result = train(start, link).result

    assert result is not None
    losses = {message.step: message.loss for message in link.of(Evaluated) if message.step}
    best = min(losses, key=lambda step: losses[step])
    assert best < 12
    assert (result.best_step, result.saved_step, result.steps) == (best, best, 12)
    assert result.perplexity == pytest.approx(math.exp(losses[best]))
    folder = Path(start.work_dir)
    kept = {path.name for path in (folder / "checkpoints").glob("step-*")}
    assert kept == {f"step-{best}", "step-12"}
    assert are_equal(weights(folder / "adapter"), weights(folder / "checkpoints" / f"step-{best}"))


def test_the_best_state_moves_to_another_host_with_the_newest_checkpoint(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    job = make_job(**BEST | {"checkpoint": {"keep": 1, "output": "best", "every": 1}})
    whole = train(make_start(job, "whole"), RecordingLink())
    assert whole.result is not None
    assert whole.result.best_step is not None
    folder = checkpoint_of(job, make_start, whole.result.best_step + 2)
    alone = shutil.move(folder, tmp_path / "moved")
    shutil.rmtree(tmp_path / "interrupted")

    resumed = train(make_start(job, "resumed", resume_dir=str(alone)), RecordingLink())

    assert resumed.result is not None
    assert resumed.result.saved_step == whole.result.saved_step
    assert are_equal(weights(whole.output_dir), weights(resumed.output_dir))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "dora"},
        {"method": "qlora", "quantization": {"bits": 4, "group_size": 32}},
        {"method": "full", "adapter": {}},
        {"optimizer": {"name": "muon", "learning_rate": 1e-3, "lora_plus": 4.0}},
        {"optimizer": {"name": "adafactor", "learning_rate": 1e-3}},
        {"optimizer": {"name": "lion", "learning_rate": 1e-4}, "compute": {"batching": "packed"}},
        {"length_window": 3, "epochs": 1.5, "steps": None, "gradient_checkpointing": True},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values())[:40],
)
def test_every_kind_of_job_goes_on_bit_for_bit(
    make_job: MakeJob, make_start: MakeStart, settings: dict[str, Any]
) -> None:
    job = make_job(**settings, checkpoint={"every": 1})
    whole = train(make_start(job, "whole"), RecordingLink())

    resumed = train(make_start(job, "resumed", resume_dir=checkpoint_of(job, make_start, 3)), RecordingLink())

    assert are_equal(weights(whole.output_dir), weights(resumed.output_dir))


@pytest.mark.parametrize("evaluation", [2, 3, 6, 9, 12])
def test_a_stop_during_an_evaluation_changes_nothing_of_the_best(
    make_job: MakeJob, make_start: MakeStart, evaluation: int
) -> None:
    job = make_job(**BEST)
    whole = train(make_start(job, "whole"), RecordingLink())
    seen = itertools.count(1)

    def stop_when(message: RunnerMessage) -> StopReason | None:
        is_it = isinstance(message, PhaseChanged) and message.phase is Phase.EVALUATING
        return StopReason.YIELD if is_it and next(seen) == evaluation else None

    start = make_start(job, "stopped")
    train(start, RecordingLink(stop_when))
    newest = newest_checkpoint(Path(start.work_dir) / "checkpoints")

    resumed = train(make_start(job, "stopped", resume_dir=str(newest)), RecordingLink())

    assert resumed.result is not None
    assert whole.result is not None
    assert resumed.result.saved_step == whole.result.saved_step
    assert are_equal(weights(whole.output_dir), weights(resumed.output_dir))


def test_a_checkpoint_that_lost_its_best_arrays_is_refused(make_job: MakeJob, make_start: MakeStart) -> None:
    job = make_job(**BEST)
    best = train(make_start(job, "whole"), RecordingLink()).result
    assert best is not None
    assert best.best_step is not None
    often = job.model_copy(update={"checkpoint": every_step(job)})
    folder = checkpoint_of(often, make_start, best.best_step + 1)
    (Path(folder) / "best.safetensors").unlink()

    with pytest.raises(JobError, match=r"best\.safetensors cannot be read"):
        train(make_start(job, "resumed", resume_dir=folder), RecordingLink())


def every_step(job: TrainJob) -> CheckpointConfig:
    return job.checkpoint.model_copy(update={"every": 1})


def test_going_on_in_the_same_folder_keeps_no_more_than_asked(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    job = make_job(steps=12, checkpoint={"every": 2, "keep": 1}, evaluation={"every": 12})
    start = make_start(job)
    train(start, stop_at_step(4))
    folder = Path(start.work_dir) / "checkpoints"
    train(make_start(job, resume_dir=str(folder / "step-4")), stop_at_step(8))

    train(make_start(job, resume_dir=str(folder / "step-8")), RecordingLink())

    assert {path.name for path in folder.glob("step-*")} == {"step-12"}


def test_other_validation_rows_do_not_go_on_from_a_checkpoint(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    folder = checkpoint_of(make_job(), make_start, 2)

    with pytest.raises(JobError, match="was made with validation rows of digest"):
        train(make_start(make_job(evaluation={"rows": 2}), resume_dir=folder), RecordingLink())


@pytest.mark.processes
def test_a_kill_at_any_moment_changes_nothing(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path, base: Path
) -> None:
    job = make_job(
        steps=21,
        adapter={"rank": 4, "dropout": 0.3},
        checkpoint={"every": 1, "keep": 3, "output": "best"},
        evaluation={"every": 9},
    )
    output, survivors = tmp_path / "killed", []
    child = subprocess.Popen([sys.executable, "-c", RUN, job.model_dump_json(), str(output)])
    try:
        for moment in range(8):
            wait_for_checkpoint(output, after=2 * moment)
            time.sleep(random.Random(moment).uniform(0.0, 0.05))
            stop(child.pid)
            # What stands on the disk now is what a kill at this moment would leave.
            survivors.append(shutil.copytree(output / "checkpoints", tmp_path / f"moment-{moment}"))
            os.kill(child.pid, signal.SIGCONT)
    finally:
        child.kill()
        child.wait()
    whole = weights(train(make_start(job, "whole"), RecordingLink()).output_dir)

    seldom = job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"every": 100})})
    for moment, survivor in enumerate(survivors):
        check_newest(survivor, base)
        newest = str(newest_checkpoint(survivor))
        resumed = train(make_start(seldom, f"resumed-{moment}", resume_dir=newest), RecordingLink())
        assert are_equal(whole, weights(resumed.output_dir))


RUN = """
import pathlib, sys
from graft_scheduler.jobs import parse_job
from graft_worker import train
train(parse_job(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


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
