"""Reads the queue and the hosts as they are now, for the leader, the client and `graft why`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import StrictInt, TypeAdapter, ValidationError
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.placement import HostRoom, PendingJob
from graft_scheduler.records import HostInfo, HostRecord
from graft_scheduler.states import HostId, JobId

logger = logging.getLogger(__name__)

PAGE = 500
"""Queued jobs read at once."""
MAX_PENDING = 5000
"""Queued jobs looked at in one round, oldest first."""
PENDING_FIELDS = ("estimates", "store_id", "remote_code", "avoid", "not_before")

_ESTIMATES = TypeAdapter(dict[str, StrictInt])


@dataclass(frozen=True, slots=True)
class Commitment:
    """What one placed or running job holds."""

    job: JobId
    host: HostId
    machine: str
    bytes: int


def redis_now(redis: Redis) -> float:
    """Seconds since 1970 on Redis' clock."""
    reply: Any = redis.time()
    return _seconds(reply)


def read_hosts(redis: Redis, alive_seconds: float) -> list[HostRecord]:
    """Every registered host, by name."""
    seen: Any = redis.zrange(keys.HOSTS, 0, -1, withscores=True)
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.hgetall(keys.COMMITTED)
    for host_id, _ in seen:
        pipeline.hgetall(keys.host(HostId(host_id)))
    time, committed, *hashes = pipeline.execute()
    held = parse_commitments(committed)
    hosts = [
        _host(fields, info, at / 1000, _seconds(time), alive_seconds, held)
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
    entries = [(JobId(job), json.loads(text)) for job, text in committed.items()]
    return [Commitment(job, HostId(one["host"]), one["machine"], int(one["bytes"])) for job, one in entries]


def host_rooms(hosts: Sequence[HostRecord]) -> list[HostRoom]:
    """The hosts as placement sees them."""
    by_machine: dict[str, int] = {}
    for host in hosts:
        by_machine[host.info.machine_id] = by_machine.get(host.info.machine_id, 0) + host.committed_bytes
    return [
        HostRoom(
            id=host.info.id,
            name=host.info.name,
            backend=host.info.backend,
            machine_id=host.info.machine_id,
            store_id=host.info.store_id,
            budget_bytes=host.info.budget_bytes,
            machine_bytes=host.info.machine_bytes,
            slots=host.info.slots,
            used_slots=len(host.jobs),
            committed_bytes=host.committed_bytes,
            machine_committed_bytes=by_machine[host.info.machine_id],
            is_alive=host.is_alive,
            is_draining=host.is_draining,
            is_cordoned=host.is_cordoned,
            allow_remote_code=host.info.allow_remote_code,
            missed_claims=host.missed_claims,
            rest_seconds=host.rest_seconds,
        )
        for host in hosts
    ]


def read_pending(redis: Redis) -> Iterator[list[PendingJob]]:
    """The head of the queue, page by page, oldest of the most urgent first."""
    ids: Any = redis.zrange(keys.QUEUE, 0, MAX_PENDING - 1)
    for start in range(0, len(ids), PAGE):
        yield read_pending_jobs(redis, [JobId(job_id) for job_id in ids[start : start + PAGE]])


def read_pending_jobs(redis: Redis, ids: Sequence[JobId]) -> list[PendingJob]:
    """These jobs as placement sees them; those without a record that can be read are left out."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    for job_id in ids:
        pipeline.hmget(keys.job(job_id), *PENDING_FIELDS)
    time, *rows = pipeline.execute()
    found = [
        _pending(job_id, dict(zip(PENDING_FIELDS, row, strict=True)), _seconds(time))
        for job_id, row in zip(ids, rows, strict=True)
    ]
    return [job for job in found if job is not None]


def _seconds(time: Sequence[int]) -> float:
    """Redis' reply to TIME, seconds and microseconds, as seconds."""
    return time[0] + time[1] / 1e6


def _pending(job_id: JobId, fields: Mapping[str, str | None], now: float) -> PendingJob | None:
    if fields["store_id"] is None:
        return None
    try:
        return PendingJob(
            id=job_id,
            estimates=_ESTIMATES.validate_json(fields["estimates"]) if fields["estimates"] else None,
            store_id=fields["store_id"],
            needs_remote_code=fields["remote_code"] == "1",
            avoid=HostId(fields["avoid"]) if fields["avoid"] else None,
            pause_seconds=max(0.0, int(fields["not_before"] or 0) / 1000 - now),
        )
    except ValueError as error:
        logger.warning("job %s is left out, its record cannot be understood: %s", job_id, error)
        return None


def _host_info(fields: Mapping[str, str]) -> HostInfo | None:
    """What the host said of itself; nothing when it speaks another version of Graft's words."""
    try:
        return HostInfo.model_validate_json(fields.get("info", ""))
    except ValidationError as error:
        logger.warning("host %s is left out: %s", fields.get("name"), error)
        return None


def _host(
    fields: Mapping[str, str],
    info: HostInfo,
    seen_at: float,
    now: float,
    alive_seconds: float,
    held: Sequence[Commitment],
) -> HostRecord:
    mine = [one for one in held if one.host == info.id]
    return HostRecord(
        info=info,
        seen_at=seen_at,
        is_alive=now - seen_at <= alive_seconds,
        is_draining=fields.get("draining") == "1",
        is_cordoned=fields.get("cordoned") == "1",
        faults=len(json.loads(fields.get("faulty_jobs") or "[]")),
        missed_claims=int(fields.get("missed_claims") or 0),
        rest_seconds=max(0.0, float(fields.get("rests_until") or 0) / 1000 - now),
        committed_bytes=sum(one.bytes for one in mine),
        jobs=tuple(one.job for one in mine),
    )
