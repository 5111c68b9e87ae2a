"""Reads the queue as groups of jobs that are alike, without reading every job.

Redis keeps the groups (`regroup` in `prelude.lua`). Nothing read here is needed by the next leader.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from graft_scheduler import keys
from graft_scheduler.demand import Request
from graft_scheduler.fleet import seconds_of
from graft_scheduler.placement import PRIORITY_STEP, Group, Queued
from graft_scheduler.rooms import PendingJob
from graft_scheduler.states import HostId, JobId

logger = logging.getLogger(__name__)

HEAD = 200
"""Jobs of one group that are read at once; a decision that needs more is followed by another."""
FIRST_GROUPS = 1000
"""Groups looked at in every round, in the order of their first jobs."""
OTHER_GROUPS = 1000
"""And as many of those behind them, in turn, so that no group is hidden for ever."""
MOST_REMEMBERED = 20_000
"""Requests that are not parsed again."""
FIELDS = ("request", "avoid", "above_bytes", "not_before", "reserved_on")
"""What makes jobs alike, in the order of `regroup`."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the jobs of one group ask for."""

    kind: str
    request: Request
    avoid: HostId | None
    above_bytes: int
    not_before: float
    reserved_on: HostId | None

    def job(self, job_id: JobId, priority: int, now: float) -> PendingJob:
        return PendingJob(
            id=job_id,
            request=self.request,
            priority=priority,
            avoid=self.avoid,
            pause_seconds=max(0.0, self.not_before - now),
            above_bytes=self.above_bytes,
            reserved_on=self.reserved_on,
        )


class Queue:
    """The queued jobs of one Redis, as groups."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: dict[str, _Asked | None] = {}
        """By the name of the group, which is the digest of what it asks for: never out of date."""
        self._cursor = 0

    def read(self, without: Container[JobId] = ()) -> list[Group]:
        """The groups to look at now; those that cannot be understood are left out."""
        names = self._names()
        self._learn(names)
        known = [(name, asked) for name in names if (asked := self._asked.get(name)) is not None]
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        for name, _ in known:
            pipeline.zrangebylex(keys.GROUPED, f"[{name}:", f"({name};", 0, HEAD + 1)
        time, *heads = pipeline.execute()
        now = seconds_of(time)
        return [
            _group(asked, members, now, without) for (_, asked), members in zip(known, heads, strict=True)
        ]

    def _names(self) -> list[str]:
        """The first groups, some of the others, and all that hold a reservation."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zrange(keys.GROUPS, 0, FIRST_GROUPS - 1)
        start = FIRST_GROUPS + self._cursor
        pipeline.zrange(keys.GROUPS, start, start + OTHER_GROUPS - 1)
        pipeline.hkeys(keys.RESERVED)
        first, others, reserved = pipeline.execute()
        self._cursor = self._cursor + OTHER_GROUPS if len(others) == OTHER_GROUPS else 0
        return list(dict.fromkeys([*first, *others, *reserved]))

    def _learn(self, names: Iterable[str]) -> None:
        """What groups that were not seen before ask for."""
        unknown = [name for name in names if name not in self._asked]
        if not unknown:
            return
        if len(self._asked) > MOST_REMEMBERED:
            self._asked.clear()
            unknown = list(names)
        texts: Any = self._redis.hmget(keys.GROUP_REQUESTS, unknown)
        for name, text in zip(unknown, texts, strict=True):
            if text is not None:  # else its last job has just left
                self._asked[name] = _parse(name, json.loads(text))


def read_job(redis: Redis, job_id: JobId) -> PendingJob | None:
    """One job as placement sees it; nothing when its record cannot be understood."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.hmget(keys.job(job_id), *FIELDS, "score")
    time, (*fields, score) = pipeline.execute()
    asked = _parse(f"of job {job_id}", fields)
    if asked is None:
        return None
    return asked.job(job_id, int(float(score or 0)) // PRIORITY_STEP, seconds_of(time))


def _group(asked: _Asked, members: Sequence[str], now: float, without: Container[JobId]) -> Group:
    jobs = [job for member in members[:HEAD] if (job := _queued(member)).id not in without]
    first = jobs[0] if jobs else Queued(0, JobId(""))
    sample = asked.job(first.id, first.priority, now)
    return Group(asked.kind, sample, jobs, is_cut=len(members) > HEAD)


def _queued(member: str) -> Queued:
    _, score, job_id = member.split(":", 2)
    return Queued(int(score), JobId(job_id))


def _parse(name: str, fields: Sequence[str | None]) -> _Asked | None:
    try:
        request, avoid, above, not_before, reserved_on = (text or "" for text in fields)
        return _Asked(
            kind=f"{request} {avoid} {above}",
            request=Request.model_validate_json(request),
            avoid=HostId(avoid) if avoid else None,
            above_bytes=int(above or 0),
            not_before=int(not_before or 0) / 1000,
            reserved_on=HostId(reserved_on) if reserved_on else None,
        )
    except ValueError as error:
        logger.warning(
            "the jobs of group %s are left out, their request cannot be understood: %s", name, error
        )
        return None
