"""What the store must keep: every digest that Redis refers to, told by one provider for each kind of record.

Streams are left out: events and log lines tell what was, and keep nothing. So are
the records of hosts, which tell what happens to be on their disks. A digest anywhere else keeps what it
names, also under keys that nobody here knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from redis import Redis

from graft_scheduler import keys
from graft_scheduler.data.names import dataset_digests
from graft_scheduler.errors import Conflict, GraftError
from graft_scheduler.jobs import TrainJob
from graft_scheduler.records import JobRecord
from graft_scheduler.states import Digest, HostId, JobId
from graft_scheduler.tags import read_tags

PAGE = 200
"""Keys read at once."""
JOB, HOST = keys.job(JobId("")), keys.host(HostId(""))
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Root:
    """A file or folder that is kept."""

    digest: Digest
    kind: str
    """Such as `model`, `data`, `checkpoint`, `adapter`, `log`, `study`; `other` where that is not known."""


Provider = Callable[[Redis], Iterator[Root]]


def roots_of_jobs(redis: Redis) -> Iterator[Root]:
    """Of the records of all jobs.

    Raises:
        Conflict: one of them cannot be understood.
    """
    for page in _pages(redis, f"{JOB}*"):
        ids = [JobId(key.removeprefix(JOB)) for key in page if ":" not in key.removeprefix(JOB)]
        pipeline = redis.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hgetall(keys.job(job_id))
        for job_id, fields in zip(ids, pipeline.execute(), strict=True):
            if fields:  # it may have expired since
                yield from _of_job(job_id, fields)


def _of_job(job_id: JobId, fields: dict[str, str]) -> Iterator[Root]:
    try:
        record = JobRecord.parse(job_id, fields)
    except (GraftError, ValueError, KeyError) as error:
        raise Conflict(
            f"the record of job {job_id} cannot be understood, so nobody knows what it needs: {error}"
        ) from error
    kinds: dict[str, str] = {}
    if isinstance(record.spec, TrainJob):
        kinds |= {str(record.spec.model.digest): "model", str(record.spec.data.digest): "data"}
    kinds |= {one.digest: "checkpoint" for one in (*record.checkpoints, record.resume) if one is not None}
    kinds |= {one.digest: "log" for one in record.logs}
    kinds |= {str(record.adapter): "adapter"}
    for text in fields.values():
        for found in _DIGEST.findall(text):
            yield Root(Digest(found), kinds.get(found, "other"))


def stores_of_jobs(redis: Redis) -> set[str]:
    """The ids of the stores that jobs were submitted with."""
    found: set[str] = set()
    for page in _pages(redis, f"{JOB}*"):
        pipeline = redis.pipeline(transaction=False)
        for key in page:
            if ":" not in key.removeprefix(JOB):
                pipeline.hget(key, "store_id")
        found |= {str(one) for one in pipeline.execute() if one}
    return found


def roots_of_tags(redis: Redis) -> Iterator[Root]:
    """Of adapters and checkpoints with a name.

    Raises:
        Conflict: a name cannot be understood.
    """
    try:
        tags = read_tags(redis)
    except ValueError as error:
        raise Conflict(f"{keys.TAGS} in Redis holds what cannot be understood: {error}") from error
    for tag in tags.values():
        yield Root(tag.digest, tag.what)


def roots_of_datasets(redis: Redis) -> Iterator[Root]:
    """Of data sets with a name.

    Raises:
        Conflict: a version cannot be understood.
    """
    try:
        digests = dataset_digests(redis)
    except (ValueError, KeyError) as error:
        raise Conflict(f"a data set's name in Redis cannot be understood: {error}") from error
    for digest in digests:
        yield Root(digest, "data")


def roots_of_studies(redis: Redis) -> Iterator[Root]:
    """Of the records of studies, and of their journals."""
    for page in _pages(redis, f"{keys.STUDY}*"):
        yield from _of_any(redis, page, "study")


def roots_of_others(redis: Redis) -> Iterator[Root]:
    """Whatever else refers to something: what hosts were asked to fetch, and keys of a later version.

    What a host merely has on its disk is not wanted for that.
    """
    for page in _pages(redis, f"{keys.PREFIX}*"):
        others = [key for key in page if not key.startswith((JOB, keys.STUDY))]
        yield from _of_any(redis, [key for key in others if not _tells_what_hosts_have(key)], "other")


def _tells_what_hosts_have(key: str) -> bool:
    host_id = HostId(key.removeprefix(HOST).partition(":")[0])
    return key in {keys.SNAPSHOT, keys.host(host_id), keys.host_models(host_id)}


def _of_any(redis: Redis, names: list[str], what: str) -> Iterator[Root]:
    """Of keys of whatever type."""
    pipeline = redis.pipeline(transaction=False)
    for key in names:
        pipeline.type(key)
    for key, kind in zip(names, pipeline.execute(), strict=True):
        for text in _texts(redis, key, kind):
            for found in _DIGEST.findall(text):
                yield Root(Digest(found), what)


KNOWING: tuple[Provider, ...] = (roots_of_jobs, roots_of_tags, roots_of_datasets, roots_of_studies)
"""What only a Redis has that knows what was put into the store. Hosts report to any, also to a new one."""
PROVIDERS: tuple[Provider, ...] = (*KNOWING, roots_of_others)
"""Whoever keeps digests under keys of a new kind may add one, to have them named; they are found without."""


def _pages(redis: Redis, pattern: str) -> Iterator[list[str]]:
    """Every key of that pattern that was there all the time, and perhaps some that came meanwhile."""
    page: list[str] = []
    for key in redis.scan_iter(match=pattern, count=PAGE):
        page.append(str(key))
        if len(page) == PAGE:
            yield page
            page = []
    yield page


def _texts(redis: Redis, key: str, kind: str) -> Iterator[str]:
    match kind:
        case "hash":
            for name, value in redis.hscan_iter(key, count=PAGE):
                yield f"{name} {value}"
        case "string":
            yield str(redis.get(key) or "")
        case "list":
            yield from _entries(redis, key)
        case "set":
            yield from map(str, redis.sscan_iter(key, count=PAGE))
        case "zset":
            yield from (str(member) for member, _ in redis.zscan_iter(key, count=PAGE))
        case "stream" | "none":
            return
        case _:
            raise Conflict(f"{key} in Redis is a {kind}, and nobody here knows how to read it")


def _entries(redis: Redis, key: str) -> Iterator[str]:
    start = 0
    while page := _range(redis, key, start):
        yield from page
        start += len(page)


def _range(redis: Redis, key: str, start: int) -> list[Any]:
    found: Any = redis.lrange(key, start, start + PAGE - 1)
    return list(found)
