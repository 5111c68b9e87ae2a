"""A runner process: what it says, and when it leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from graft_scheduler.channel import Channel, sleepless_clock
from graft_scheduler.jobs import CountJob
from graft_scheduler.messages import (
    Checkpoint,
    Done,
    Extend,
    Failed,
    Hello,
    RunnerMessage,
    Start,
    Stop,
)
from graft_scheduler.runner_process import EXIT_DEADLINE, RunnerProcess
from graft_scheduler.states import FailureClass, JobId, StopReason, Token
from graft_worker.link import Link
from graft_worker.runner import DONE_MARKER, Handler, Handlers, JobLink
from graft_worker.runner import run as run_job
from tests.services import eventually, has_left

pytestmark = pytest.mark.processes

JOB, TOKEN = JobId("j"), Token(1)


def start(
    folder: Path,
    life_seconds: float = 60,
    resume: Path | None = None,
    job: JobId = JOB,
    stay_seconds: float = 0.0,
    **spec: Any,
) -> Start:
    return Start(
        job=job,
        token=TOKEN,
        spec=CountJob(**spec),
        work_dir=str(folder),
        resume_dir=None if resume is None else str(resume),
        log_path=str(folder / "log.txt"),
        stay_seconds=stay_seconds,
        deadline=sleepless_clock() + life_seconds,
    )


def hear(runner: RunnerProcess) -> list[RunnerMessage]:
    """Everything until the end."""
    heard = []
    try:
        while True:
            if (message := runner.receive(20)) is not None:
                heard.append(message)
    except EOFError:
        return heard


def last_word(runner: RunnerProcess) -> RunnerMessage:
    """What it says last on a job, after which it may wait for another."""
    while True:
        message = runner.receive(20)
        assert message is not None
        if isinstance(message, Done | Failed):
            return message


def run(folder: Path, **changes: Any) -> tuple[list[RunnerMessage], int]:
    runner = RunnerProcess.spawn(folder / "log.txt")
    runner.send(start(folder, **changes))
    heard = hear(runner)
    return heard, runner.close()


def test_a_job_is_done_and_marked_before_it_is_said(tmp_path: Path) -> None:
    heard, exit_code = run(tmp_path, steps=3, step_seconds=0)

    assert isinstance(heard[0], Hello)
    assert isinstance(heard[-1], Done)
    assert exit_code == 0
    assert Done.model_validate_json((tmp_path / DONE_MARKER).read_text()) == heard[-1]


def test_a_stop_saves_a_checkpoint_that_another_runner_goes_on_from(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    runner = RunnerProcess.spawn(first / "log.txt")
    runner.send(start(first, steps=10_000, step_seconds=0.01, checkpoint_every=10_000))
    eventually(lambda: (first / "steps.log").exists())
    runner.send(Stop(job=JOB, token=TOKEN, reason=StopReason.YIELD))
    *_, checkpoint, done = hear(runner)
    runner.close()

    assert isinstance(checkpoint, Checkpoint)
    assert isinstance(done, Done)
    assert done.stopped is StopReason.YIELD
    assert not (first / DONE_MARKER).exists()
    run(second, resume=Path(checkpoint.path), steps=checkpoint.step + 2, step_seconds=0)
    steps = [int(line.split()[1]) for line in (second / "steps.log").read_text().splitlines()]
    assert steps == [checkpoint.step + 1, checkpoint.step + 2]


def test_a_failure_is_said_with_its_class(tmp_path: Path) -> None:
    heard, _ = run(tmp_path, steps=3, fail_at=2, step_seconds=0)

    assert isinstance(heard[-1], Failed)
    assert heard[-1].failure is FailureClass.INTERNAL


@pytest.mark.parametrize(
    ("number", "failure"), [(errno.ENOSPC, "store"), (errno.EDQUOT, "store"), (errno.EIO, "host")]
)
def test_a_full_disk_is_the_stores_failure_and_a_broken_one_the_hosts(
    tmp_path: Path, number: int, failure: str
) -> None:
    def write(order: Start, link: Link) -> Done:
        raise OSError(number, os.strerror(number))

    class Writing(Handlers):
        def choose(self, order: Start) -> Handler:
            return write

    order = start(tmp_path)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        said = run_job(order, JobLink(order, Channel(ours)), Writing())

    assert isinstance(said, Failed)
    assert said.failure == failure
    assert said.is_disk_full == (failure == "store")


def test_a_checkpoint_that_cannot_be_read_is_the_stores_fault(tmp_path: Path) -> None:
    heard, _ = run(tmp_path, resume=tmp_path / "nothing", steps=1)

    assert isinstance(heard[-1], Failed)
    assert heard[-1].failure is FailureClass.STORE


def test_an_error_nobody_foresaw_is_internal_and_its_traceback_is_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "count.json").write_text('{"count": []}')

    heard, _ = run(tmp_path, resume=tmp_path / "checkpoint", steps=1)

    assert isinstance(heard[-1], Failed)
    assert heard[-1].failure is FailureClass.INTERNAL
    assert "TypeError" in heard[-1].text
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_runner_leaves_at_its_deadline(tmp_path: Path) -> None:
    heard, exit_code = run(tmp_path, life_seconds=1, steps=10_000)

    assert exit_code == EXIT_DEADLINE
    assert not any(isinstance(message, Done | Failed) for message in heard)


def test_an_extended_runner_lives_on(tmp_path: Path) -> None:
    runner = RunnerProcess.spawn(tmp_path / "log.txt")
    runner.send(start(tmp_path, life_seconds=4, steps=100, step_seconds=0.05))
    runner.send(Extend(job=JOB, token=TOKEN, deadline=sleepless_clock() + 60))

    assert isinstance(hear(runner)[-1], Done)
    runner.close()


def test_a_runner_that_stays_does_the_next_job_and_prints_to_its_log(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    runner = RunnerProcess.spawn(first / "log.txt")
    runner.send(start(first, steps=1, step_seconds=0, stay_seconds=60))
    assert isinstance(last_word(runner), Done)
    (second / "count.json").write_text('{"count": []}')
    runner.send(start(second, job=JobId("k"), resume=second, stay_seconds=60))

    hello, failed = hear(runner)

    assert isinstance(hello, Hello)
    assert (hello.pid, hello.job) == (runner.pid, "k")
    assert isinstance(failed, Failed)
    assert runner.close() == 0  # it does not stay after a failure
    assert (first / "log.txt").read_text() == ""
    assert "TypeError" in (second / "log.txt").read_text()


def test_what_is_said_of_an_earlier_job_does_not_reach_the_next(tmp_path: Path) -> None:
    runner = RunnerProcess.spawn(tmp_path / "log.txt")
    runner.send(start(tmp_path, steps=1, step_seconds=0, stay_seconds=60))
    last_word(runner)
    runner.send(Stop(job=JOB, token=TOKEN, reason=StopReason.CANCEL))  # it came too late
    runner.send(start(tmp_path, job=JobId("k"), steps=20, step_seconds=0.01))
    runner.send(Stop(job=JOB, token=TOKEN, reason=StopReason.CANCEL))
    runner.send(Extend(job=JOB, token=TOKEN, deadline=sleepless_clock() - 1))

    *_, done = hear(runner)
    runner.close()

    assert isinstance(done, Done)
    assert (done.job, done.stopped) == ("k", None)


def test_a_runner_that_nobody_needs_leaves(tmp_path: Path) -> None:
    runner = RunnerProcess.spawn(tmp_path / "log.txt")
    runner.send(start(tmp_path, steps=1, step_seconds=0, stay_seconds=0.3))
    last_word(runner)

    eventually(lambda: not runner.is_alive, 3, "it waits no longer")
    assert runner.close() == EXIT_DEADLINE


def test_a_runner_that_a_person_stopped_does_not_stay(tmp_path: Path) -> None:
    runner = RunnerProcess.spawn(tmp_path / "log.txt")
    runner.send(start(tmp_path, steps=10_000, step_seconds=0.01, stay_seconds=60))
    eventually(lambda: (tmp_path / "steps.log").exists())
    runner.send(Stop(job=JOB, token=TOKEN, reason=StopReason.CANCEL))

    *_, done = hear(runner)

    assert isinstance(done, Done)
    assert runner.close() == 0


PARENT = """
import sys, time
from pathlib import Path
from graft_scheduler.runner_process import RunnerProcess
from graft_scheduler.messages import Done, Start
folder = Path(sys.argv[1])
runner = RunnerProcess.spawn(folder / "log.txt")
start = Start.model_validate_json(sys.stdin.read())
runner.send(start)
while start.stay_seconds and not isinstance(runner.receive(20), Done):
    pass
print(runner.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("job", [{"steps": 10_000}, {"steps": 1, "stay_seconds": 60}])
def test_a_runner_leaves_within_a_second_of_its_parents_death(tmp_path: Path, job: dict[str, Any]) -> None:
    order = start(tmp_path, **job).model_dump_json()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        parent.stdin.write(order)
        parent.stdin.close()
        runner = psutil.Process(int(parent.stdout.readline()))
        eventually((tmp_path / "steps.log").exists)

        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()

    eventually(lambda: has_left(runner), 1, "the orphan leaves")


def test_a_runner_is_told_none_of_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_REDIS_URL", "redis://ada:secret@lab:6379/0")
    runner = RunnerProcess.spawn(tmp_path / "log.txt")

    environment = psutil.Process(runner.pid).environ()
    runner.kill()
    runner.close()

    assert "secret" not in json.dumps(environment)
