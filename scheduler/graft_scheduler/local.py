"""Runs one job on this machine without a queue: `graft train --local`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from graft_scheduler import submission
from graft_scheduler.basemodels import local_folder
from graft_scheduler.channel import sleepless_clock
from graft_scheduler.data.opening import lay_out
from graft_scheduler.errors import Conflict, InvalidInput, JobFailed
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Done, Extend, Failed, Log, RunnerMessage, Start, Stop, TrainResult
from graft_scheduler.runner_process import RunnerProcess
from graft_scheduler.states import JobId, StopReason, Token
from graft_scheduler.submission import Resolved

JOB = JobId("local")
TOKEN = Token(1)
LOG_NAME = "log.txt"
TICK_SECONDS = 0.5
LIFE_SECONDS = 60.0
"""How long the runner may live without a word from here."""
STOP_SECONDS = 30.0
"""How long it may take to save a checkpoint when it is told to stop."""


def run_locally(
    job: TrainJob,
    output: Path,
    on_message: Callable[[RunnerMessage], None],
    is_interrupted: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train in a runner of our own; the adapter ends up in `output/adapter`, the log in `output/log.txt`.

    A checkpoint that an interrupted run left in `output` is gone on from.

    Raises:
        KeyboardInterrupt: `is_interrupted` said so; a checkpoint is saved.
        InvalidInput: the job, its model or its data can never work.
        Conflict: `output` holds a finished adapter already.
        JobFailed: training could not go on; says why.
    """
    resolved = submission.resolve(job)
    output = output.expanduser().absolute()
    if (output / "adapter").exists():
        raise Conflict(f"{output}/adapter exists; name another --output or remove it")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"`--output` is {output}, which cannot be made: {error.strerror}") from error
    runner = RunnerProcess.spawn(output / LOG_NAME)
    try:
        runner.send(_start(resolved, output))
        return _relay(runner, output / LOG_NAME, on_message, is_interrupted)
    finally:
        runner.close()


def _start(resolved: Resolved, output: Path) -> Start:
    job = resolved.spec
    checkpoints = sorted((output / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    folder = local_folder(job.model.source)
    return Start(
        job=JOB,
        token=TOKEN,
        spec=job,
        work_dir=str(output),
        model_dir=None if folder is None else str(folder),
        data_dir=str(_data_folder(resolved, output)),
        resume_dir=str(checkpoints[-1]) if checkpoints else None,
        deadline=sleepless_clock() + LIFE_SECONDS,
    )


def _data_folder(resolved: Resolved, output: Path) -> Path:
    """A folder with the names that a runner expects."""
    assert resolved.opened is not None  # it comes from `resolve`
    lay_out(*resolved.opened, output / "data")
    return output / "data"


def _relay(
    runner: RunnerProcess,
    log_path: Path,
    on_message: Callable[[RunnerMessage], None],
    is_interrupted: Callable[[], bool],
) -> TrainResult:
    try:
        while True:
            message = runner.receive(TICK_SECONDS)
            runner.send(Extend(job=JOB, token=TOKEN, deadline=sleepless_clock() + LIFE_SECONDS))
            if message is not None:
                on_message(message)
            if isinstance(message, Log):
                with log_path.open("a") as log:
                    log.write(message.text + "\n")
            if isinstance(message, Failed):
                raise JobFailed(f"{message.failure}: {message.text}")
            if isinstance(message, Done):
                return _result(message)
            if is_interrupted():
                raise KeyboardInterrupt
    except EOFError as error:
        raise JobFailed(f"the runner died (exit code {runner.close()}); see {log_path}") from error
    except KeyboardInterrupt:
        if (done := _stop(runner, on_message)) is not None:
            return _result(done)
        raise


def _stop(runner: RunnerProcess, on_message: Callable[[RunnerMessage], None]) -> Done | None:
    """Let the runner save a checkpoint and leave; what it made, if it was done just then."""
    deadline = time.monotonic() + STOP_SECONDS
    runner.send(Stop(job=JOB, token=TOKEN, reason=StopReason.CANCEL))
    try:
        while time.monotonic() < deadline:
            message = runner.receive(TICK_SECONDS)
            if message is not None:
                on_message(message)
            if isinstance(message, Done) and message.stopped is None:
                return message
            if isinstance(message, Done | Failed):
                return None
    except EOFError:
        pass
    return None


def _result(done: Done) -> TrainResult:
    if done.result is None:
        raise JobFailed("the runner stopped before it had a result")
    return done.result
