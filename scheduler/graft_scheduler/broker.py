"""Celery as the carrier: the app, the nudge to a host's queue, and the events that Flower shows.

A message is `[job id, token, person]` and only a nudge: lost, the job is placed again; doubled,
the second claim is refused. The settings keep Celery from ever redelivering a running job:
messages are acknowledged before the work, and nothing uses ETA, countdown or retry.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from graft_scheduler import keys
from graft_scheduler.states import HostId, JobId, Token

logger = logging.getLogger(__name__)

CONTROL_QUEUE = "graft.idle"
"""Default queue; nothing is sent to it."""
NO_WORKER = "nobody@graft"
"""In whose name events of waiting jobs are sent: Celery wants one for each."""
LONG_AGO = 1.0
"""When that one went offline, so that Flower does not list it."""


def make_app(redis_url: str) -> Celery:
    """The Celery app of a fleet."""
    app = Celery("graft", broker=redis_url)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_track_started=True,
        task_default_queue=CONTROL_QUEUE,
        task_send_sent_event=True,
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        event_serializer="json",
        worker_send_task_events=True,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "queue_order_strategy": "priority",
            "priority_steps": list(range(10)),
            # For what is sent: a broker that is away is not waited for, as the record is the truth.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.1,
        },
        enable_utc=True,
    )
    return app


def node_name(host_name: str, host_id: HostId) -> str:
    """Celery's name for a worker."""
    return f"{host_name}@{host_id}"


def task_id(job_id: JobId, token: int) -> str:
    """Celery's name for one attempt."""
    return f"{job_id}-{token}"


def task_name(kind: str) -> str:
    """Celery's name for a kind of job."""
    return f"graft.{kind}"


class Broker:
    """Sends nudges and events. What it cannot send is logged: the record is the truth."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def nudge(self, job_id: JobId, token: Token, host_id: HostId, kind: str, person: str) -> None:
        """Tell a host that an assignment waits for it."""
        try:
            self._app.send_task(
                task_name(kind),
                args=[job_id, token, person],
                task_id=task_id(job_id, token),
                queue=keys.host_queue(host_id),
                retry=False,
            )
        except (OperationalError, RedisError, OSError) as error:
            logger.warning("no message for attempt %s of job %s: %s", token, job_id, error)

    def announce_waiting(self, jobs: Iterable[tuple[JobId, int, str, str]]) -> None:
        """Let Flower list `(job, last token, kind, person)` as pending under the attempt to come."""
        events = [("task-sent", _waiting(job, token + 1, kind, who)) for job, token, kind, who in jobs]
        self._send(NO_WORKER, events)

    def announce_revoked(self, job_id: JobId, token: int, worker: str = NO_WORKER) -> None:
        """Let Flower show an attempt as revoked: it was cancelled before, or stopped while, it ran."""
        of_attempt = {"uuid": task_id(job_id, token), "terminated": False, "signum": None, "expired": False}
        self._send(worker, [("task-revoked", of_attempt)])

    def announce_failed(self, job_id: JobId, token: int, reason: str, worker: str) -> None:
        """Let Flower show an attempt as failed when its worker can no longer say so."""
        of_attempt = {"uuid": task_id(job_id, token), "exception": reason, "traceback": ""}
        self._send(worker, [("task-failed", of_attempt)])

    def _send(self, worker: str, events: list[tuple[str, dict[str, Any]]]) -> None:
        """Send events in the name of a worker; the one that stands for none is said to be offline."""
        if not events:
            return
        if worker == NO_WORKER:
            events = [*events, ("worker-offline", {"timestamp": LONG_AGO})]
        try:
            with (
                self._app.connection_for_write() as connection,
                self._app.events.Dispatcher(connection, hostname=worker) as dispatcher,
            ):
                for name, fields in events:
                    dispatcher.send(name, **fields)
        except (OperationalError, RedisError, OSError) as error:
            logger.warning("%d events for Flower were not sent: %s", len(events), error)


def _waiting(job_id: JobId, token: int, kind: str, person: str) -> dict[str, Any]:
    return {
        "uuid": task_id(job_id, token),
        "name": task_name(kind),
        "args": repr([job_id, token, person]),
        "kwargs": "{}",
        "retries": 0,
        "eta": None,
        "expires": None,
        "queue": "waiting",
        "exchange": "",
        "routing_key": "waiting",
        "root_id": task_id(job_id, token),
        "parent_id": None,
    }
