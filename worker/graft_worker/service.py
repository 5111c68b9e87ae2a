"""The worker process: registers its host, reports, and serves its Celery queue until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from typing import Any

from celery.signals import setup_logging, worker_ready, worker_shutting_down
from redis import Redis
from redis.exceptions import RedisError

from graft_scheduler import keys, rescuer
from graft_scheduler.broker import Broker, make_app, node_name
from graft_scheduler.errors import InvalidInput
from graft_scheduler.redis_connection import connect, reachable
from graft_scheduler.settings import Settings, hide_password
from graft_scheduler.store.finding import find_store
from graft_scheduler.transitions import Transitions
from graft_worker.host import describe, open_folder
from graft_worker.live_host import LiveDevice, LiveHost
from graft_worker.model_orders import ModelOrders
from graft_worker.preparation import Worker
from graft_worker.probe import probe
from graft_worker.runners import Runners
from graft_worker.tasks import register_tasks

logger = logging.getLogger(__name__)

QUICK_SECONDS = 5.0
"""Longest wait for an answer to a beat or a report; less where leases are short."""
SWEEP_SECONDS = 86_400.0
"""How often the folders of old attempts are removed."""


def serve(settings: Settings) -> int:
    """Run this host's worker; 0 after a clean shutdown.

    Raises:
        Conflict, InvalidInput, StoreError, Unreachable: it cannot start; says why.
    """
    _log_to_stderr()
    redis = connect(settings.redis_url)
    worker, host = _prepare(settings, redis)
    app = make_app(settings.redis_url)
    broker = Broker(app)
    register_tasks(app, worker, broker)
    with reachable(settings.redis_url):
        rescuer.release_restarted(redis, worker.transitions, broker, worker.info.id, worker.info.boot)
        worker.transitions.host_beat(worker.info, settings.heartbeat_seconds)
    _note_shutdown(worker.leaves)
    orders = ModelOrders(worker)
    orders.start()
    threading.Thread(target=_report, args=(worker, host, orders), name="heartbeat", daemon=True).start()
    logger.info("worker %s (%s) on %s", worker.info.name, worker.info.id, hide_password(settings.redis_url))
    return _serve_queue(app, worker)


def _prepare(settings: Settings, redis: Redis) -> tuple[Worker, LiveHost]:
    folder = open_folder(settings)
    store = find_store(settings, redis)
    device = probe()
    if device.error is not None:
        raise InvalidInput(f"this machine cannot train: {device.error}")
    quick = connect(settings.redis_url, min(QUICK_SECONDS, settings.lease_seconds / 8), retries=0)
    worker = Worker(
        info=describe(folder, settings, device, store.id),
        folder=folder,
        settings=settings,
        transitions=Transitions(redis),
        quick=Transitions(quick),
        store=store,
        leaves=threading.Event(),
        runners=Runners(settings.slots),
    )
    worker.cache.tidy()
    host = LiveHost(settings, folder, LiveDevice(device), worker.cache, worker.access)
    worker.info = host.now(worker.info)
    return worker, host


def _report(worker: Worker, host: LiveHost, orders: ModelOrders) -> None:
    """Heartbeats, each with the host as it is then, until the worker leaves; then it counts as away."""
    swept_at = float("-inf")
    while not worker.leaves.wait(worker.settings.heartbeat_seconds):
        if time.monotonic() - swept_at > SWEEP_SECONDS:
            worker.folder.forget_old_attempts()
            swept_at = time.monotonic()
        worker.runners.tend()
        worker.info = host.now(worker.info)
        try:
            worker.transitions.host_beat(worker.info, worker.settings.heartbeat_seconds)
            orders.tend()
        except RedisError as error:
            logger.warning("no heartbeat: %s", error)
        except Exception:  # a host whose models cannot be looked at is still alive
            logger.exception("the wishes for models were not looked at")
    try:
        worker.transitions.host_away(worker.info.id, worker.settings.heartbeat_seconds)
    except RedisError as error:
        logger.warning("left without a word: %s", error)


def _serve_queue(app: Any, worker: Worker) -> int:
    celery_worker = app.Worker(
        pool="threads",
        concurrency=worker.settings.slots,
        queues=[keys.host_queue(worker.info.id)],
        hostname=node_name(worker.info.name, worker.info.id),
        without_gossip=True,
        without_mingle=True,
        loglevel="INFO",
    )
    try:
        celery_worker.start()
    finally:
        worker.runners.close()
    return int(celery_worker.exitcode or 0)


def _note_shutdown(leaves: threading.Event) -> None:
    """Celery waits for running tasks at a warm shutdown; ours end soon once they know."""

    def leave(**_: Any) -> None:
        leaves.set()

    def leave_on_hangup(**_: Any) -> None:
        """A closed terminal means stop; Celery would start the worker anew, under running jobs."""
        signal.signal(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))

    worker_shutting_down.connect(leave, weak=False)
    worker_ready.connect(leave_on_hangup, weak=False)


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Celery leaves logging alone when somebody listens to this signal.
    setup_logging.connect(lambda **_: None, weak=False)
