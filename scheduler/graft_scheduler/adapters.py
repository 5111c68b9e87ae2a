"""What jobs have made: adapters and checkpoints, found by job or by name, fetched, named and removed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from redis import Redis

from graft_scheduler.cards import ADAPTER_FILES, CARD_FILE, WEIGHTS_FILE, Card, parse_card, public_name
from graft_scheduler.checkpoints import KeptCheckpoint, Which, pick
from graft_scheduler.errors import Conflict, InvalidInput, NotFound
from graft_scheduler.jobs import TrainJob, current_user
from graft_scheduler.records import JobRecord
from graft_scheduler.states import Digest, JobId
from graft_scheduler.tags import Tag, check_name, read_tag, read_tags
from graft_scheduler.transitions import Transitions

if TYPE_CHECKING:
    from graft_scheduler.client import Client

Reached = Callable[[], AbstractContextManager[object]]
"""A context in which errors of Redis become ours."""


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter, or a checkpoint taken for one."""

    what: Literal["adapter", "checkpoint"]
    digest: Digest
    job: JobId
    step: int | None
    made_at: float | None
    """Seconds since 1970."""
    bytes: int | None
    base: str
    method: str
    data: str
    loss: float | None
    host: str | None
    tags: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"tags": list(self.tags)}


class Adapters:
    """The adapters of one service. Where one is meant, a name or a job's id may be given; names come first.

    Methods raise `Unreachable` when Redis or the store does not answer, and `NotFound` for what is not there.
    """

    def __init__(self, client: Client, redis: Redis, reached: Reached) -> None:
        self._client, self._redis, self._reached = client, redis, reached
        self._transitions = Transitions(redis)

    def all(self, limit: int = 50) -> list[Found]:
        """Those with a name, and the newest of the others; the newest first."""
        with self._reached():
            tags = read_tags(self._redis)
        names: dict[Digest, list[str]] = {}
        for name, tag in tags.items():
            names.setdefault(tag.digest, []).append(name)
        found: dict[Digest, Found] = {}
        for record in self._ended(limit):
            one = _of_adapter(record)
            found[one.digest] = _named(one, names)
        for tag in tags.values():
            found.setdefault(tag.digest, _named(_of_tag(tag), names))
        return sorted(found.values(), key=lambda one: one.made_at or 0.0, reverse=True)

    def find(self, name: str, checkpoint: Which | None = None) -> Found:
        """The adapter of a job or the one of that name; with `checkpoint`, that checkpoint of the job.

        Raises:
            Conflict: the job has no adapter (yet), or somebody removed it: says who and when.
        """
        with self._reached():
            tag = read_tag(self._redis, name)
        if tag is not None and checkpoint is None:
            return _of_tag(tag)
        record = self._client.get(name if tag is None else tag.job)
        if checkpoint is not None:
            _refuse_removed(record, bool(record.checkpoints))
            return _of_checkpoint(record, pick(record.checkpoints, checkpoint, record.id))
        _refuse_removed(record, record.adapter is not None)
        if record.adapter is None:
            raise Conflict(
                f"job {record.id} is {record.state.shown} and has no adapter to pull{_instead(record)}"
            )
        return _of_adapter(record)

    def base_of(self, found: Found) -> str:
        """The base as whoever submitted the job wrote it, while the job is remembered; else its name."""
        try:
            spec = self._client.get(found.job).spec
        except NotFound:
            return found.base
        return spec.model.source if isinstance(spec, TrainJob) else ""

    def pull(
        self, name: str, destination: Path, checkpoint: Which | None = None, *, whole: bool = False
    ) -> Path:
        """Fetch an adapter into `destination`, which must not exist or be empty.

        Of a checkpoint only what makes an adapter comes along; all of it if it is to be `whole`.

        Raises:
            Conflict: as `find`.
            InvalidInput: the checkpoint is none of an adapter.
        """
        found, store = self.find(name, checkpoint), self._client.store()
        if found.what == "adapter" or whole:
            store.get_folder(found.digest, destination)
            return destination
        if WEIGHTS_FILE not in store.files(found.digest):
            raise InvalidInput(
                f"the checkpoint of step {found.step} of job {found.job} holds no adapter; "
                "`--whole` brings what it holds"
            )
        store.get_folder(found.digest, destination, ADAPTER_FILES)
        return destination

    def card(self, name: str, checkpoint: Which | None = None) -> Card:
        """What is known of an adapter.

        Raises:
            NotFound: it was made without a card.
        """
        found, store = self.find(name, checkpoint), self._client.store()
        entry = store.files(found.digest).get(CARD_FILE)
        if entry is None:
            raise NotFound(f"the {found.what} of job {found.job} has no card")
        return parse_card(store.get_bytes(entry.digest), f"job {found.job}")

    def tag(self, job: str, name: str, checkpoint: Which | None = None, *, force: bool = False) -> Tag:
        """Give an adapter or checkpoint a name, under which it is kept for ever.

        Raises:
            InvalidInput: `name` can be none.
            Conflict: it is another's, and is not to be moved (`force`).
        """
        self._check_free(check_name(name))
        found = self.find(job, checkpoint)
        tag = Tag(
            name=name,
            by=current_user(),
            at=time.time(),
            **{one.name: getattr(found, one.name) for one in fields(found) if one.name != "tags"},
        )
        with self._reached():
            other = self._transitions.tag(tag, force=force)
        if other is not None:
            raise Conflict(
                f"`{name}` names the {other.what} of job {other.job}; `--force` moves it, "
                "or choose another name"
            )
        return tag

    def untag(self, name: str) -> Tag:
        """Take a name away from what has it."""
        with self._reached():
            tag = read_tag(self._redis, name)
            if tag is None:
                raise NotFound(f"nothing is named {name}; `graft adapter ls` lists the names")
            self._transitions.untag(tag, current_user())
        return tag

    def is_name(self, name: str) -> bool:
        """Whether something has this name."""
        with self._reached():
            return read_tag(self._redis, name) is not None

    def names_of(self, job: JobId) -> list[Tag]:
        """The names that what a job has made goes by."""
        with self._reached():
            return [tag for tag in read_tags(self._redis).values() if tag.job == job]

    def remove(self, job: str) -> JobRecord:
        """Take adapter and checkpoints of an ended job out of its record; what has a name stays under it.

        Raises:
            Conflict: the job has not ended, or has made nothing.
        """
        record = self._client.get(job)
        if record.state.is_terminal and record.adapter is None and not record.checkpoints:
            _refuse_removed(record, has_some=False)
            raise Conflict(f"job {record.id} has no adapter and no checkpoints")
        with self._reached():
            self._transitions.remove_adapter(record.id, current_user())
        return self._client.get(record.id)

    def _ended(self, limit: int) -> Iterator[JobRecord]:
        """The newest jobs that have an adapter."""
        with_adapter = (record for record in self._client.newest() if record.adapter is not None)
        yield from islice(with_adapter, limit)

    def _check_free(self, name: str) -> None:
        """Raises `InvalidInput` for a name by which a job could be meant."""
        try:
            record = self._client.get(name)
        except (NotFound, InvalidInput):
            return
        raise InvalidInput(
            f"`NAME` is {name}, and the id of job {record.id} begins like that; choose another"
        )


