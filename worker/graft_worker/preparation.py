"""What a runner needs before it can begin: model, data and checkpoint on this host, and its orders."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

from redis.exceptions import RedisError

from graft_scheduler.errors import GraftError
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lessons import LessonKey, demand_factor, read_lesson
from graft_scheduler.messages import Start
from graft_scheduler.records import HostInfo, JobRecord, ResumePoint
from graft_scheduler.settings import Settings
from graft_scheduler.states import Digest
from graft_scheduler.store import Store
from graft_scheduler.transitions import Transitions
from graft_worker.host import HostFolder
from graft_worker.relay import Relay
from graft_worker.residency import runner_name
from graft_worker.runners import Runners

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""A folder of the attempt's, the runner's to write."""


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


def prepare(worker: Worker, record: JobRecord, relay: Relay, deadline: float) -> Start:
    """The orders for a runner, with all that they name fetched from the store.

    Raises:
        StoreError, Unreachable: something cannot be fetched.
    """
    spec = record.spec
    model = data = None
    if isinstance(spec, TrainJob):
        model = _fetch(worker, "models", spec.model.digest)
        data = _fetch(worker, "data", spec.data.digest)
    folder = worker.folder.attempt_dir(record.id, record.token)
    resume = None
    if record.resume is not None:
        resume = _own_checkpoint(worker, record, record.resume)
        if resume is None:
            resume = folder / "resume"
            worker.store.get_folder(record.resume.digest, resume)
        relay.log(f"going on from step {record.resume.step}")
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


def _own_checkpoint(worker: Worker, record: JobRecord, resume: ResumePoint) -> Path | None:
    """The folder of the checkpoint, if it was made here and still is what was put into the store."""
    for attempt in worker.folder.earlier_attempts(record.id, record.token):
        folder = attempt / CHECKPOINTS / f"step-{resume.step}"
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


def _fetch(worker: Worker, kind: str, digest: Digest | None) -> Path | None:
    if digest is None:
        return None
    folder = worker.folder.cache / kind / digest.removeprefix("sha256:")
    if not folder.exists():
        worker.store.get_folder(digest, folder)
    return folder


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
