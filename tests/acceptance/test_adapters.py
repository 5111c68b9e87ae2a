"""What a job leaves, from its first checkpoint to the day when nobody wants it: real training, real hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.checkpoints import Which, best_of
from graft_scheduler.jobs import TrainJob
from graft_scheduler.states import Digest, JobState
from tests.acceptance.test_training import start, train_job
from tests.services import Fleet, eventually, has_left

pytestmark = pytest.mark.processes

GRAFT = str(Path(sys.executable).parent / "graft")
DAY_SECONDS = 86_400


def graft(fleet: Fleet, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GRAFT, *words], capture_output=True, text=True, timeout=60, env=fleet.environment, check=False
    )


def answer(fleet: Fleet, *words: str) -> Any:
    done = graft(fleet, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def let_days_pass(store: Path) -> None:
    """Everything that is in the store now was stored two days ago."""
    then = time.time() - 2 * DAY_SECONDS
    for blob in (store / "blobs").rglob("*"):
        os.utime(blob, (then, then))


def long_job(base: Path, data: Path) -> TrainJob:
    return train_job(
        base,
        data,
        steps=150,
        checkpoint={"every": 10},
        evaluation={"every": 10},
        optimizer={"learning_rate": 0.1},
    )


def test_what_is_wanted_of_a_job_outlives_its_host_and_the_garbage_collection(
    fleet: Fleet, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    client = start(fleet)
    workers = {name: fleet.start_worker(name) for name in ("one", "two")}
    fleet.wait_for_hosts(2)
    job = client.submit(long_job(tiny_base, tiny_data)).id
    first = eventually(lambda: client.get(job).checkpoints, what="a checkpoint")[0]
    early = client.adapters.tag(job, "early", "last").step
    assert early is not None
    assert early >= first.step
    pulled = client.pull(job, tmp_path / "running", "last")
    assert {path.name for path in pulled.iterdir()} == {
        *("adapters.safetensors", "adapter_config.json", "README.md", "graft.json")
    }

    victim = workers[str(client.get(job).host_name)]
    (runner,) = victim.runners()
    victim.kill()
    eventually(lambda: has_left(runner), 1)
    record = client.wait(job, 90)

    assert (record.state, record.token) == (JobState.COMPLETED, 2)
    best, last = best_of(record.checkpoints), record.checkpoints[-1]
    assert best is not None
    assert last.step == 150
    assert {one.step for one in record.checkpoints} == {early, best.step, 150}
    said = {
        event.data["digest"]: event.data["loss"] for event in client.events(job) if event.name == "checkpoint"
    }
    assert best.loss == pytest.approx(min(loss for loss in said.values() if loss is not None))
    superseded = [
        Digest(digest) for digest in said if digest not in {one.digest for one in record.checkpoints}
    ]
    assert superseded
    client.adapters.tag(job, "sql-v1")

    young = client.find_garbage()
    let_days_pass(fleet.folder / "store")
    planned = answer(fleet, "gc", "--dry-run")
    done = answer(fleet, "gc", "--yes")

    assert young.blobs == ()
    kinds = {one["kind"] for one in planned["kinds"]}
    assert kinds - {"file"} == {"checkpoint"}, "and files of a folder that the killed worker did not complete"
    assert planned["removed"] is None
    assert done["removed"]["bytes"] == planned["bytes"] > 0
    depot = client.store().depot
    assert all(depot.size(digest) is None for digest in superseded)
    wanted: list[Which | None] = [None, "best", "last", early]
    for number, which in enumerate(wanted):
        mlx_lm.load(str(tiny_base), adapter_path=str(client.pull(job, tmp_path / str(number), which)))
    assert client.pull("sql-v1", tmp_path / "tagged").is_dir()
    assert any("attempt 1 on" in line for line in client.log_lines(job))
    assert any("attempt 2 on" in line for line in client.log_lines(job))
    assert [log.is_whole for log in record.logs] == [False, True]
    card = client.adapters.card("early")
    assert (card.what, card.step, card.base.name) == ("checkpoint", early, tiny_base.name)
    assert client.find_garbage().blobs == ()
