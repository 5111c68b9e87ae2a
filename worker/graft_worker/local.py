"""Training in this process, with no queue, no supervisor and no store."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from graft_scheduler.channel import sleepless_clock
from graft_scheduler.data.opening import inspect_source, lay_out, open_source
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Evaluated, Log, Progress, RunnerMessage, Start, TrainResult
from graft_scheduler.states import FailureClass, JobId, StopReason, Token
from graft_worker.link import JobError

DAY_SECONDS = 86_400.0


class LocalLink:
    """Hands every message to a function; never asks for anything."""

    def __init__(self, tell: Callable[[RunnerMessage], None]) -> None:
        self._tell = tell

    def report(self, message: RunnerMessage) -> None:
        self._tell(message)

    def stop_reason(self) -> StopReason | None:
        return None

    def shrink_requested(self) -> bool:
        return False


def print_message(message: RunnerMessage) -> None:
    """A line on stderr for what a person wants to see."""
    match message:
        case Progress():
            line = f"step {message.step}/{message.steps}: loss {message.loss:.4f}"
        case Evaluated():
            line = f"after step {message.step}: validation loss {message.loss:.4f}"
        case Log():
            line = message.text
        case _:
            return
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def train(
    job: TrainJob,
    output: Path,
    *,
    resume_from: Path | None = None,
    tell: Callable[[RunnerMessage], None] = print_message,
) -> TrainResult:
    """Train `job` here; the adapter goes to `output/adapter`, checkpoints beside it.

    `job.model.source` is a folder or a hub id, `job.data.source` a file or folder. What happens
    is told to `tell`; by default, lines on stderr.

    Raises:
        InvalidInput: `output` holds something already, and nothing says to go on from it.
        JobError: the job failed; its class says how.
    """
    from graft_worker.engine.training import train as run  # MLX and mlx-lm: some seconds

    folder = output.expanduser().absolute()
    if resume_from is None and folder.is_dir() and any(folder.iterdir()):
        raise InvalidInput(
            f"the output folder {folder} is not empty; name another, or a checkpoint to go on from"
        )
    folder.mkdir(parents=True, exist_ok=True)
    job = _at_home(job)
    done = run(_start(job, folder, _prepare_data(job, folder), resume_from), LocalLink(tell))
    assert done.result is not None  # only a stop ends without one, and nobody asks for it
    return done.result


def _at_home(job: TrainJob) -> TrainJob:
    """The job with the `~` of its model and its data written out."""
    places = {
        name: ref.model_copy(update={"source": os.path.expanduser(ref.source)})
        for name, ref in (("model", job.model), ("data", job.data))
    }
    return job.model_copy(update=places)


def _prepare_data(job: TrainJob, folder: Path) -> Path:
    """The data set in the form in which it is trained, in a folder of the output's.

    Raises:
        JobError: it is not accepted; names the first few faults by file and line.
    """
    data = folder / "data"
    try:
        source = open_source(job.data)
        lay_out(source, inspect_source(source).require(), data)
    except InvalidInput as error:
        raise JobError(FailureClass.DATA, str(error)) from error
    return data


def _start(job: TrainJob, folder: Path, data: Path, resume_from: Path | None) -> Start:
    return Start(
        job=JobId(f"local-{secrets.token_hex(4)}"),
        token=Token(0),
        spec=job,
        work_dir=str(folder),
        data_dir=str(data),
        resume_dir=str(resume_from.expanduser().absolute()) if resume_from else None,
        deadline=sleepless_clock() + DAY_SECONDS,
    )
