"""Jobs that run out of memory, by real limits and real signals: they go on, and end with the same result."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.channel import sleepless_clock
from graft_scheduler.client import Client
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.messages import Done, Shrink, Shrunk, Start
from graft_scheduler.records import JobRecord
from graft_scheduler.recovery import CutReport
from graft_scheduler.runner_process import RunnerProcess
from graft_scheduler.states import JobId, JobState, Token
from tests.acceptance.memory_limits import (
    Peak,
    RunnerPeaks,
    can_make_cgroups,
    end_runners,
    limit_address_space,
    limited_cgroup,
)
from tests.services import Fleet, Service, eventually, running_fleet

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as Linux does it"),
]

ROW_TOKENS = 30
LONG = CountJob(steps=100_000, step_seconds=0.02)


@dataclass(frozen=True)
class Bench:
    """A fleet of one worker, and a job whose memory is that of its logits: undisturbed, and cut small."""

    fleet: Fleet
    client: Client
    worker: Service
    job: TrainJob
    undisturbed: JobRecord
    peak: Peak
    small_peak: Peak


@pytest.fixture(scope="module")
def _one_arena() -> Iterator[None]:
    """Each thread's arena takes 64 MiB of address space, or does not: too much to measure beside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_ARENA_MAX", "1")
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, _one_arena: None) -> Iterator[Bench]:
    pytest.importorskip("mlx.core", reason="MLX is not installed: nothing is trained")
    folder = tmp_path_factory.mktemp("memory")
    job = make_job(folder)
    for fleet in running_fleet(folder / "fleet"):
        fleet.start_scheduler()
        worker = fleet.start_worker("one")
        fleet.wait_for_hosts(1)
        client = fleet.client()
        with RunnerPeaks(worker) as peaks:
            undisturbed = client.submit(job).wait(60)
        end_runners(worker)
        with RunnerPeaks(worker) as small_peaks:
            smaller = {"micro_batch_tokens": 2 * ROW_TOKENS, "steps": 1}
            client.submit(job.model_copy(update=smaller)).wait(60)
        end_runners(worker)
        yield Bench(fleet, client, worker, job, undisturbed, peaks.largest(), small_peaks.largest())


def make_job(folder: Path) -> TrainJob:
    from tests.worker.engine.tiny import make_model, make_tokenizer, write_rows

    base = folder / "base"
    base.mkdir()
    make_tokenizer(base)
    make_model(base, hidden_size=16, intermediate_size=32, vocab_size=32768)
    rows = [{"text": (f"{row} apples and pears " * 2)[:ROW_TOKENS]} for row in range(24)]
    return TrainJob.model_validate(
        {
            "model": str(base),
            "data": str(write_rows(folder / "rows.jsonl", rows)),
            "batch_size": 8,
            "micro_batch_tokens": 8 * ROW_TOKENS,
            "steps": 3,
            "adapter": {"rank": 4},
            "compute": {"loss": "plain"},
            "optimizer": {"learning_rate": 1e-2},
            "evaluation": {"every": 3, "rows": 2},
            "checkpoint": {"every": 1},
        }
    )


def final_loss(record: JobRecord) -> float:
    assert record.result is not None
    assert record.result.final_loss is not None
    return record.result.final_loss


def cut_of(record: JobRecord) -> CutReport:
    assert record.result is not None
    return CutReport.model_validate(record.result.facts["cut"])


def between(small: int, large: int) -> int:
    return (small + large) // 2


def events(client: Client, job: str, name: str) -> list[dict[str, Any]]:
    return [event.data for event in client.events(job) if event.name == name]


def assert_recovered(bench: Bench, record: JobRecord) -> None:
    """It failed for memory alone, computed less at once, and came to the same."""
    assert record.state is JobState.COMPLETED
    assert record.memory_failures >= 1
    assert record.charged == 0
    assert record.memory_limit is not None
    assert record.memory_limit.micro_batch_tokens is not None
    assert cut_of(record).tokens <= cut_of(bench.undisturbed).tokens // 2
    assert final_loss(record) == pytest.approx(final_loss(bench.undisturbed), abs=1e-3)