def _of_adapter(record: JobRecord) -> Found:
    assert record.adapter is not None
    result = record.result
    loss = None if result is None or result.perplexity is None else math.log(result.perplexity)
    return Found(
        "adapter",
        record.adapter,
        record.id,
        None if result is None else result.saved_step,
        record.finished_at,
        record.adapter_bytes,
        *_sources(record),
        loss,
        record.host_name,
    )


def _of_checkpoint(record: JobRecord, one: KeptCheckpoint) -> Found:
    made_at = one.at / 1000
    return Found(
        "checkpoint",
        one.digest,
        record.id,
        one.step,
        made_at,
        one.bytes,
        *_sources(record),
        one.loss,
        record.host_name,
    )


def _of_tag(tag: Tag) -> Found:
    return Found(
        tag.what,
        tag.digest,
        tag.job,
        tag.step,
        tag.made_at,
        tag.bytes,
        tag.base,
        tag.method,
        tag.data,
        tag.loss,
        tag.host,
        (tag.name,),
    )


def _sources(record: JobRecord) -> tuple[str, str, str]:
    """Base, method and data, as others may read them."""
    spec = record.spec
    if not isinstance(spec, TrainJob):
        return "", spec.kind, ""
    base = public_name(spec.model.source, is_local=spec.model.digest is not None)
    return base, spec.method.value, spec.data.version or public_name(spec.data.source, is_local=False)


def _named(one: Found, names: dict[Digest, list[str]]) -> Found:
    return replace(one, tags=tuple(names.get(one.digest, ())))


def _refuse_removed(record: JobRecord, has_some: bool) -> None:
    if record.removed is not None and not has_some:
        at = datetime.fromtimestamp(record.removed.at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise Conflict(f"what job {record.id} had made was removed by {record.removed.by} on {at}")


def _instead(record: JobRecord) -> str:
    if not record.checkpoints:
        return ""
    last = max(record.checkpoints, key=lambda one: one.step)
    return f"; `--checkpoint last` brings that of step {last.step}"
