"""Reads the hosts as they are now, for the leader, the client and `graft why`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.records import Commitment, HostInfo, HostRecord
from graft_scheduler.rooms import HostRoom, Running
from graft_scheduler.states import HostId, JobId

logger = logging.getLogger(__name__)


HOST_FIELDS = ("info", "name", "draining", "cordoned", "faulty_jobs", "missed_claims", "rests_until")
"""What is read of a host; its other fields are for the scripts."""
PROGRESS_SECONDS = 5.0
"""How long it is believed what a job said of when it ends."""


def redis_now(redis: Redis) -> float:
    """Seconds since 1970 on Redis' clock."""
    reply: Any = redis.time()
    return seconds_of(reply)


def seconds_of(time: Sequence[int]) -> float:
    """Redis' reply to TIME, seconds and microseconds, as seconds."""
    return time[0] + time[1] / 1e6


def read_hosts(redis: Redis, alive_seconds: float) -> list[HostRecord]:
    """Every registered host, by name."""
    seen: Any = redis.zrange(keys.HOSTS, 0, -1, withscores=True)
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.hgetall(keys.COMMITTED)
    for host_id, _ in seen:
        pipeline.hmget(keys.host(HostId(host_id)), *HOST_FIELDS)
    time, committed, *rows = pipeline.execute()
    hashes = [dict(zip(HOST_FIELDS, row, strict=True)) for row in rows]
    held = _by_host(parse_commitments(committed))
    hosts = [
        _host(fields, info, at / 1000, seconds_of(time), alive_seconds, held.get(info.id, []))
        for (_, at), fields in zip(seen, hashes, strict=True)
        if (info := _host_info(fields)) is not None
    ]
    return sorted(hosts, key=lambda host: (host.info.name, host.info.id))


def read_commitments(redis: Redis) -> list[Commitment]:
    """What every placed and running job holds."""
    committed: Any = redis.hgetall(keys.COMMITTED)
    return parse_commitments(committed)


def parse_commitments(committed: Mapping[str, str]) -> list[Commitment]:
    """The commitments in the hash of that name."""
    return [_commitment(JobId(job), json.loads(text)) for job, text in committed.items()]


def read_rooms(redis: Redis, alive_seconds: float) -> list[HostRoom]:
    """The hosts as placement sees them, with what is known of when their jobs end."""
    return Rooms(redis, alive_seconds).read()


class Rooms:
    """The hosts of one Redis as placement sees them, for somebody who looks again and again."""

    def __init__(self, redis: Redis, alive_seconds: float) -> None:
        self._redis = redis
        self._alive_seconds = alive_seconds
        self._ends_at: dict[JobId, float] = {}
        """As the jobs last said, on Redis' clock; those that said nothing are asked again."""
        self._asked_at = float("-inf")

    def read(self) -> list[HostRoom]:
        """As they are now; when their jobs end as far as it was known a few seconds ago."""
        hosts = read_hosts(self._redis, self._alive_seconds)
        now = redis_now(self._redis)
        jobs = [one.job for host in hosts for one in host.held]
        if abs(now - self._asked_at) > PROGRESS_SECONDS:
            self._ends_at, self._asked_at = {}, now
        self._ask([job for job in jobs if job not in self._ends_at], now)
        left = {job: max(0.0, self._ends_at[job] - now) for job in jobs if job in self._ends_at}
        return host_rooms(hosts, left, now)

    def _ask(self, jobs: Sequence[JobId], now: float) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for job in jobs:
            pipeline.hget(keys.job(job), "progress")
        for job, text in zip(jobs, pipeline.execute(), strict=True):
            if (left := _seconds_left(text)) is not None:
                self._ends_at[job] = now + left


def host_rooms(
    hosts: Sequence[HostRecord], seconds_left: Mapping[JobId, float], now: float
) -> list[HostRoom]:
    """The hosts as placement sees them."""
    by_machine: dict[str, list[Commitment]] = {}
    for host in hosts:
        by_machine.setdefault(host.info.machine_id, []).extend(host.held)
    return [_room(host, by_machine[host.info.machine_id], seconds_left, now) for host in hosts]