@pytest.mark.parametrize("kind", ["cgroup", "address space"])
def test_a_job_that_is_too_large_for_its_limit_is_cut_until_it_fits(bench: Bench, kind: str) -> None:
    if kind == "cgroup" and not can_make_cgroups():
        pytest.skip("cgroups cannot be made here")
    with ExitStack() as stack:
        if kind == "cgroup":
            size = between(bench.small_peak.resident_bytes, bench.peak.resident_bytes)
            limit = stack.enter_context(limited_cgroup(size))
        else:
            limit = limit_address_space(between(bench.small_peak.virtual_bytes, bench.peak.virtual_bytes))
        stack.enter_context(RunnerPeaks(bench.worker, limit))
        end_runners(bench.worker)
        record = bench.client.wait(bench.client.submit(bench.job).id, 90)
        end_runners(bench.worker)

    assert_recovered(bench, record)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_runner_that_is_killed_in_mid_step_goes_on_with_half_the_cut(
    bench: Bench, number: signal.Signals
) -> None:
    client, job = bench.client, bench.client.submit(bench.job).id
    eventually(lambda: (progress := client.get(job).progress) and progress.step >= 1)
    eventually(lambda: client.get(job).resume)  # else it may begin again at 0
    (runner,) = bench.worker.runners()

    runner.send_signal(number)
    record = client.wait(job, 60)

    assert_recovered(bench, record)
    assert record.memory_limit is not None
    assert record.memory_limit.micro_batch_tokens == cut_of(bench.undisturbed).tokens // 2
    first, second = events(client, job, "planned")
    assert second["first_step"] >= 1 > first["first_step"]
    assert record.result is not None
    assert (
        record.result.facts["memory_limit"]["micro_batch_tokens"]
        == second["facts"]["cut"]["micro_batch_tokens"]
    )


def test_a_registered_host_tells_its_chip_and_what_others_leave_it(bench: Bench) -> None:
    (host,) = bench.client.hosts()

    assert host.info.chip
    assert host.info.available_bytes is not None
    assert 0 < host.info.available_bytes <= host.info.budget_bytes


def test_a_finished_job_keeps_what_its_runner_took_of_memory(bench: Bench) -> None:
    record = bench.undisturbed
    file = bench.fleet.attempt_dir("one", record.id, record.token) / "memory.json"

    assert record.memory
    assert json.loads(file.read_text()) == [
        one.model_dump(mode="json", exclude_none=True) for one in record.memory
    ]
    assert {one.phase for one in record.memory} >= {"preparing", "training"}
    assert 0 < max(one.footprint_bytes for one in record.memory) <= 2 * bench.peak.resident_bytes
    assert any(one.active_bytes for one in record.memory)


def test_a_runner_that_is_asked_to_shrink_says_how_it_goes_on(bench: Bench, tmp_path: Path) -> None:
    job, token = JobId("j"), Token(1)
    start = Start(
        job=job, token=token, spec=bench.job, work_dir=str(tmp_path), deadline=sleepless_clock() + 60
    )
    runner = RunnerProcess.spawn(tmp_path / "log.txt")
    runner.send(start)
    runner.send(Shrink(job=job, token=token))
    heard = []
    with suppress(EOFError):
        while True:
            heard.append(runner.receive(20))
    runner.close()

    (shrunk,) = [message for message in heard if isinstance(message, Shrunk)]
    assert (shrunk.step, shrunk.cut.tokens) == (0, cut_of(bench.undisturbed).tokens // 2)
    assert isinstance(heard[-1], Done)
    assert heard[-1].result is not None
    assert heard[-1].result.final_loss == pytest.approx(final_loss(bench.undisturbed), abs=1e-3)


def kill_runner(worker: Service, client: Client, job: str, token: int) -> None:
    eventually(
        lambda: (record := client.get(job)).token == token and record.progress and record.progress.step > 0
    )
    (runner,) = eventually(worker.runners)
    runner.kill()
    eventually(lambda: client.get(job).memory_failures == token)


def test_a_job_that_ran_out_of_memory_three_times_fails_and_says_what_would_fit(fleet: Fleet) -> None:
    fleet.start_scheduler()
    worker = fleet.start_worker("one", "--memory", "1GB")
    fleet.wait_for_hosts(1)
    client = fleet.client()
    job = client.submit(LONG).id
    for token in (1, 2, 3):
        kill_runner(worker, client, job, token)
    record = client.wait(job, 10)

    assert record.state is JobState.FAILED
    assert record.failure is not None
    assert record.failure.failure == "memory"
    assert "for the third time. What would fit: a host that may use more than 1 GB" in record.failure.text
    assert (record.charged, record.above_bytes) == (0, None)


def test_a_job_that_ran_out_of_memory_three_times_is_kept_for_a_larger_host(fleet: Fleet) -> None:
    fleet.start_scheduler()
    large = fleet.start_worker("large", "--memory", "2GB")
    fleet.wait_for_hosts(1)
    large.terminate()  # it stays registered, and may come back
    small = fleet.start_worker("small", "--memory", "1GB")
    eventually(
        lambda: [host for host in fleet.client().hosts() if host.is_alive and host.info.name == "small"]
    )
    client = fleet.client()
    job = client.submit(LONG).id
    for token in (1, 2, 3):
        kill_runner(small, client, job, token)

    record = client.get(job)
    assert not record.state.is_terminal
    assert record.above_bytes == 1 << 30
    assert record.memory_limit is not None
    assert record.memory_limit.failures == 0
    client.cancel(job)
