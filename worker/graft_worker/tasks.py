"""Takes the nudge from Celery, claims the assignment, and tells Celery (so Flower) how it ended."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from redis.exceptions import RedisError

from graft_scheduler.broker import Broker, task_name
from graft_scheduler.errors import Fenced, NotAllowed
from graft_scheduler.states import JobId, JobState, Token
from graft_worker.attempt import Ended
from graft_worker.preparation import Worker
from graft_worker.supervisor import supervise

logger = logging.getLogger(__name__)

KINDS = ("train", "trial", "count")


class AttemptEnded(Exception):
    """How Celery is told that an attempt did not complete; its text is what Flower shows."""


def register_tasks(app: Celery, worker: Worker, broker: Broker) -> None:
    """One task per kind of job, all with the same body: the record says what to do."""
    for kind in KINDS:
        _register(app, task_name(kind), worker, broker)


def _register(app: Celery, name: str, worker: Worker, broker: Broker) -> None:
    @app.task(name=name, bind=True, throws=(AttemptEnded,))
    def attempt(task: Task[Any, Any], job_id: str, token: int, person: str) -> None:
        try:
            ended = supervise(worker, JobId(job_id), Token(token))
        except (Fenced, NotAllowed) as error:
            raise AttemptEnded(str(error)) from None
        except RedisError as error:
            raise AttemptEnded(f"Redis does not answer; the job will be placed again: {error}") from None
        if ended is None:
            logger.info("job %s: attempt %d is not to be had (any more)", job_id, token)
            raise Ignore
        _tell(task, broker, job_id, token, person, ended)


def _tell(task: Task[Any, Any], broker: Broker, job_id: str, token: int, person: str, ended: Ended) -> None:
    kind = task.name.removeprefix("graft.")
    if ended.state is JobState.QUEUED:
        broker.announce_waiting([(JobId(job_id), token, kind, person)])
    match ended.state:
        case JobState.COMPLETED:
            return
        case JobState.CANCELLED:
            broker.announce_revoked(JobId(job_id), token, str(task.request.hostname))
            raise Ignore
        case JobState.PAUSED:
            raise AttemptEnded("paused: its checkpoint is kept until it is told to go on")
        case _ if ended.ending.failure is not None:
            why = ended.ending.failure
            raise AttemptEnded(f"{why.failure}: {why.text}")
        case _:
            raise AttemptEnded("given back: the job goes on elsewhere")
