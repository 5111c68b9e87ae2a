"""The service's own cost: how long a job waits for the machinery, and how many it can take.

    python benchmarks/queue.py [--quick]

Starts a Redis, a scheduler and workers of its own. Explains itself on stderr; the last line of stdout
is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, where this file would stand before the library's `queue`.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib import metadata
from typing import Any

import psutil

from graft_scheduler import keys
from graft_scheduler.client import Client
from graft_scheduler.demand import Demand, Request
from graft_scheduler.fleet import redis_now
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.states import JobId
from graft_scheduler.transitions import Transitions
from tests.services import Fleet, RedisServer

SAMPLES = Path(__file__).parent.parent / "cli" / "graft_cli" / "samples"


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ends within 5 minutes on 2 cores")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis")
        server.start()
        fleet = Fleet(Path(folder), server)
        try:
            figures = measure(fleet, quick)
        finally:
            fleet.stop()
            server.stop()
    machine = {"system": platform.platform(), "cores": psutil.cpu_count()}
    versions = {name: metadata.version(name) for name in ("mlx-graft", "mlx", "celery", "redis")}
    print(json.dumps({"benchmark": "queue", "figures": figures, "machine": machine, "versions": versions}))


def measure(fleet: Fleet, quick: bool) -> dict[str, float]:
    """All figures, one after another on one fleet."""
    client = fleet.client()
    figures = accepting(client, 1_000 if quick else 5_000)
    client._redis.flushall()  # the queue of the first part is nobody's
    fleet.start_scheduler()
    fleet.start_worker("one")
    fleet.wait_for_hosts(1)
    figures |= waiting(client, 10 if quick else 30)
    figures |= training(client, 3 if quick else 10)
    figures |= throughput(client, 40 if quick else 200)
    figures["list_seconds_at_100k"] = listing(client, 100_000)
    return {name: round(value, 4) for name, value in figures.items()}


def accepting(client: Client, jobs: int) -> dict[str, float]:
    """Records written a second, by one client."""
    transitions = Transitions(client._redis)
    request = Request(demands={"cpu": Demand.of(1)}, store_id="none")
    started_at = time.perf_counter()
    for number in range(jobs):
        transitions.submit(JobId(f"bench{number}"), CountJob(), request)
    rate = jobs / (time.perf_counter() - started_at)
    say(f"{rate:.0f} submits a second")
    return {"submits_per_second": rate}


def waiting(client: Client, jobs: int) -> dict[str, float]:
    """From the moment that a submit returns to the claim by the worker, on a free host."""
    waits = []
    for _ in range(jobs):
        job = client.submit(CountJob(steps=1, step_seconds=0))
        job.wait(60)
        at = event_times(client, job.id)
        waits.append(at["running"] - at["submitted"])
    say(f"submit to start: median {statistics.median(waits):.4f} s of {jobs}")
    return {"submit_to_start_seconds": statistics.median(waits)}


def training(client: Client, jobs: int) -> dict[str, float]:
    """How much longer (submit returned → first step) is than (runner spawned → first step).

    The first job has a new runner, the others the same one, warm.
    """
    data = next(path for path in SAMPLES.iterdir() if (path / "train.jsonl").exists())
    spec = {"model": str(SAMPLES / "base"), "data": str(data), "steps": 1, "evaluation": {"rows": 1}}
    extra, first_steps = [], []
    for _ in range(jobs):
        job = client.submit(TrainJob.model_validate(spec))
        returned_at = redis_now(client._redis)
        record = job.wait(120)
        assert record.result is not None
        first_steps.append(record.result.first_step_seconds or 0.0)
        extra.append(event_times(client, job.id)["spawned"] - returned_at)
    say(f"submit returned to runner spawned: median {statistics.median(extra):.3f} s, most {max(extra):.3f}")
    cold, *warm = first_steps
    say(f"end of the first step: {cold:.3f} s after a new runner began, {statistics.median(warm):.3f} s warm")
    return {
        "submit_to_spawn_seconds": statistics.median(extra),
        "submit_to_spawn_seconds_most": max(extra),
        "spawn_to_first_step_seconds": cold,
        "warm_to_first_step_seconds": statistics.median(warm),
    }


def throughput(client: Client, jobs: int) -> dict[str, float]:
    """Whole jobs a second on one slot, each with a runner of its own."""
    started_at = time.perf_counter()
    handles = [client.submit(CountJob(steps=1, step_seconds=0)) for _ in range(jobs)]
    for handle in handles:
        handle.wait(600)
    rate = jobs / (time.perf_counter() - started_at)
    say(f"{rate:.1f} jobs a second on one slot")
    return {"jobs_per_second": rate}


def listing(client: Client, jobs: int) -> float:
    """Seconds to list the newest 50 of many jobs."""
    pipeline = client._redis.pipeline()
    template = client.submit(CountJob(steps=1, step_seconds=0))
    template.wait(60)
    fields: Any = client._redis.hgetall(keys.job(template.id))
    for number in range(jobs):
        pipeline.hset(keys.job(JobId(f"old{number}")), mapping=fields)
        pipeline.zadd(keys.JOBS, {f"old{number}": number})
        if number % 5_000 == 0:
            pipeline.execute()
    pipeline.execute()
    times = []
    for _ in range(5):
        started_at = time.perf_counter()
        assert len(client.jobs(limit=50)) == 50
        times.append(time.perf_counter() - started_at)
    say(f"listing 50 of {jobs}: {statistics.median(times):.3f} s")
    return statistics.median(times)


def event_times(client: Client, job: JobId) -> dict[str, float]:
    """When each event last happened, in seconds on Redis' clock."""
    return {event.name: event.at for event in client.events(job)}


def say(text: str) -> None:
    """Explain, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
