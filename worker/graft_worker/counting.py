"""The handler of count jobs: everything a training job does to the service, without MLX."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from graft_scheduler.jobs import CountJob
from graft_scheduler.messages import (
    Checkpoint,
    Done,
    PhaseChanged,
    Planned,
    Progress,
    Ready,
    Start,
    TrainResult,
)
from graft_scheduler.states import FailureClass, Phase, StopReason
from graft_worker.link import JobError, Link

COUNT_FILE = "count.json"
STEPS_FILE = "steps.log"
"""A line for every step that this attempt took, with the process that took it."""


def count(start: Start, link: Link) -> Done:
    """Count up to the job's steps, from the checkpoint if there is one."""
    if not isinstance(start.spec, CountJob):
        raise JobError(FailureClass.CONFIG, f"a {start.spec.kind} job came to the handler of count jobs")
    spec, first = start.spec, _first_step(start)
    who = {"job": start.job, "token": start.token}
    link.report(Ready.model_validate({**who, "seconds": 0.0}))
    plan = {"first_step": first, "steps": spec.steps, "train_rows": 0, "valid_rows": 0}
    link.report(Planned.model_validate({**who, **plan}))
    link.report(PhaseChanged(job=start.job, token=start.token, phase=Phase.TRAINING))
    for step in range(first + 1, spec.steps + 1):
        if (reason := link.stop_reason()) is not None:
            return _stopped(start, link, step - 1, reason)
        _take_step(start, spec, step)
        link.report(Progress(job=start.job, token=start.token, step=step, steps=spec.steps))
        if step % spec.checkpoint_every == 0:
            _checkpoint(start, link, step)
    return _finished(start, spec)


def _first_step(start: Start) -> int:
    if start.resume_dir is None:
        return 0
    try:
        return int(json.loads((Path(start.resume_dir) / COUNT_FILE).read_text())["count"])
    except (OSError, ValueError, KeyError) as error:
        raise JobError(FailureClass.STORE, f"checkpoint {start.resume_dir}: {error}") from error


def _take_step(start: Start, spec: CountJob, step: int) -> None:
    with (Path(start.work_dir) / STEPS_FILE).open("a") as log:
        log.write(f"{os.getpid()} {step}\n")
    time.sleep(spec.step_seconds)
    if step == spec.fail_at:
        raise JobError(FailureClass.INTERNAL, f"`fail_at` is {step}, so it failed at step {step}")


def _checkpoint(start: Start, link: Link, step: int) -> None:
    folder = _write(Path(start.work_dir) / "checkpoints" / f"step-{step}", step)
    link.report(Checkpoint(job=start.job, token=start.token, step=step, path=str(folder)))


def _stopped(start: Start, link: Link, step: int, reason: StopReason) -> Done:
    _checkpoint(start, link, step)
    return Done(job=start.job, token=start.token, stopped=reason)


def _finished(start: Start, spec: CountJob) -> Done:
    output = _write(Path(start.work_dir) / "adapter", spec.steps)
    result = TrainResult(steps=spec.steps, facts={"counted": spec.steps})
    return Done(job=start.job, token=start.token, result=result, output_dir=str(output))


def _write(folder: Path, step: int) -> Path:
    aside = folder.with_name(f".{folder.name}")
    aside.mkdir(parents=True, exist_ok=True)
    (aside / COUNT_FILE).write_text(json.dumps({"count": step}))
    if not folder.exists():
        aside.replace(folder)
    return folder
