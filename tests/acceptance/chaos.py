"""A fleet under a seeded storm: what can happen to it, and what must be true afterwards."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from redis import Redis
from redis.exceptions import RedisError

from graft_scheduler import fleet as fleet_state
from graft_scheduler import keys
from graft_scheduler.broker import Broker, make_app
from graft_scheduler.client import Client
from graft_scheduler.errors import GraftError
from graft_scheduler.records import Event, JobRecord
from graft_scheduler.redis_connection import connect
from graft_scheduler.states import MAX_LOST, MAX_OUT_OF_MEMORY, HostId, JobId, JobState, Token
from graft_scheduler.store import open_store
from tests.services import Fleet, Service

LULL_SECONDS = (0.2, 1.5)
"""Between two blows."""


@dataclass
class Storm:
    """Deals blows in an order that depends on the seed alone; when they land does not."""

    fleet: Fleet
    workers: dict[str, Service]
    schedulers: dict[str, Service]
    random: random.Random
    dealt: Counter[str] = field(default_factory=Counter)

    def blow(self) -> None:
        """One of the blows, drawn by weight."""
        blows: dict[Callable[[], None], int] = {
            self.kill_worker: 5,
            self.stop_worker: 4,
            self.freeze_worker: 2,
            self.kill_scheduler: 2,
            self.freeze_scheduler: 1,
            self.kill_redis: 2,
            self.cut_connections: 2,
            self.double_messages: 6,
            self.steal_messages: 4,
        }
        chosen = self.random.choices(list(blows), weights=list(blows.values()))[0]
        self.dealt[chosen.__name__] += 1
        with suppress(RedisError, GraftError):
            chosen()

    def kill_worker(self) -> None:
        name = self._some(self.workers)
        self.workers[name].kill()
        self.workers[name] = self.fleet.start_worker(name)

    def stop_worker(self) -> None:
        name = self._some(self.workers)
        self.workers[name].terminate()
        self.workers[name] = self.fleet.start_worker(name)

    def freeze_worker(self) -> None:
        """Past its lease, as a Mac whose lid was closed."""
        self._freeze(self.workers[self._some(self.workers)], self.fleet.lease_seconds + 1)

    def kill_scheduler(self) -> None:
        name = self._some(self.schedulers)
        self.schedulers[name].kill()
        self.schedulers[name] = self.fleet.start_scheduler(name)

    def freeze_scheduler(self) -> None:
        self._freeze(self.schedulers[self._some(self.schedulers)], 6)

    def kill_redis(self) -> None:
        self.fleet.redis.kill()
        time.sleep(self.random.uniform(0, 2))
        self.fleet.redis.start()

    def cut_connections(self) -> None:
        with connect(self.fleet.redis.url) as redis:
            redis.execute_command("CLIENT", "KILL", "TYPE", "normal")

    def double_messages(self) -> None:
        """Say again what has been said: attempts that run, that wait to be claimed, that are long over."""
        broker = Broker(make_app(self.fleet.redis.url))
        with connect(self.fleet.redis.url) as redis:
            for held in fleet_state.read_commitments(redis):
                token = int(str(redis.hget(keys.job(held.job), "token")))
                for said in {token, max(1, token - 1)}:
                    broker.nudge(held.job, Token(said), held.host, "count", "storm")

    def steal_messages(self) -> None:
        with connect(self.fleet.redis.url) as redis:
            for host in redis.zrange(keys.HOSTS, 0, -1):
                redis.delete(keys.host_queue(HostId(str(host))))

    def _freeze(self, service: Service, seconds: float) -> None:
        service.signal(signal.SIGSTOP)
        time.sleep(seconds)
        service.signal(signal.SIGCONT)

    def _some(self, services: dict[str, Service]) -> str:
        return self.random.choice(sorted(services))


def rage(storm: Storm, client: Client, jobs: Sequence[str], seconds: float) -> None:
    """Blows until the time is up or every job has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        storm.blow()
        time.sleep(storm.random.uniform(*LULL_SECONDS))
        with suppress(GraftError):
            if all(record.state.is_terminal for record in read(client, jobs)):
                return


def wait_for_all(client: Client, jobs: Sequence[str], timeout_seconds: float) -> list[JobRecord]:
    """Every job, ended."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        records = read(client, jobs)
        waiting = [f"{one.id} {one.state} {one.token}" for one in records if not one.state.is_terminal]
        if not waiting:
            return records
        assert time.monotonic() < deadline, f"{len(waiting)} jobs have not ended: {waiting[:10]}"
        time.sleep(0.5)


def read(client: Client, jobs: Sequence[str]) -> list[JobRecord]:
    """These jobs as they are now."""
    by_id = {record.id: record for record in client.jobs(limit=len(jobs) + 1)}
    return [by_id[JobId(job)] for job in jobs]


def check_outcomes(fleet: Fleet, client: Client, records: Sequence[JobRecord], cancelled: set[JobId]) -> None:
    """None lost, none committed twice, no token run twice, every result there."""
    store = open_store((fleet.folder / "store").as_uri())
    for record in records:
        events = client.events(record.id)
        assert_one_end(record, events, record.id in cancelled)
        runs = Counter(event.token for event in events if event.name == "running")
        assert max(runs.values(), default=0) <= 1, f"{record.id}: a token was claimed twice: {runs}"
        if record.state is JobState.COMPLETED:
            assert record.adapter is not None
            assert store.has(record.adapter)


def assert_one_end(record: JobRecord, events: Sequence[Event], was_cancelled: bool) -> None:
    ends = [event.name for event in events if event.name in {"completed", "failed", "cancelled"}]
    assert ends == [record.state.value], f"{record.id} ended {ends}, its state is {record.state}"
    allowed = {JobState.COMPLETED}
    if was_cancelled:
        allowed.add(JobState.CANCELLED)
    spent = record.charged >= record.spec.limits.attempts
    if record.lost >= MAX_LOST or record.memory_failures >= MAX_OUT_OF_MEMORY or spent:
        allowed.add(JobState.FAILED)  # the storm hit this one as often as the service allows
    assert record.state in allowed, f"{record.id} is {record.state}: {record.failure}"


def check_no_token_ran_twice(fleet: Fleet) -> None:
    """Every attempt's steps were taken by one process, on one host."""
    processes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for log in (fleet.folder / "data" / "workers").glob("*/jobs/*/*/steps.log"):
        host, job, token = log.parts[-5], log.parts[-3], log.parts[-2]
        processes[job, token] |= {
            f"{host}:{line.split()[0]}" for line in log.read_text().splitlines() if line
        }
    assert processes
    twice = {attempt: found for attempt, found in processes.items() if len(found) > 1}
    assert not twice


def check_rest(fleet: Fleet) -> None:
    """Nothing is held, queued or committed any more."""
    redis: Redis = connect(fleet.redis.url)
    assert redis.hgetall(keys.COMMITTED) == {}
    for left in (keys.QUEUE, keys.PLACED, keys.LEASES):
        assert redis.zcard(left) == 0
