"""The protocol under a storm of kills, freezes, outages, doubled and stolen messages.

`make soak` runs it for longer: SOAK_JOBS, SOAK_SECONDS and SOAK_SEED change how.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.states import JobState
from tests.acceptance.chaos import (
    Storm,
    check_no_token_ran_twice,
    check_outcomes,
    check_rest,
    rage,
    wait_for_all,
)
from tests.services import Fleet, eventually

pytestmark = pytest.mark.processes

WORKERS = ("one", "two", "three", "four")


def train_job(base: Path, data: Path, number: int) -> TrainJob:
    return TrainJob.model_validate(
        {
            "model": str(base),
            "data": str(data),
            "seed": number,
            "steps": 6,
            "batch_size": 2,
            "adapter": {"rank": 2},
            "checkpoint": {"every": 2},
        }
    )


def count_job(dice: random.Random) -> CountJob:
    return CountJob(steps=dice.randint(1, 8), step_seconds=dice.choice([0.0, 0.02, 0.1]))


def endure(
    fleet: Fleet, base: Path, data: Path, *, jobs: int, trained: int, seconds: float, seed: int
) -> None:
    """Submit, storm, wait, and check everything that was promised."""
    dice = random.Random(seed)
    schedulers = {name: fleet.start_scheduler(name) for name in ("alpha", "beta")}
    workers = {name: fleet.start_worker(name) for name in WORKERS}
    fleet.wait_for_hosts(len(WORKERS))
    client = fleet.client()
    fine_tunes = [client.submit(train_job(base, data, number)).id for number in range(trained)]
    counted = [client.submit(count_job(dice)).id for _ in range(jobs)]
    cancelled = set(dice.sample(counted, jobs // 20))
    for job in cancelled:
        client.cancel(job)

    storm = Storm(fleet, workers, schedulers, dice)
    rage(storm, client, [*fine_tunes, *counted], seconds)
    records = wait_for_all(client, [*fine_tunes, *counted], timeout_seconds=max(240, seconds))
    attempts = sum(record.token for record in records)
    sys.stderr.write(f"seed {seed}: {dict(storm.dealt)}; {len(records)} jobs in {attempts} attempts\n")

    check_outcomes(fleet, client, records, cancelled)
    check_no_token_ran_twice(fleet)
    check_rest(fleet)
    assert all(one.result for one in records if one.state is JobState.COMPLETED)
    fleet.stop()
    eventually(lambda: not fleet.runner_pids(), 5, "no orphans")


@pytest.mark.timeout(420)
def test_a_storm_loses_no_job_and_runs_none_twice(fleet: Fleet, tiny_base: Path, tiny_data: Path) -> None:
    endure(fleet, tiny_base, tiny_data, jobs=30, trained=2, seconds=7, seed=20)


@pytest.mark.soak
def test_a_long_storm_loses_no_job_and_runs_none_twice(
    fleet: Fleet, tiny_base: Path, tiny_data: Path
) -> None:
    jobs, seconds = int(os.environ.get("SOAK_JOBS", "2000")), float(os.environ.get("SOAK_SECONDS", "1200"))
    seed = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)

    endure(fleet, tiny_base, tiny_data, jobs=jobs, trained=8, seconds=seconds, seed=seed)
