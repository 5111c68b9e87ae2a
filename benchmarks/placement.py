"""Simulated fleets: is a host ever over-committed, how long does a round take, and who waits how long?

    python benchmarks/placement.py [--quick]

1,000 Macs of mixed sizes work off 100,000 jobs (20,000 with `--quick`) in virtual time, through the
functions that the leader uses; nothing is started. Half of the jobs are there at the start and fill the
fleet; the others, large ones among them, keep coming. Explains itself on stderr; the last line of stdout
is one JSON object.

- `round_ms_p95`: one decision, from the grouped queue to placements and reservations. Every decision of
  the run counts; `round_ms_longest` is the longest, `round_ms_cold` that of the first round.
- `over_commits`: hosts and machines that held more bytes or jobs than they have, looked at after each round.
- `utilisation`: memory reserved by jobs over memory of hosts, from the start until half of the jobs have run.
- `wait_p95_ratio`: the 95th percentile of all waits, over that of a plain first-come best fit without
  reservations on the same fleet and queue. That one runs small jobs past large ones for ever.
- `large_wait_p95_ratio`: the same for the jobs that only the larger hosts can run.
- `largest_wait_over_drain`: of jobs that room was kept for, the longest wait from that moment, over the time
  that the host took from then to finish what it ran. At most 1: nobody who came later delays them.
- `jobs_left`: jobs that fit a host and did not run in the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, where `queue.py` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import gc
import heapq
import json
import math
import platform
import random
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import islice
from typing import Protocol

import psutil

from graft_scheduler.demand import Demand, Request
from graft_scheduler.lessons import Lesson, LessonKey
from graft_scheduler.placement import PRIORITY_STEP, Decision, Group, Queued, place_groups
from graft_scheduler.rooms import FETCH_BYTES_PER_SECOND, HostRoom, PendingJob, Placement, Running
from graft_scheduler.states import HostId, JobId

GIB = 1 << 30
MACS = {8: 4, 16: 6, 24: 5, 32: 4, 64: 4, 128: 3, 192: 2, 512: 1}
"""GB of memory, and how many Macs have it for one of the largest."""
USABLE = 0.75
"""Of that, as macOS lets the GPU use it."""
CHIPS = {"M1": 2e12, "M2 Pro": 5e12, "M3 Max": 12e12, "M4 Max": 15e12}
"""Floating-point operations a second in training: of the right order, not measured."""
SIZES = (
    (3, 6, 30),
    (5, 9, 25),
    (8, 14, 18),
    (11, 24, 12),
    (20, 40, 8),
    (40, 80, 4),
    (85, 90, 2),
    (130, 360, 1),
)
"""Least and preferred GB of a job, and its share of the queue."""
LENGTHS = (600, 1800, 3600, 10_800)
"""Seconds of a job in the median on a chip of medium speed; one kind of job for each, and one that tells
nothing of its length."""
KINDS_OF_A_SIZE = len(LENGTHS) + 1
SPREAD, MOST_OFF = 0.1, 1.2
"""Real durations over those foreseen: log-normal, and never further off than this."""
UNKNOWN_SPREAD = 0.8
"""The same for jobs that tell nothing of their length."""
LEAST_MEMORY_COSTS = 0.35
"""How much longer a job takes with the least memory it can do with than with what it prefers."""
MEDIUM_SPEED = 6e12
LARGE_BYTES = 85 * GIB
ARRIVAL_SECONDS = 0.5
"""Between two jobs of the second half."""
HEAD = 200
"""Jobs of a group that a decision is shown, as the leader reads them."""
BASES = 8
LEAST_DISK_BYTES = 40 * GIB
"""What the fullest Mac has left for jobs; the emptiest has fifty times that."""
REFUSED_SHARE = 0.1
"""Of the Macs, those that may not fetch one of the bases."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job of the simulation."""

    queued: Queued
    kind: int
    arrives_at: float
    factor: float
    """How much longer it takes than its kind is thought to."""


@dataclass(slots=True)
class Held:
    """A job that runs."""

    job: Job
    placement: Placement
    ends_at: float


class Policy(Protocol):
    """What decides in a round."""

    def __call__(self, groups: Sequence[Group], rooms: Sequence[HostRoom]) -> Decision: ...


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    waits: list[float] = field(default_factory=list)
    large_waits: list[float] = field(default_factory=list)
    decision_ms: list[float] = field(default_factory=list)
    cold_ms: float = 0.0
    over_commits: int = 0
    utilisation: float = 0.0
    wait_over_drain: float = 0.0
    jobs_left: int = 0