def _room(
    host: HostRecord, on_machine: Sequence[Commitment], seconds_left: Mapping[JobId, float], now: float
) -> HostRoom:
    info = host.info
    return HostRoom(
        id=info.id,
        name=info.name,
        backend=info.backend,
        machine_id=info.machine_id,
        store_id=info.store_id,
        budget_bytes=info.budget_bytes,
        machine_bytes=info.machine_bytes,
        slots=info.slots,
        used_slots=len(host.held),
        committed_bytes=host.committed_bytes,
        machine_committed_bytes=sum(one.bytes for one in on_machine),
        is_alive=host.is_alive,
        is_draining=host.is_draining,
        is_cordoned=host.is_cordoned,
        allow_remote_code=info.allow_remote_code,
        missed_claims=host.missed_claims,
        rest_seconds=host.rest_seconds,
        chip=info.chip,
        device=info.device,
        mlx=info.mlx,
        cached=frozenset(info.cached),
        available_bytes=_available(host, on_machine),
        free_disk_bytes=info.free_disk_bytes,
        no_access=frozenset(info.no_access),
        running=tuple(_running(one, seconds_left.get(one.job), now) for one in host.held),
    )


def _available(host: HostRecord, on_machine: Sequence[Commitment]) -> int | None:
    """What other processes leave to new jobs: what they leave to all, less what those here may take."""
    if host.info.available_bytes is None:
        return None
    return host.info.available_bytes - sum(one.bytes for one in on_machine)


def _running(one: Commitment, seconds_left: float | None, now: float) -> Running:
    if seconds_left is None and one.ends_at is not None:
        seconds_left = max(0.0, one.ends_at - now)
    return Running(one.job, one.bytes, seconds_left, one.beside)


def _seconds_left(progress: str | None) -> float | None:
    """As the job itself last said."""
    try:
        said = json.loads(progress or "{}").get("seconds_left")
    except (ValueError, AttributeError):  # nothing that a worker of ours wrote
        return None
    return float(said) if isinstance(said, int | float) else None


def _by_host(commitments: Sequence[Commitment]) -> dict[HostId, list[Commitment]]:
    found: dict[HostId, list[Commitment]] = {}
    for one in commitments:
        found.setdefault(one.host, []).append(one)
    return found


def _commitment(job: JobId, one: Mapping[str, Any]) -> Commitment:
    ends = one.get("ends")
    return Commitment(
        job=job,
        host=HostId(one["host"]),
        machine=one["machine"],
        bytes=int(one["bytes"]),
        placed_at=one.get("at", 0) / 1000,
        ends_at=None if ends is None else ends / 1000,
        beside=JobId(one["beside"]) if one.get("beside") else None,
    )


def _host_info(fields: Mapping[str, str | None]) -> HostInfo | None:
    """What the host said of itself; nothing when it speaks another version of Graft's words."""
    try:
        return _parse_info(fields["info"] or "")
    except ValidationError as error:
        logger.warning("host %s is left out: %s", fields.get("name"), error)
        return None


@lru_cache(maxsize=4096)
def _parse_info(text: str) -> HostInfo:
    """Hosts say the same at most reports."""
    return HostInfo.model_validate_json(text)


def _host(
    fields: Mapping[str, str | None],
    info: HostInfo,
    seen_at: float,
    now: float,
    alive_seconds: float,
    held: Sequence[Commitment],
) -> HostRecord:
    return HostRecord(
        info=info,
        seen_at=seen_at,
        is_alive=now - seen_at <= alive_seconds,
        is_draining=fields.get("draining") == "1",
        is_cordoned=fields.get("cordoned") == "1",
        faults=len(json.loads(fields.get("faulty_jobs") or "[]")),
        missed_claims=int(fields.get("missed_claims") or 0),
        rest_seconds=max(0.0, float(fields.get("rests_until") or 0) / 1000 - now),
        held=tuple(held),
    )
