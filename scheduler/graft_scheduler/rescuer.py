"""What the leader does for jobs that nobody holds any more."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from graft_scheduler import fleet, keys
from graft_scheduler.broker import Broker, node_name
from graft_scheduler.records import Assignment
from graft_scheduler.states import HostId, JobId, JobState
from graft_scheduler.transitions import HOST_TTL_SECONDS, Transitions

logger = logging.getLogger(__name__)

RECORD_DAYS = 90
"""As in `prelude.lua`: ended jobs are forgotten by Redis itself; here they leave the index."""


def overdue(redis: Redis) -> list[JobId]:
    """Jobs that were not claimed in time, and jobs that lost their lease."""
    now_ms = fleet.redis_now(redis) * 1000
    found: list[Any] = []
    for deadlines in (keys.PLACED, keys.LEASES):
        due: Any = redis.zrangebyscore(deadlines, "-inf", now_ms)
        found += due
    return [JobId(job_id) for job_id in found]


def rescue(redis: Redis, transitions: Transitions, broker: Broker, job_id: JobId) -> None:
    """Queue one overdue job again; one whose record cannot be read is left where it is."""
    try:
        _expire(redis, transitions, broker, job_id)
    except (ResponseError, ValueError) as error:
        logger.warning("job %s is overdue and cannot be rescued: %s", job_id, error)


def release_restarted(
    redis: Redis, transitions: Transitions, broker: Broker, host_id: HostId, boot: str
) -> None:
    """Queue again what an earlier life of this worker held: it is gone, and need not run out."""
    for held in fleet.read_commitments(redis):
        if held.host == host_id:
            _expire(redis, transitions, broker, held.job, boot)


def announce_waiting(redis: Redis, broker: Broker, ids: Sequence[JobId]) -> None:
    """Let Flower list these queued jobs as pending."""
    pipeline = redis.pipeline(transaction=False)
    for job_id in ids:
        pipeline.hmget(keys.job(job_id), "token", "kind", "submitter")
    found = zip(ids, pipeline.execute(), strict=True)
    broker.announce_waiting(
        (job_id, int(token), kind, person) for job_id, (token, kind, person) in found if token is not None
    )


def forget_old(redis: Redis) -> None:
    """Take jobs and hosts out of the indices whose records have run out."""
    now_ms = fleet.redis_now(redis) * 1000
    oldest: Any = redis.zrangebyscore(keys.JOBS, "-inf", now_ms - RECORD_DAYS * 86_400_000, start=0, num=100)
    for job_id in oldest:
        if not redis.exists(keys.job(JobId(job_id))):
            redis.zrem(keys.JOBS, job_id)
    redis.zremrangebyscore(keys.HOSTS, "-inf", now_ms - HOST_TTL_SECONDS * 1000)


def _expire(
    redis: Redis, transitions: Transitions, broker: Broker, job_id: JobId, restarted_boot: str = ""
) -> None:
    fields: Any = redis.hmget(keys.job(job_id), "host", "token", "state", "assignment")
    host, token, before, assignment = fields
    state = transitions.expire(job_id, HostId(host or ""), restarted_boot)
    if state is None:
        return
    why = "not claimed in time" if before == JobState.PLACED else "its host was lost"
    logger.info("job %s, attempt %s: %s; now %s", job_id, token, why, state)
    name = Assignment.model_validate_json(assignment).host_name
    broker.announce_failed(job_id, int(token), why, node_name(name, HostId(host)))
    if state is JobState.QUEUED:
        announce_waiting(redis, broker, [job_id])
