"""What a person's program does with the service: submit, watch, stop, fetch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from redis import Redis

from graft_scheduler import fleet, keys, submission
from graft_scheduler.errors import (
    Conflict,
    GraftError,
    InvalidInput,
    JobFailed,
    NotFound,
    StoreError,
    Unreachable,
)
from graft_scheduler.jobs import CountJob, TrainJob, current_user
from graft_scheduler.placement import HostReason, explain_wait
from graft_scheduler.records import Event, HostRecord, JobRecord
from graft_scheduler.redis_connection import connect, reachable
from graft_scheduler.settings import Settings, load_settings
from graft_scheduler.states import JobId, JobState
from graft_scheduler.store import Store, open_store
from graft_scheduler.transitions import MISSED_BEATS, Transitions

ID_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's alphabet: nothing in it is mistaken for something else."""
ID_LENGTH = 8
POLL_SECONDS = 0.25
OUTAGE_SECONDS = 120.0
"""How long a follower waits for Redis to come back."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is where it is."""

    summary: str
    hosts: list[HostReason]
    scheduler_alive: bool
    never_fits: bool
    """No registered host can run it, however long it waits."""


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A submitted job."""

    client: Client
    id: JobId

    def record(self) -> JobRecord:
        """The job as it is now."""
        return self.client.get(self.id)

    def wait(self, timeout_seconds: float | None = None) -> JobRecord:
        """The completed job.

        Raises:
            JobFailed: it failed or was cancelled.
            TimeoutError: it has not ended in time; it goes on.
        """
        record = self.client.wait(self.id, timeout_seconds)
        if record.state is not JobState.COMPLETED:
            why = record.failure.text if record.failure else "no reason was given"
            raise JobFailed(f"job {self.id} {record.state.value}: {why}")
        return record

    def cancel(self) -> None:
        """Stop it; a running job saves a checkpoint first."""
        self.client.cancel(self.id)

    def pull(self, destination: Path) -> Path:
        """Fetch the adapter's folder."""
        return self.client.pull(self.id, destination)


