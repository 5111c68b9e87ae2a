"""The jobs of a comparison in Redis, by their label: newest first, and no further than needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from redis import Redis

from graft_scheduler import keys
from graft_scheduler.comparison.labels import COMPARISON, Membership
from graft_scheduler.errors import Conflict, NotFound
from graft_scheduler.states import JobId

PAGE = 1000
"""Specifications read at once."""
MOST_NAMED = 5
"""Comparisons that are named where the one asked for is not there."""


def find_jobs(redis: Redis, name: str) -> tuple[JobId, ...]:
    """The jobs of the comparison, in the order of its variants.

    Raises:
        NotFound: there is none of that name; names the newest that there are.
    """
    found: list[tuple[int, JobId]] = []
    others: dict[str, None] = {}
    for job, member in _members(redis):
        if member.comparison != name:
            others[member.comparison] = None
            continue
        found.append((member.place or 0, job))
        if len(found) == member.of:
            break
    if not found:
        raise NotFound(f"there is no comparison {name}{_others(list(others))}")
    return tuple(job for _, job in sorted(found))


def refuse_known(redis: Redis, name: str) -> None:
    """Refuse a name that is taken.

    Raises:
        Conflict: there are jobs of a comparison of that name.
    """
    if any(member.comparison == name for _, member in _members(redis)):
        raise Conflict(
            f"there is a comparison {name} already; choose another name, or see this one with "
            f"`graft compare --show {name}`"
        )


def _members(redis: Redis) -> Iterator[tuple[JobId, Membership]]:
    """Jobs that are in any comparison, newest first."""
    ids: Any = redis.zrange(keys.JOBS, 0, -1, desc=True)
    for start in range(0, len(ids), PAGE):
        page = [JobId(one) for one in ids[start : start + PAGE]]
        pipeline = redis.pipeline(transaction=False)
        for job in page:
            pipeline.hget(keys.job(job), "spec")
        for job, spec in zip(page, pipeline.execute(), strict=True):
            if member := _member(spec):
                yield job, member


def _member(spec: str | None) -> Membership | None:
    if not spec or f'"{COMPARISON}"' not in spec:
        return None
    labels = json.loads(spec).get("labels")
    return Membership.read(labels) if isinstance(labels, dict) else None


def _others(names: list[str]) -> str:
    if not names:
        return "; `graft compare` starts one"
    more = ", ..." if len(names) > MOST_NAMED else ""
    return f"; the newest are {', '.join(names[:MOST_NAMED])}{more}"