def main() -> None:
    """Simulate, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ends within 2 minutes on 2 cores")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures = measure(20_000 if options.quick else 100_000, 60.0, options.seed)
    machine = {"system": platform.platform(), "cores": psutil.cpu_count()}
    versions = {"mlx-graft": metadata.version("mlx-graft"), "python": platform.python_version()}
    line = {"benchmark": "placement", "figures": figures, "machine": machine, "versions": versions}
    print(json.dumps(line))


def measure(most_jobs: int, tick_seconds: float, seed: int) -> dict[str, float]:
    """All figures, on one fleet and one queue."""
    rng = random.Random(seed)
    requests, fleet = make_requests(), make_fleet(rng)
    jobs = make_jobs(rng, requests, most_jobs)
    # The leader has no such objects: a decision must not be timed with a collector that walks through
    # the jobs of the whole simulation.
    gc.collect()
    gc.freeze()
    runs = {}
    for name, decide in (("graft", our_policy), ("best fit", plain_best_fit)):
        started_at = time.perf_counter()
        outcome = runs[name] = Simulation(fleet, requests, jobs, decide, tick_seconds).run()
        say(
            f"{name}: median wait {statistics.median(outcome.waits) / 3600:.1f} h, 95% "
            f"{percentile(outcome.waits, 95) / 3600:.1f} h; large jobs 95% "
            f"{percentile(outcome.large_waits, 95) / 3600:.1f} h; {len(outcome.decision_ms)} decisions, 95% "
            f"{percentile(outcome.decision_ms, 95):.1f} ms, longest {max(outcome.decision_ms):.0f} ms; "
            f"{time.perf_counter() - started_at:.0f} s"
        )
    ours, peer = runs["graft"], runs["best fit"]
    figures = {
        "round_ms_p95": percentile(ours.decision_ms, 95),
        "round_ms_longest": max(ours.decision_ms),
        "round_ms_cold": ours.cold_ms,
        "over_commits": ours.over_commits,
        "utilisation": ours.utilisation,
        "utilisation_of_best_fit": peer.utilisation,
        "wait_p95_ratio": percentile(ours.waits, 95) / percentile(peer.waits, 95),
        "large_wait_p95_ratio": percentile(ours.large_waits, 95) / percentile(peer.large_waits, 95),
        "largest_wait_over_drain": ours.wait_over_drain,
        "jobs_left": ours.jobs_left,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def make_requests() -> list[Request]:
    """Every kind of job: by size, by length, and one of each size that tells nothing of its length."""
    return [
        Request(
            demands={"metal": Demand(minimum_bytes=least * GIB, preferred_bytes=most * GIB)},
            store_id="store",
            family="llama",
            method="lora",
            flops=None if seconds is None else seconds * MEDIUM_SPEED,
            model=f"base{number % BASES}",
            weight_bytes=least * GIB // 2,
            disk_bytes=GIB,
        )
        for number, (least, most, _) in enumerate(SIZES)
        for seconds in (*LENGTHS, None)
    ]


def make_fleet(rng: random.Random) -> list[HostRoom]:
    """1,000 Macs; the larger ones take several jobs."""
    sizes = [gib for gib, share in MACS.items() for _ in range(share)]
    return [one_mac(number, sizes[number % len(sizes)], rng) for number in range(1000)]


def one_mac(number: int, gib: int, rng: random.Random) -> HostRoom:
    """A Mac that nothing runs on."""
    usable = int(gib * GIB * USABLE)
    return HostRoom(
        id=HostId(f"h{number}"),
        name=f"mac{number}",
        backend="metal",
        machine_id=f"m{number}",
        store_id="store",
        budget_bytes=usable,
        machine_bytes=usable,
        slots=1 if gib <= 24 else 4 if gib <= 64 else 16,
        used_slots=0,
        committed_bytes=0,
        machine_committed_bytes=0,
        chip=rng.choice(list(CHIPS)),
        cached=frozenset(f"base{base}" for base in rng.sample(range(BASES), 3)),
        free_disk_bytes=told_disk(int(LEAST_DISK_BYTES * 50 ** rng.random())),
        no_access=frozenset({f"base{rng.randrange(BASES)}"} if rng.random() < REFUSED_SHARE else ()),
    )


def told_disk(free: int) -> int:
    """As workers tell it, in four significant bits."""
    step = 1 << max(0, free.bit_length() - 4)
    return free // step * step


def make_jobs(rng: random.Random, requests: Sequence[Request], most: int) -> list[Job]:
    """Half of the queue at the start, none of them large; the other half, with large ones, keeps coming."""
    shares = [share for _, _, share in SIZES for _ in range(len(LENGTHS) + 1)]
    small = [
        share if least * GIB < LARGE_BYTES else 0
        for least, _, share in SIZES
        for _ in range(len(LENGTHS) + 1)
    ]
    kinds = rng.choices(range(len(requests)), weights=small, k=most // 2)
    kinds += rng.choices(range(len(requests)), weights=shares, k=most - most // 2)
    found = []
    for number, kind in enumerate(kinds):
        spread = SPREAD if requests[kind].flops is not None else UNKNOWN_SPREAD
        factor = rng.lognormvariate(0, spread)
        if requests[kind].flops is not None:
            factor = min(MOST_OFF, max(1 / MOST_OFF, factor))
        arrives_at = 0.0 if number < most // 2 else (number - most // 2) * ARRIVAL_SECONDS
        found.append(Job(Queued(5 * PRIORITY_STEP + number, JobId(f"j{number}")), kind, arrives_at, factor))
    return found


LESSONS = {
    LessonKey("llama", "lora", chip, ""): Lesson(memory_factor=1.0, flops_per_second=speed)
    for chip, speed in CHIPS.items()
}


def our_policy(groups: Sequence[Group], rooms: Sequence[HostRoom]) -> Decision:
    """As the leader decides."""
    return place_groups(groups, rooms, LESSONS)


def plain_best_fit(groups: Sequence[Group], rooms: Sequence[HostRoom]) -> Decision:
    """The peer: first come, first served, onto the host where least is left; whoever does not fit waits."""
    free = {room.id: [room.free_bytes, room.slots - room.used_slots] for room in rooms}
    open_hosts = {room.id for room in rooms if room.used_slots < room.slots}
    waiting = [(group.jobs[0], number, 0) for number, group in enumerate(groups)]
    heapq.heapify(waiting)
    placements: list[Placement] = []
    is_partial = False
    while waiting:
        job, number, at = heapq.heappop(waiting)
        demand = (groups[number].sample.request.demands or {})["metal"]
        able = [host for host in open_hosts if free[host][0] >= demand.minimum_bytes]
        if not able:
            continue
        host = min(able, key=lambda one: (max(0, free[one][0] - demand.preferred_bytes), one))
        taken = min(free[host][0], demand.preferred_bytes)
        free[host] = [free[host][0] - taken, free[host][1] - 1]
        if free[host][1] == 0:
            open_hosts.remove(host)
        placements.append(Placement(job.id, host, taken))
        if at + 1 < len(groups[number].jobs):
            heapq.heappush(waiting, (groups[number].jobs[at + 1], number, at + 1))
        elif groups[number].is_cut:
            is_partial = True
            break
    return Decision(placements, [], list(rooms), is_partial)


@dataclass(slots=True)
class Keeping:
    """A reservation, and by when its host would have finished what it ran."""

    host: HostId
    since: float
    drained_at: float


class Simulation:
    """One fleet, one queue, one policy, in virtual time."""

    def __init__(
        self,
        fleet: Sequence[HostRoom],
        requests: Sequence[Request],
        jobs: Sequence[Job],
        decide: Policy,
        tick_seconds: float,
    ) -> None:
        self._fleet = {room.id: room for room in fleet}
        self._requests = requests
        self._jobs = {job.queued.id: job for job in jobs}
        self._coming = deque(jobs)
        self._waiting: list[dict[Queued, Job]] = [{} for _ in requests]
        """By kind, in the order of the queue."""
        self._held: dict[HostId, list[Held]] = {room.id: [] for room in fleet}
        self._kept: dict[JobId, Keeping] = {}
        self._decide = decide
        self._tick = tick_seconds
        self._now = 0.0
        self._started = 0
        self._shares: list[float] = []
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Until nothing runs and nothing more can be placed."""
        while True:
            self._arrive()
            self._end()
            self._round()
            self._check()
            if not self._coming and not any(self._held.values()):
                break
            self._now += self._tick
        self.outcome.jobs_left = sum(len(jobs) for jobs in self._waiting)
        self.outcome.utilisation = statistics.mean(self._shares)
        return self.outcome

    def _arrive(self) -> None:
        while self._coming and self._coming[0].arrives_at <= self._now:
            job = self._coming.popleft()
            self._waiting[job.kind][job.queued] = job

    def _end(self) -> None:
        for held in self._held.values():
            held[:] = [one for one in held if one.ends_at > self._now]

    def _round(self) -> None:
        """Decisions until one is not partial, as the leader makes them."""
        is_first = self._now == 0
        while True:
            groups, rooms = self._groups(), self._rooms()
            started_at = time.perf_counter()
            decision = self._decide(groups, rooms)
            took_ms = (time.perf_counter() - started_at) * 1000
            self.outcome.decision_ms.append(took_ms)
            if is_first:
                self.outcome.cold_ms = max(self.outcome.cold_ms, took_ms)
            self._act(decision)
            if not decision.is_partial:
                return

    def _act(self, decision: Decision) -> None:
        for placement in decision.placements:
            job = self._jobs[placement.job]
            del self._waiting[job.kind][job.queued]
            ends_at = self._now + self._real_seconds(job, self._fleet[placement.host], placement.bytes)
            self._held[placement.host].append(Held(job, placement, ends_at))
            self._note_wait(job)
        noted = {one.job: one.host for one in decision.reservations}
        self._kept = {job: kept for job, kept in self._kept.items() if noted.get(job) == kept.host}
        for job_id, host in noted.items():
            if job_id not in self._kept:
                drained_at = max((one.ends_at for one in self._held[host]), default=self._now)
                self._kept[job_id] = Keeping(host, self._now, drained_at)

    def _note_wait(self, job: Job) -> None:
        self._started += 1
        wait = self._now - job.arrives_at
        self.outcome.waits.append(wait)
        demand = (self._requests[job.kind].demands or {})["metal"]
        if demand.minimum_bytes >= LARGE_BYTES:
            self.outcome.large_waits.append(wait)
        kept = self._kept.get(job.queued.id)
        if kept is not None and self._now > kept.since:
            drain = math.ceil((kept.drained_at - kept.since) / self._tick) * self._tick
            over = (self._now - kept.since) / drain if drain else math.inf
            self.outcome.wait_over_drain = max(self.outcome.wait_over_drain, over)

    def _check(self) -> None:
        held_bytes = 0
        for host, held in self._held.items():
            room, total = self._fleet[host], sum(one.placement.bytes for one in held)
            held_bytes += total
            self.outcome.over_commits += total > room.largest_bytes or len(held) > room.slots
        if self._started < len(self._jobs) / 2:
            self._shares.append(held_bytes / sum(room.largest_bytes for room in self._fleet.values()))

    def _groups(self) -> list[Group]:
        """As the leader reads them: jobs with a reservation are groups of their own."""
        groups = []
        for kind, waiting in enumerate(self._waiting):
            request = self._requests[kind]
            head = list(islice(waiting, HEAD + 1))
            alone = [queued for queued in head if queued.id in self._kept]
            plain = [queued for queued in head if queued.id not in self._kept]
            for queued in alone:
                host = self._kept[queued.id].host
                sample = PendingJob(queued.id, request, reserved_on=host)
                groups.append(Group(str(kind), sample, [queued]))
            if plain:
                sample = PendingJob(plain[0].id, request)
                groups.append(Group(str(kind), sample, plain[:HEAD], is_cut=len(plain) > HEAD))
        return groups

    def _rooms(self) -> list[HostRoom]:
        return [self._room(room, self._held[room.id]) for room in self._fleet.values()]

    def _room(self, room: HostRoom, held: Sequence[Held]) -> HostRoom:
        if not held:
            return room
        total = sum(one.placement.bytes for one in held)
        return replace(
            room,
            used_slots=len(held),
            committed_bytes=total,
            machine_committed_bytes=total,
            running=tuple(self._running(one) for one in held),
        )

    def _running(self, held: Held) -> Running:
        """What is known of when it ends: off by the same factor as its whole length was."""
        left = None
        if self._requests[held.job.kind].flops is not None:
            left = (held.ends_at - self._now) / held.job.factor
        return Running(held.job.queued.id, held.placement.bytes, left, held.placement.beside)

    def _real_seconds(self, job: Job, room: HostRoom, reserved_bytes: int) -> float:
        request = self._requests[job.kind]
        demand = (request.demands or {})["metal"]
        less = (demand.preferred_bytes - reserved_bytes) / (demand.preferred_bytes - demand.minimum_bytes)
        factor = job.factor * (1 + LEAST_MEMORY_COSTS * less)
        flops = LENGTHS[1] * MEDIUM_SPEED if request.flops is None else request.flops
        is_there = request.model in room.cached
        fetch = 0.0 if is_there else request.weight_bytes / FETCH_BYTES_PER_SECOND
        return (fetch + flops / CHIPS[room.chip]) * factor


def percentile(values: Sequence[float], percent: int) -> float:
    """That percentile, by rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def say(text: str) -> None:
    """Explain, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