class Client:
    """One Redis and one store, as `settings` name them. Safe to share between threads.

    Methods raise `Unreachable` when Redis or the store does not answer, and `NotFound` for an
    id that no job has. Wherever an id is taken, a unique beginning of one is enough.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()
        self._redis = connect(self.settings.redis_url)
        self._transitions = Transitions(self._redis)
        self._alive_seconds = self.settings.heartbeat_seconds * MISSED_BEATS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def submit(self, job: TrainJob | CountJob) -> JobHandle:
        """Check the job, store what it needs and queue it; once this returns it is not lost.

        Raises:
            InvalidInput: says the field, file or line and what would be right; nothing was queued.
        """
        self.ping()
        store = self._store()
        prepared = submission.prepare(job, store)
        job_id = JobId("".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH)))
        with self._reached():
            self._transitions.submit(job_id, prepared.spec, prepared.estimates, store.id)
        self._broker().announce_waiting([(job_id, 0, job.kind, job.submitter)])
        return JobHandle(self, job_id)

    def get(self, job_id: str) -> JobRecord:
        """The job as it is now."""
        with self._reached():
            full = self._full_id(job_id)
            fields: Any = self._redis.hgetall(keys.job(full))
        if not fields:
            raise NotFound(f"there is no job {job_id}")
        return JobRecord.parse(full, fields)

    def jobs(
        self, *, live_only: bool = False, submitter: str | None = None, limit: int = 50
    ) -> list[JobRecord]:
        """Jobs: those that run or wait, in the order of the queue, then ended ones, newest first."""
        with self._reached():
            ids = self._live_ids()
            if not live_only:
                newest: Any = self._redis.zrange(keys.JOBS, 0, limit + len(ids), desc=True)
                ids += [JobId(job_id) for job_id in newest if job_id not in set(ids)]
            records = self._records(ids)
        mine = (one for one in records if submitter in {None, one.spec.submitter})
        return [one for _, one in zip(range(limit), mine, strict=False)]

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job that waits, or ask its runner to save a checkpoint and stop.

        Raises:
            Conflict: it has ended already.
        """
        with self._reached():
            full = self._full_id(job_id)
            before = self._transitions.cancel(full, current_user())
        record = self.get(full)
        if before is not JobState.RUNNING:
            waiting_for = record.token + (before is JobState.QUEUED)
            self._broker().announce_revoked(full, waiting_for)
        return record

    def retry(self, job_id: str) -> JobRecord:
        """Queue a failed or cancelled job again; it goes on from its newest checkpoint.

        Raises:
            Conflict: it is neither failed nor cancelled.
        """
        with self._reached():
            full = self._full_id(job_id)
            self._transitions.retry(full, current_user())
        record = self.get(full)
        self._broker().announce_waiting([(full, record.token, record.spec.kind, record.spec.submitter)])
        return record

    def events(self, job_id: str, after: str = "0") -> list[Event]:
        """What has happened to the job since the event named `after`."""
        with self._reached():
            full = self._full_id(job_id)
            entries: Any = self._redis.xrange(keys.job_events(full), f"({after}" if after != "0" else "-")
        return [Event.parse(entry_id, fields) for entry_id, fields in entries]

    def log_lines(self, job_id: str) -> list[str]:
        """The job's log: whole once it has ended, its newest lines while it runs."""
        record = self.get(job_id)
        if record.log is not None and record.state.is_terminal:
            try:
                return self._store().get_bytes(record.log).decode(errors="replace").splitlines()
            except (StoreError, Unreachable):
                pass  # the lines that Redis still has are better than none
        return [line for _, line in self._new_lines(record.id, "0")]

    def follow_log(self, job_id: str) -> Iterator[str]:
        """The job's log lines as they come, until it has ended."""
        job, after = self.get(job_id).id, "0"
        while True:
            ended = self._patiently(job).state.is_terminal
            with self._reached():
                lines = self._new_lines(job, after)
            for entry_id, line in lines:
                after = entry_id
                yield line
            if ended and not lines:
                return
            time.sleep(0 if lines else POLL_SECONDS)

    def follow(self, job_id: str) -> Iterator[JobRecord]:
        """The job at each change, until it has ended; Redis may be away for a while."""
        job, last = self.get(job_id).id, None
        while True:
            record = self._patiently(job)
            if record != last:
                yield record
            if record.state.is_terminal:
                return
            last = record
            time.sleep(POLL_SECONDS)

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> JobRecord:
        """The job, ended.

        Raises:
            TimeoutError: it has not ended in time; it goes on.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        job = self.get(job_id).id
        while not (record := self._patiently(job)).state.is_terminal:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {record.state.shown} after {timeout_seconds:g} s")
            time.sleep(POLL_SECONDS)
        return record

    def why(self, job_id: str) -> Explanation:
        """Why the job is where it is, host by host while it waits."""
        record = self.get(job_id)
        with self._reached():
            rooms = fleet.host_rooms(fleet.read_hosts(self._redis, self._alive_seconds))
            pending = fleet.read_pending_jobs(self._redis, [record.id])[0]
            alive = self._redis.get(keys.LEADER) is not None
            ahead: Any = self._redis.zrank(keys.QUEUE, record.id)
        reasons = explain_wait(pending, rooms)
        never = bool(reasons) and not any(one.fits_ever for one in reasons)
        waits = record.state is JobState.QUEUED
        return Explanation(
            summary=_summary(record, reasons, alive, never, ahead or 0),
            hosts=reasons if waits else [],
            scheduler_alive=alive,
            never_fits=never and waits,
        )

    def hosts(self) -> list[HostRecord]:
        """Every registered host."""
        with self._reached():
            return fleet.read_hosts(self._redis, self._alive_seconds)

    def set_draining(self, host: str, draining: bool) -> HostRecord:
        """Let a host finish what it runs and give it nothing new, or end that."""
        return self._change_host(host, {"draining": str(int(draining))})

    def uncordon(self, host: str) -> HostRecord:
        """Trust a host again that failed too many jobs."""
        return self._change_host(host, {"cordoned": "0", "faulty_jobs": "[]", "missed_claims": "0"})

    def forget_host(self, host: str) -> None:
        """Remove a host that will not come back.

        Raises:
            Conflict: it reports, or holds jobs.
        """
        record = self._host(host)
        if record.is_alive or record.jobs:
            raise Conflict(f"host {host} is alive or holds jobs; stop its worker first")
        with self._reached():
            self._redis.zrem(keys.HOSTS, record.info.id)
            self._redis.delete(keys.host(record.info.id))

    def pull(self, job_id: str, destination: Path) -> Path:
        """Fetch the job's adapter into `destination`, which must not exist or be empty.

        Raises:
            Conflict: the job has no adapter yet.
        """
        record = self.get(job_id)
        if record.adapter is None:
            raise Conflict(f"job {record.id} is {record.state.shown} and has no adapter to pull")
        self._store().get_folder(record.adapter, destination)
        return destination

    def ping(self) -> float:
        """Seconds that Redis takes to answer."""
        start = time.monotonic()
        with self._reached():
            self._redis.ping()
        return time.monotonic() - start

    def leader(self) -> str | None:
        """Which scheduler leads, if any runs."""
        with self._reached():
            value: Any = self._redis.get(keys.LEADER)
        return None if value is None else str(value)

    def server_facts(self) -> dict[str, str]:
        """Redis' version and what decides whether it may lose jobs."""
        with self._reached():
            info: Any = self._redis.info()
        return {
            "version": str(info["redis_version"]),
            "appendonly": "yes" if info.get("aof_enabled") else "no",
            "maxmemory_policy": str(info.get("maxmemory_policy", "")),
            "used_memory_bytes": str(info.get("used_memory", "")),
        }

    def _change_host(self, host: str, fields: dict[Any, Any]) -> HostRecord:
        record = self._host(host)
        with self._reached():
            self._redis.hset(keys.host(record.info.id), mapping=fields)
            self._redis.lpush(keys.WAKE, 1)
        return self._host(record.info.id)

    def _host(self, name: str) -> HostRecord:
        found = [host for host in self.hosts() if name in {host.info.id, host.info.name}]
        if not found:
            raise NotFound(f"there is no host {name}; `graft hosts` lists them")
        if len(found) > 1:
            ids = ", ".join(host.info.id for host in found)
            raise InvalidInput(f"`{name}` names {len(found)} hosts; give the id: {ids}")
        return found[0]

    def _full_id(self, job_id: str) -> JobId:
        if self._redis.exists(keys.job(JobId(job_id))):
            return JobId(job_id)
        newest: Any = self._redis.zrange(keys.JOBS, 0, -1)
        found = [one for one in newest if job_id and one.startswith(job_id)]
        if not found:
            raise NotFound(f"there is no job {job_id}; `graft ps --all` lists them")
        if len(found) > 1:
            raise InvalidInput(f"`{job_id}` is the beginning of {len(found)} jobs: {', '.join(found[:5])}")
        return JobId(found[0])

    def _live_ids(self) -> list[JobId]:
        pipeline = self._redis.pipeline(transaction=False)
        for running_first in (keys.LEASES, keys.PLACED, keys.QUEUE):
            pipeline.zrange(running_first, 0, -1)
        return [JobId(job_id) for ids in pipeline.execute() for job_id in ids]

    def _records(self, ids: list[JobId]) -> list[JobRecord]:
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hgetall(keys.job(job_id))
        found = zip(ids, pipeline.execute(), strict=True)
        return [JobRecord.parse(job_id, fields) for job_id, fields in found if fields]

    def _new_lines(self, job_id: JobId, after: str) -> list[tuple[str, str]]:
        start = "-" if after == "0" else f"({after}"
        entries: Any = self._redis.xrange(keys.job_log(job_id), start)
        return [(entry_id, fields["line"]) for entry_id, fields in entries]

    def _patiently(self, job_id: JobId) -> JobRecord:
        """The record, waiting a while for a Redis that has gone away."""
        deadline = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                return self.get(job_id)
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def _store(self) -> Store:
        return open_store(self.settings.store_url)

    def _broker(self) -> Any:
        from graft_scheduler.broker import Broker, make_app  # celery takes 0.4 s to import

        return Broker(make_app(self.settings.redis_url))

    @contextmanager
    def _reached(self) -> Iterator[Redis]:
        with reachable(self.settings.redis_url):
            yield self._redis


def _summary(
    record: JobRecord, reasons: list[HostReason], scheduler_alive: bool, never: bool, ahead: int
) -> str:
    if record.state is not JobState.QUEUED:
        return _summary_of_state(record)
    if not scheduler_alive:
        return "no scheduler is running; start one with `graft scheduler` (or `graft up`)"
    if not reasons:
        return "no worker has ever registered; start one with `graft worker` (or `graft up`)"
    if never:
        return "no registered host can ever run it"
    if ahead:
        return f"{ahead} jobs are ahead of it in the queue"
    return "it is first in the queue and waits for a host"


def _summary_of_state(record: JobRecord) -> str:
    where = f" on {record.host_name}" if record.host_name else ""
    match record.state:
        case JobState.PLACED:
            return f"placed{where}; its worker is about to take it"
        case JobState.RUNNING:
            return f"running{where}"
        case JobState.FAILED if record.failure:
            return f"failed{where} ({record.failure.failure}): {record.failure.text}"
        case _:
            return f"{record.state.value}{where}"


__all__ = ["Client", "Explanation", "GraftError", "JobHandle"]
