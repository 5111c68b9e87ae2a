"""Looks at jobs and hosts, and changes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis import Redis

from graft_scheduler import fleet, keys
from graft_scheduler.errors import GraftError, InvalidInput, NotFound
from graft_scheduler.job_log import LogLine
from graft_scheduler.lessons import read_lessons
from graft_scheduler.pending import read_job
from graft_scheduler.records import Event, HostRecord, JobRecord
from graft_scheduler.redis_connection import connect, reachable
from graft_scheduler.settings import Settings
from graft_scheduler.snapshot import Snapshot, read_snapshot
from graft_scheduler.states import JobId, JobState, Token
from graft_scheduler.transitions import MISSED_BEATS
from graft_scheduler.waiting import HostReason, explain_wait, never_fits

logger = logging.getLogger(__name__)

PAGE = 200
"""Records read at once."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is where it is."""

    summary: str
    hosts: list[HostReason]
    scheduler_alive: bool
    never_fits: bool
    """No registered host can run it, however long it waits."""


class Reader:
    """What the records of one Redis say. Methods raise `Unreachable` when it does not answer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._redis = connect(settings.redis_url)
        self._alive_seconds = settings.heartbeat_seconds * MISSED_BEATS

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
        found: list[JobRecord] = []
        with self._reached():
            ids = self._live_ids()
            if not live_only:
                newest: Any = self._redis.zrange(keys.JOBS, 0, -1, desc=True)
                ids = list(dict.fromkeys([*ids, *newest]))
            for start in range(0, len(ids), PAGE):
                records = self._records(ids[start : start + PAGE])
                found += [one for one in records if submitter in {None, one.spec.submitter}]
                if len(found) >= limit:
                    break
        return found[:limit]

    def newest(self) -> Iterator[JobRecord]:
        """Every job, the newest first, read page by page."""
        with self._reached():
            ids: Any = self._redis.zrange(keys.JOBS, 0, -1, desc=True)
        for start in range(0, len(ids), PAGE):
            with self._reached():
                records = self._records(ids[start : start + PAGE])
            yield from records

    def events(self, job_id: str, after: str = "0") -> list[Event]:
        """What has happened to the job since the event named `after`."""
        with self._reached():
            full = self._full_id(job_id)
            entries: Any = self._redis.xrange(keys.job_events(full), f"({after}" if after != "0" else "-")
        return [Event.parse(entry_id, fields) for entry_id, fields in entries]

    def why(self, job_id: str) -> Explanation:
        """Why the job is where it is, host by host while it waits.

        By the leader's last snapshot; without a fresh one, by the records of the hosts.
        """
        record = self.get(job_id)
        with self._reached():
            seen = read_snapshot(self._redis) or self._look()
            lessons = read_lessons(self._redis)
            pending = read_job(self._redis, record.id)
            alive = self._redis.get(keys.LEADER) is not None
            ahead: Any = self._redis.zrank(keys.QUEUE, record.id)
            now = fleet.redis_now(self._redis)
        if pending is None:
            return Explanation(
                f"its record cannot be understood; `graft cancel {record.id}` ends it", [], alive, False
            )
        reasons = explain_wait(pending, seen.rooms, lessons, seen.reservations, now)
        never = never_fits(pending, seen.rooms, lessons)
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

    def _look(self) -> Snapshot:
        """The hosts by their own records; what the leader keeps for whom only the leader knows."""
        rooms = fleet.read_rooms(self._redis, self._alive_seconds)
        return Snapshot(fleet.redis_now(self._redis), 0, tuple(rooms), ())

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
        for running_first in (keys.LEASES, keys.PLACED, keys.QUEUE, keys.PAUSED):
            pipeline.zrange(running_first, 0, -1)
        return [JobId(job_id) for ids in pipeline.execute() for job_id in ids]

    def _records(self, ids: list[JobId]) -> list[JobRecord]:
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hgetall(keys.job(job_id))
        found = zip(ids, pipeline.execute(), strict=True)
        records = (_readable(job_id, fields) for job_id, fields in found if fields)
        return [record for record in records if record is not None]

    def _new_lines(self, job_id: JobId, after: str) -> list[LogLine]:
        start = "-" if after == "0" else f"({after}"
        entries: Any = self._redis.xrange(keys.job_log(job_id), start)
        return [
            LogLine(entry_id, Token(int(fields.get("token") or 0)), fields["line"])
            for entry_id, fields in entries
        ]

    @contextmanager
    def _reached(self) -> Iterator[Redis]:
        with reachable(self.settings.redis_url):
            yield self._redis


def _readable(job_id: JobId, fields: dict[str, str]) -> JobRecord | None:
    try:
        return JobRecord.parse(job_id, fields)
    except (GraftError, ValueError, KeyError) as error:
        logger.warning("job %s is left out, its record cannot be understood: %s", job_id, error)
        return None


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
        return f"{ahead} {'job is' if ahead == 1 else 'jobs are'} ahead of it in the queue"
    return "it is first in the queue and waits for a host"


def _summary_of_state(record: JobRecord) -> str:
    where = f" on {record.host_name}" if record.host_name else ""
    match record.state:
        case JobState.PLACED:
            return f"placed{where}; its worker is about to take it"
        case JobState.RUNNING:
            return f"running{where}"
        case JobState.PAUSED:
            return f"paused; `graft resume {record.id}` lets it go on"
        case JobState.FAILED if record.failure:
            return f"failed{where} ({record.failure.failure}): {record.failure.text}"
        case _:
            return f"{record.state.value}{where}"
