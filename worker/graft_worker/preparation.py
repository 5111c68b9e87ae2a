"""What a runner needs before it can begin: model, data and checkpoint on this host, and its orders."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from redis.exceptions import RedisError

from graft_scheduler.basemodels import looks_like_path
from graft_scheduler.checkpoints import KeptCheckpoint
from graft_scheduler.errors import GraftError, InvalidInput
from graft_scheduler.jobs import ModelRef, TrainJob
from graft_scheduler.lessons import LessonKey, demand_factor, read_lesson
from graft_scheduler.memory import format_bytes
from graft_scheduler.messages import Start
from graft_scheduler.records import HostInfo, JobRecord, ResumePoint
from graft_scheduler.settings import Settings
from graft_scheduler.states import Digest, FailureClass
from graft_scheduler.store import Store
from graft_scheduler.transitions import Transitions
from graft_worker.access import Access
from graft_worker.cache.disk import told_disk
from graft_worker.cache.host_cache import Coming, HostCache
from graft_worker.cache.items import Item, data_item, model_item
from graft_worker.cache.notes import Note
from graft_worker.cache.uses import Uses
from graft_worker.host import HostFolder
from graft_worker.hub_fetching import Watch, fetch_from_hub
from graft_worker.lease import LeaseKeeper
from graft_worker.link import JobError
from graft_worker.relay import Relay
from graft_worker.residency import runner_name
from graft_worker.runners import Runners

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""A folder of the attempt's, the runner's to write."""
STEP = "step-"
"""What a checkpoint's folder there is named, before its step."""
LOG_SECONDS = 15.0
"""Between two lines of a job's log that tell how far a fetch is."""


class Stopped(Exception):
    """The attempt is to stop before its runner has begun."""


class Needs:
    """What an attempt keeps from being removed, and whether it still wants what it waits for."""

    def __init__(self, relay: Relay, keeper: LeaseKeeper) -> None:
        self.uses = Uses()
        self._relay, self._keeper = relay, keeper
        self._told_at = float("-inf")

    def check(self) -> None:
        """Raises `Stopped` or `Fenced` when a fetch is not waited for any more."""
        self._keeper.check()
        if self._keeper.stop_reason is not None:
            raise Stopped

    def tell(self, what: str, brought: int, total: int) -> None:
        """In the job's log, now and then."""
        if time.monotonic() - self._told_at >= LOG_SECONDS:
            self._told_at = time.monotonic()
            self._relay.log(f"fetching {what}: {format_bytes(brought)} of {format_bytes(total)}")
        self._relay.flush()


@dataclass(slots=True)
class Worker:
    """What every attempt on this host shares."""

    info: HostInfo
    """As it was told last: heartbeats put a newer one in its place."""
    folder: HostFolder
    settings: Settings
    transitions: Transitions
    quick: Transitions
    """On connections that give up well within a lease, for what must not wait."""
    store: Store
    leaves: threading.Event
    """Set when the worker shuts down: jobs are given back."""
    runners: Runners = field(default_factory=lambda: Runners(1))
    cache: HostCache = field(init=False)
    access: Access = field(default_factory=Access)

    def __post_init__(self) -> None:
        let_go = self.runners.end_waiting
        self.cache = HostCache(self.folder.cache, self.settings, self.info.id, let_go=let_go)

    def tell(self) -> None:
        """Say now, not with the next heartbeat, what this host can take."""
        news = {"no_access": self.access.refused(), "free_disk_bytes": told_disk(self.cache.free_bytes())}
        self.info = self.info.model_copy(update=news)
        self.quick.host_beat(self.info, self.settings.heartbeat_seconds)


def prepare(worker: Worker, record: JobRecord, relay: Relay, deadline: float, needs: Needs) -> Start:
    """The orders for a runner, with all that they name fetched from the store or the hub.

    Raises:
        StoreError, Unreachable: something cannot be fetched, or there is no room for it.
        NoAccess: the hub does not let this host have the model.
        JobError: the hub has no such model.
        Stopped, Fenced: the attempt is to stop while something is fetched.
    """
    spec = record.spec
    model = data = None
    if isinstance(spec, TrainJob):
        model = _fetch_model(worker, spec.model, needs)
        if spec.data.digest is not None:
            data = fetch_from_store(worker, data_item(spec.data.digest), needs.uses, needs)
    folder = worker.folder.attempt_dir(record.id, record.token)
    point, resume = _resume(worker, record, relay, needs)
    if point is not None:
        relay.log(f"going on from step {point.step}")
    return Start(
        job=record.id,
        token=record.token,
        spec=spec,
        work_dir=str(folder),
        model_dir=_text(model),
        data_dir=_text(data),
        resume_dir=_text(resume),
        pause_step=record.pause_step,
        budget_bytes=record.reserved_bytes or worker.info.budget_bytes,
        memory_limit=record.memory_limit,
        memory_factor=_memory_factor(worker, record),
        wired_bytes=worker.settings.wired_memory_bytes,
        trained_seconds=record.progress.trained_seconds if record.progress else 0.0,
        log_path=str(relay.log_path),
        stay_seconds=0.0 if runner_name(spec) is None else worker.runners.stay_seconds,
        deadline=deadline,
    )


