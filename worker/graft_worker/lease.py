"""Keeps one attempt's lease, and through it the runner's life and its orders.

A thread of its own, so that neither a slow upload nor a chatty runner delays a beat. Nothing that it
does waits for long: its connection gives up well within a lease, and the runner is not waited for.
"""

from __future__ import annotations

import logging
import threading

from redis.exceptions import RedisError

from graft_scheduler.channel import sleepless_clock
from graft_scheduler.errors import Fenced
from graft_scheduler.messages import Extend, Stop
from graft_scheduler.records import Hold
from graft_scheduler.runner_process import RunnerProcess
from graft_scheduler.settings import Settings
from graft_scheduler.states import StopReason
from graft_scheduler.transitions import Transitions

logger = logging.getLogger(__name__)

BEATS_PER_LEASE = 8
MAX_BEAT_SECONDS = 1.0
"""A beat also brings the orders, so that a cancel acts within two seconds."""
STOP_GRACE_SECONDS = 30.0
"""A runner that was asked to stop and still lives after this is killed."""


class LeaseKeeper:
    """Beats while the attempt runs; `is_fenced` and `stop_reason` say what the beats brought."""

    def __init__(
        self, transitions: Transitions, hold: Hold, settings: Settings, worker_leaves: threading.Event
    ) -> None:
        self._transitions = transitions
        self._hold = hold
        self._lease_seconds = settings.lease_seconds
        self._outage_seconds = settings.outage_seconds
        self._worker_leaves = worker_leaves
        self._runner: RunnerProcess | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._stopped_at = float("inf")
        self._last_answer = sleepless_clock()
        self.is_fenced = False
        self.stop_reason: StopReason | None = None
        self.deadline = sleepless_clock() + settings.lease_seconds
        """Until when a runner may live, as far as is known now."""
        self._thread = threading.Thread(target=self._keep, name=f"lease {hold.job}", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def attach(self, runner: RunnerProcess) -> None:
        """Extend, stop and kill this runner from now on."""
        with self._lock:
            self._runner = runner
            if self.is_fenced:
                runner.kill()
            elif self.stop_reason is not None:
                self._send_stop(self.stop_reason)

    def detach(self) -> None:
        """The runner has ended; the lease is kept until the attempt's outcome is written."""
        with self._lock:
            self._runner = None

    def stop_for_memory(self) -> None:
        """Stop the runner at its next safe point, unless it is stopped for another reason already."""
        if self.stop_reason is None:
            self._stop_for(StopReason.SHRINK)

    def check(self) -> None:
        """Raises `Fenced` once the assignment is known to be lost."""
        if self.is_fenced:
            raise Fenced(f"attempt {self._hold.token} of job {self._hold.job} was taken away")

    def _keep(self) -> None:
        pause = min(MAX_BEAT_SECONDS, self._lease_seconds / BEATS_PER_LEASE)
        while not self.is_fenced:
            try:
                self._beat()
            except Exception:  # a keeper that died in silence would leave the runner to its deadline
                logger.exception("job %s: a beat failed; stopping at a checkpoint", self._hold.job)
                self._stop_for(StopReason.YIELD)
            with self._lock:
                self._command()
            if self._ended.wait(pause):
                return

    def _beat(self) -> None:
        """Renew the lease. The clock is read before the question: a late answer promises less."""
        asked_at = sleepless_clock()
        try:
            reason = self._transitions.beat(self._hold, self._lease_seconds)
        except Fenced:
            self.is_fenced = True
            return
        except RedisError as error:
            self._endure(asked_at, error)
            return
        self._last_answer = asked_at
        self.deadline = asked_at + self._lease_seconds
        self._stop_for(StopReason.YIELD if self._worker_leaves.is_set() else reason)

    def _endure(self, asked_at: float, error: RedisError) -> None:
        """Train on without Redis for a while: nobody can take the job away while it is down."""
        away = asked_at - self._last_answer
        logger.warning("job %s: no beat, Redis is away for %.0f s: %s", self._hold.job, away, error)
        self.deadline = sleepless_clock() + self._lease_seconds
        if away > self._outage_seconds or self._worker_leaves.is_set():
            self._stop_for(StopReason.YIELD)

    def _stop_for(self, reason: StopReason | None) -> None:
        if reason is not None and reason is not self.stop_reason:
            self.stop_reason = reason
            self._stopped_at = min(self._stopped_at, sleepless_clock())
            with self._lock:
                self._send_stop(reason)

    def _send_stop(self, reason: StopReason) -> None:
        if self._runner is not None:
            self._runner.send(Stop(job=self._hold.job, token=self._hold.token, reason=reason))

    def _command(self) -> None:
        if self._runner is None:
            return
        if self.is_fenced or sleepless_clock() > self._stopped_at + STOP_GRACE_SECONDS:
            logger.warning("job %s: killing runner %d", self._hold.job, self._runner.pid)
            self._runner.kill()
            return
        self._runner.send(Extend(job=self._hold.job, token=self._hold.token, deadline=self.deadline))
