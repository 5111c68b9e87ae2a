"""The command line against a real service: what waits, what never fits, what is interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.jobs import CountJob
from graft_scheduler.states import JobState
from tests.services import Fleet, eventually, free_port

pytestmark = pytest.mark.processes

GRAFT = str(Path(sys.executable).parent / "graft")


def graft(fleet: Fleet, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {**fleet.environment, **changes}
    return subprocess.run(
        [GRAFT, *words], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


def train(base: Path, data: Path, *more: str) -> list[str]:
    return ["train", "-m", str(base), "-d", str(data), "--steps", "2", "--batch-size", "2", *more]


def test_json_is_one_document_for_every_verb_that_prints_data(
    fleet: Fleet, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    fleet.start_scheduler()
    fleet.start_worker("one")
    fleet.wait_for_hosts(1)

    def answer(*words: str) -> Any:
        done = graft(fleet, *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    job = answer(*train(tiny_base, tiny_data))["id"]
    assert answer("wait", job)["state"] == "completed"
    assert answer("show", job)["id"] == job
    assert answer("logs", job)
    assert Path(answer("pull", job, "--output", str(tmp_path / "adapter"))["adapter"]).is_dir()
    stopped = fleet.client().submit(CountJob(steps=100_000)).id
    assert answer("cancel", stopped)["id"] == stopped
    fleet.client().wait(stopped, 20)
    assert answer("retry", stopped)["id"] == stopped
    assert answer("hosts")


def test_a_job_that_never_fits_ends_waiting_with_6_and_one_that_waits_for_room_with_5(
    fleet: Fleet, tiny_base: Path, tiny_data: Path
) -> None:
    fleet.start_scheduler()
    fleet.start_worker("one")
    fleet.wait_for_hosts(1)

    never = graft(
        fleet, *train(tiny_base, tiny_data, "--wait", "--set", "limits.memory_bytes=1000000000000000")
    )
    running = fleet.client().submit(CountJob(steps=100_000))
    eventually(lambda: running.record().state is JobState.RUNNING)
    full = graft(fleet, *train(tiny_base, tiny_data, "--wait", "--timeout", "3"))

    assert never.returncode == 6
    assert "one: too small: the job needs" in never.stderr
    assert full.returncode == 5
    assert "busy: 1 of 1 slots in use" in full.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--set", "rank=0"], "`adapter.rank` is 0; it must be at least 1"),
        (["--method", "lorra"], "`method` is 'lorra'"),
        (["--set", "learning_rat=1"], "did you mean `learning_rate`?"),
        (["--layers", "99"], "`adapter.layers` is 99"),
    ],
)
def test_bad_settings_exit_2_and_queue_nothing(
    fleet: Fleet, tiny_base: Path, tiny_data: Path, words: list[str], complaint: str
) -> None:
    done = graft(fleet, *train(tiny_base, tiny_data, *words))

    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert fleet.client().jobs() == []


def test_malformed_rows_exit_2_with_file_and_line(fleet: Fleet, tiny_base: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "one"}\n{"text": \n')

    done = graft(fleet, *train(tiny_base, data))

    assert done.returncode == 2
    assert f"{data}:2: is not JSON" in done.stderr
    assert fleet.client().jobs() == []


@pytest.mark.parametrize("words", [["ps"], ["scheduler"], ["flower"], ["worker"]])
def test_without_redis_there_is_one_clear_line_and_exit_8(fleet: Fleet, words: list[str]) -> None:
    absent = f"redis://127.0.0.1:{free_port()}/0"

    done = graft(fleet, *words, GRAFT_REDIS_URL=absent, GRAFT_FLOWER_PASSWORD="secret-word")

    assert done.returncode == 8
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret-word" not in done.stderr


def test_a_local_training_that_is_interrupted_goes_on_where_it_was(
    fleet: Fleet, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = ["train", "-m", str(tiny_base), "-d", str(tiny_data), "--local", "--output", str(output)]
    words += ["--steps", "400", "--batch-size", "8", "--set", "checkpoint.every=1000"]
    words += ["--set", "evaluation.every=1000"]  # whose best state would be kept too
    environment = {**fleet.environment, "PYTHONUNBUFFERED": "1"}
    training = subprocess.Popen([GRAFT, *words], stderr=subprocess.PIPE, text=True, env=environment)
    assert training.stderr is not None
    with training.stderr as told:
        while not re.search(r"step [1-9]\d*/400", line := told.readline()):
            assert line, "it ended before its first step"
        training.send_signal(signal.SIGINT)
        rest = told.read()
    assert training.wait(40) == 130
    assert "goes on from the checkpoint" in rest
    (checkpoint,) = (output / "checkpoints").glob("step-*")

    again = graft(fleet, *words, "--json")

    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["result"]["steps"] == 400
    assert int(checkpoint.name.removeprefix("step-")) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="writes through /proc")
def test_what_a_dying_runner_prints_below_python_is_in_the_log(
    fleet: Fleet, tiny_base: Path, tiny_data: Path
) -> None:
    fleet.start_scheduler()
    worker = fleet.start_worker("one")
    fleet.wait_for_hosts(1)
    client = fleet.client()
    job = client.submit(CountJob(steps=100_000)).id
    eventually(lambda: client.get(job).resume)
    (runner,) = worker.runners()

    # The runner's own standard error, written to as a library in C would.
    descriptor = os.open(f"/proc/{runner.pid}/fd/2", os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"a last word from below\n")
    os.close(descriptor)
    runner.send_signal(signal.SIGABRT)
    eventually(lambda: client.get(job).token == 2)
    client.cancel(job)
    client.wait(job, 20)

    lines = list(client.log_lines(job))
    assert "a last word from below" in lines
    assert any("the runner was killed (SIGABRT)" in line for line in lines)