def _resume(
    worker: Worker, record: JobRecord, relay: Relay, needs: Needs
) -> tuple[ResumePoint | None, Path | None]:
    """Where the job goes on from, and the folder that holds it on this host."""
    if (newer := _newer_checkpoint(worker, record)) is not None:
        step, folder = newer
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        kept = KeptCheckpoint(step=step, digest=worker.store.put_folder(folder), bytes=size)
        relay.note_checkpoint(kept)  # so that no other host has to begin before it
        return ResumePoint(digest=kept.digest, step=step), folder
    if (point := record.resume) is None:
        return None, None
    if (own := _own_checkpoint(worker, record, point)) is not None:
        return point, own
    folder = worker.folder.attempt_dir(record.id, record.token) / "resume"
    size, what = worker.store.folder_bytes(point.digest), f"the checkpoint of step {point.step}"
    with worker.cache.room(folder, size, what) as coming:
        worker.store.get_folder(point.digest, folder, note=noting(coming, what, needs))
    return point, folder


def _newer_checkpoint(worker: Worker, record: JobRecord) -> tuple[int, Path] | None:
    """The last one that was made here, if it is newer than what the record goes on from.

    An attempt may have ended, or its worker died, before it was in the store. What has its name is whole.
    """
    after = record.resume.step if record.resume is not None else 0
    found = [
        (int(path.name.removeprefix(STEP)), path)
        for attempt in worker.folder.earlier_attempts(record.id, record.token)
        if int(attempt.name) > record.removed_token
        for path in (attempt / CHECKPOINTS).glob(f"{STEP}*")
        if path.name.removeprefix(STEP).isdigit()
    ]
    newest = max(found, default=None)
    return newest if newest is not None and newest[0] > after else None


def _own_checkpoint(worker: Worker, record: JobRecord, resume: ResumePoint) -> Path | None:
    """The folder of the checkpoint, if it was made here and still is what was put into the store."""
    for attempt in worker.folder.earlier_attempts(record.id, record.token):
        folder = attempt / CHECKPOINTS / f"{STEP}{resume.step}"
        try:
            if folder.is_dir() and worker.store.put_folder(folder) == resume.digest:
                return folder
        except (GraftError, OSError) as error:
            logger.warning("job %s: %s is not gone on from: %s", record.id, folder, error)
    return None


def _memory_factor(worker: Worker, record: JobRecord) -> float:
    """By how much the estimate for such jobs was wrong on such hosts."""
    request, info = record.request, worker.info
    if request is None:
        return 1.0
    try:
        key = LessonKey.of(request, info.chip, info.mlx)
        return demand_factor(request, read_lesson(worker.quick.redis, key))
    except RedisError as error:
        logger.warning("job %s: the lessons cannot be read: %s", record.id, error)
        return 1.0


def fetch_from_store(worker: Worker, item: Item, uses: Uses, watch: Watch, source: str = "") -> Path:
    """The folder of that digest, which is here now and stays until `uses` is closed.

    Raises:
        StoreError, Unreachable: it cannot be fetched, or there is no room for it.
        Exception: the watch's, when nobody waits any more.
    """
    digest = Digest(item.name)
    folder = worker.cache.use(item, uses)
    if not folder.exists():
        what = source or item.name
        with worker.cache.room(folder, worker.store.folder_bytes(digest), what) as coming:
            worker.store.get_folder(digest, folder, note=noting(coming, what, watch))
        worker.cache.write_note(item, Note(source=source, is_whole=True))
    return folder


def noting(coming: Coming, what: str, watch: Watch) -> Callable[[int], None]:
    """What is done at each chunk of a fetch: it is counted, and whoever waits may give up."""

    def note(size: int) -> None:
        coming.brought += size
        watch.check()
        watch.tell(what, coming.brought, coming.bytes)

    return note


def _fetch_model(worker: Worker, model: ModelRef, needs: Needs) -> Path | None:
    if model.digest is not None:
        return fetch_from_store(worker, model_item(model.digest), needs.uses, needs, model.source)
    if looks_like_path(model.source):  # what the runner says of it is what there is to say
        return None
    try:
        item = fetch_from_hub(worker.cache, model.source, model.revision, needs.uses, needs)
    except InvalidInput as error:
        raise JobError(FailureClass.CONFIG, str(error)) from error
    worker.access.note_allowed(model.source)
    return worker.cache.folder(item)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
