"""Real fine-tunes through the whole service: submitted, placed, trained, interrupted, fetched."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from graft_scheduler import fleet as fleet_state
from graft_scheduler.client import Client
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.records import JobRecord
from graft_scheduler.redis_connection import connect
from graft_scheduler.states import JobState
from tests.services import Fleet, eventually, has_left

pytestmark = pytest.mark.processes

GIB = 1 << 30


def train_job(base: Path, data: Path, **changes: Any) -> TrainJob:
    settings = {
        "model": str(base),
        "data": str(data),
        "batch_size": 2,
        "steps": 8,
        "adapter": {"rank": 4, "dropout": 0.1},
        "optimizer": {"learning_rate": 1e-2},
        "checkpoint": {"every": 2},
        **changes,
    }
    return TrainJob.model_validate(settings)


def start(fleet: Fleet, *workers: str) -> Client:
    fleet.start_scheduler()
    for name in workers:
        fleet.start_worker(name)
    fleet.wait_for_hosts(len(workers))
    return fleet.client()


def pulled(client: Client, record: JobRecord, folder: Path) -> dict[str, Any]:
    return dict(load_file(client.pull(record.id, folder / record.id) / "adapters.safetensors"))


def test_a_fine_tune_learns_and_its_adapter_loads_in_stock_mlx_lm(
    fleet: Fleet, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx

    client = start(fleet, "one")
    record = client.submit(train_job(tiny_base, tiny_data, epochs=4, steps=None)).wait(90)

    result = record.result
    assert result is not None
    assert result.initial_loss is not None
    assert result.final_loss is not None
    assert result.final_loss < result.initial_loss - 0.2
    adapter = client.pull(record.id, tmp_path / "adapter")
    base, tokenizer = mlx_lm.load(str(tiny_base))
    tuned, _ = mlx_lm.load(str(tiny_base), adapter_path=str(adapter))
    tokens = mx.array([tokenizer.encode("apple pear plum")])
    assert not mx.allclose(base(tokens), tuned(tokens), atol=1e-2).item()
    assert any("attempt 1 on one" in line for line in client.log_lines(record.id))


def test_a_fine_tune_whose_worker_was_killed_ends_with_the_same_weights_to_the_bit(
    fleet: Fleet, tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """The hosts share no folder: model, data and checkpoint come to them through the gateway."""
    gateway = fleet.start_gateway()
    fleet.start_scheduler()
    workers = {name: fleet.start_worker(name) for name in ("one", "two")}
    fleet.wait_for_hosts(2)
    client = fleet.client()
    job = train_job(tiny_base, tiny_data, steps=120)
    undisturbed = client.submit(job).wait(90)

    disturbed = client.submit(job).id
    eventually(lambda: client.get(disturbed).resume, what="a checkpoint")
    victim = workers[str(client.get(disturbed).host_name)]
    (runner,) = victim.runners()
    victim.signal(signal.SIGKILL)
    eventually(lambda: has_left(runner), 1, "the runner leaves while MLX computes")
    record = client.wait(disturbed, 90)

    assert record.state is JobState.COMPLETED
    assert record.token == 2
    assert gateway.is_alive
    assert not (fleet.folder / "store").exists()
    before, after = pulled(client, undisturbed, tmp_path), pulled(client, record, tmp_path)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_a_cancel_reaches_a_fine_tune_within_two_seconds_and_a_retry_goes_on(
    fleet: Fleet, tiny_base: Path, tiny_data: Path
) -> None:
    client = start(fleet, "one")
    job = client.submit(train_job(tiny_base, tiny_data, steps=2000, checkpoint={"every": 100})).id
    eventually(lambda: (progress := client.get(job).progress) and progress.step > 2)
    runners = fleet.runner_pids()

    client.cancel(job)
    record = client.wait(job, 10)
    at = {event.name: event.at for event in client.events(job)}

    assert at["cancelled"] - at["cancelling"] < 2.5
    assert record.state is JobState.CANCELLED
    assert record.resume is not None
    eventually(lambda: not set(runners) & set(fleet.runner_pids()), 1, "its memory is free")
    client.retry(job)
    eventually(lambda: client.get(job).token == 2 and client.get(job).state is JobState.RUNNING)
    eventually(lambda: [event for event in client.events(job) if event.name == "planned"][1:])
    planned = [event for event in client.events(job) if event.name == "planned"]
    assert planned[-1].data["first_step"] == record.resume.step
    client.cancel(job)
    client.wait(job, 10)


def test_a_job_that_cannot_be_trained_fails_with_its_reason(
    fleet: Fleet, tiny_base: Path, tiny_data: Path
) -> None:
    client = start(fleet, "one")
    job = client.submit(train_job(tiny_base, tiny_data, adapter={"targets": ["no_such_layer"]})).id

    record = client.wait(job, 60)

    assert record.state is JobState.FAILED
    assert record.failure is not None
    assert (record.failure.failure, record.token) == ("config", 1)
    assert "no_such_layer" in record.failure.text


def test_two_workers_of_one_machine_stay_within_its_memory_while_they_are_killed(fleet: Fleet) -> None:
    fleet.start_scheduler()
    workers = {name: fleet.start_worker(name, "--slots", "2") for name in ("one", "two")}
    fleet.wait_for_hosts(2)
    client = fleet.client()
    machine_bytes = client.hosts()[0].info.machine_bytes
    third = machine_bytes // 3
    jobs = [client.submit(CountJob(steps=10, memory_bytes=third)).id for _ in range(10)]
    most = 0
    victims = ["one", "two", "one"]
    deadline = time.monotonic() + 90
    with connect(fleet.redis.url) as redis:
        while time.monotonic() < deadline:
            committed = sum(held.bytes for held in fleet_state.read_commitments(redis))
            most = max(most, committed)
            assert committed <= machine_bytes
            ended = [job for job in jobs if client.get(job).state.is_terminal]
            if len(ended) == len(jobs):
                break
            if victims and len(ended) > 2 * (3 - len(victims)):
                name = victims.pop()
                workers[name].kill()
                workers[name] = fleet.start_worker(name, "--slots", "2")

    assert most == 3 * third  # both were busy, and a fourth job had to wait
    assert not victims
    for job in jobs:
        assert client.get(job).state is JobState.COMPLETED
        ends = [event for event in client.events(job) if event.name == "completed"]
        assert len(ends) == 1
