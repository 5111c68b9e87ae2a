"""The scheduler: one of its instances leads, and in each round looks, decides and acts."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from graft_scheduler import fleet, keys, rescuer
from graft_scheduler.broker import Broker
from graft_scheduler.lessons import read_lessons
from graft_scheduler.pending import Queue
from graft_scheduler.placement import Decision, Group, place_groups
from graft_scheduler.rooms import Placement
from graft_scheduler.settings import Settings
from graft_scheduler.snapshot import Publisher, Snapshot
from graft_scheduler.states import HostId, JobId
from graft_scheduler.transitions import MISSED_BEATS, Transitions, Window

logger = logging.getLogger(__name__)

LEADER_TTL_SECONDS = 5.0
"""A dead leader is replaced after this; it renews every round."""
ROUND_SECONDS = 1.0
"""Longest time between two rounds; a change in the queue or the fleet starts one at once."""
ANNOUNCE_SECONDS = 30.0
"""How often waiting jobs are announced again, for a Flower that was started after them."""
ANNOUNCED = 500
"""So many of them, the first of the queue."""
MOST_DECISIONS = 100
"""In one round, each for the jobs behind those that the one before has placed."""


class Scheduler:
    """One instance of the scheduler; start as many as you like, one leads."""

    def __init__(self, redis: Redis, broker: Broker, settings: Settings) -> None:
        self._redis = redis
        self._transitions = Transitions(redis)
        self._broker = broker
        self._queue = Queue(redis)
        self._rooms = fleet.Rooms(redis, settings.heartbeat_seconds * MISSED_BEATS)
        self._publisher = Publisher(redis)
        self._unplaceable: set[JobId] = set()
        """Jobs with records that the script cannot read; they would take the room of others."""
        self._window = Window(settings.claim_seconds, settings.heartbeat_seconds * MISSED_BEATS)
        self._instance = f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
        self._leader: str | None = None
        self._announced_at = float("-inf")
        self._looked_at = float("-inf")

    @property
    def leader(self) -> str | None:
        """The value of the lead, while this instance has it as far as it knows."""
        return self._leader

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop`; Redis may come and go."""
        while not stop.is_set():
            try:
                led = self.round()
                self._rest(stop, led)
            except RedisError as error:
                logger.warning("Redis does not answer: %s", error)
                stop.wait(ROUND_SECONDS)
            except Exception:  # a fault of one round must not end the service
                logger.exception("this round failed")
                stop.wait(ROUND_SECONDS)
        self._resign()

    def round(self) -> bool:
        """Lead if possible; then rescue, place and announce. Whether this instance leads."""
        if not self._lead():
            return False
        for job_id in rescuer.overdue(self._redis):
            if not self._still_leads():
                return False
            rescuer.rescue(self._redis, self._transitions, self._broker, job_id)
        self._place()
        self._announce()
        rescuer.forget_old(self._redis)
        return True

    def _lead(self) -> bool:
        leads, leader, given_back = self._transitions.lead(self._instance, LEADER_TTL_SECONDS)
        self._note_lead(leader if leads else None, given_back)
        self._looked_at = time.monotonic()
        return leads

    def _still_leads(self) -> bool:
        """Looks again within a long round: a pause between two looks is given back to all leases."""
        if time.monotonic() - self._looked_at < ROUND_SECONDS / 2:
            return True
        return self._lead()

    def _place(self) -> None:
        """Give the hosts what they can take, and keep room for what waits."""
        for _ in range(MOST_DECISIONS):
            groups = self._queue.read(without=self._unplaceable)
            rooms = self._rooms.read()
            decision = place_groups(groups, rooms, read_lessons(self._redis))
            goes_on = self._act(groups, decision)
            self._publish(decision)
            if not goes_on or not decision.is_partial:
                return

    def _act(self, groups: Sequence[Group], decision: Decision) -> bool:
        """Grant the placements and note the reservations; whether looking again at once may help."""
        granted = False
        for placement in decision.placements:
            if not self._still_leads():
                return False
            granted |= self._grant(placement)
        for job_id, host in reservation_changes(groups, decision):
            if not self._still_leads():
                return False
            self._transitions.reserve(job_id, host, str(self._leader))
        return self._still_leads() and (granted or not decision.placements)

    def _publish(self, decision: Decision) -> None:
        """For `graft why`."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.zcard(keys.QUEUE)
        for one in decision.reservations:
            pipeline.hget(keys.job(one.job), "submitted_at")
        time_now, queued, *since = pipeline.execute()
        reservations = tuple(
            replace(one, since=int(at) / 1000 if at else None)
            for one, at in zip(decision.reservations, since, strict=True)
        )
        now = fleet.seconds_of(time_now)
        self._publisher.publish(Snapshot(now, queued, tuple(decision.rooms), reservations))

    def _grant(self, placement: Placement) -> bool:
        """Whether the host gets the job."""
        try:
            token, refusal = self._transitions.place(placement, str(self._leader), self._window)
        except ResponseError as error:  # a record that the script cannot read is that job's trouble alone
            token, refusal = None, str(error)
            self._unplaceable.add(placement.job)
        if token is None:
            logger.info("job %s was not placed on %s: %s", placement.job, placement.host, refusal)
            return False
        kind, person = self._kind_and_person(placement.job)
        logger.info("job %s placed on %s as attempt %d", placement.job, placement.host, token)
        self._broker.nudge(placement.job, token, placement.host, kind, person)
        return True

    def _announce(self) -> None:
        now = time.monotonic()
        if now - self._announced_at < ANNOUNCE_SECONDS:
            return
        self._announced_at = now
        ids: Any = self._redis.zrange(keys.QUEUE, 0, ANNOUNCED - 1)
        rescuer.announce_waiting(self._redis, self._broker, [JobId(job_id) for job_id in ids])

    def _kind_and_person(self, job_id: JobId) -> tuple[str, str]:
        fields: Any = self._redis.hmget(keys.job(job_id), "kind", "submitter")
        return fields[0], fields[1]

    def _note_lead(self, leader: str | None, given_back: float) -> None:
        if leader != self._leader:
            logger.info("leading as %s" if leader else "standing by", *([leader] if leader else []))
            self._announced_at = float("-inf")
        if given_back:
            logger.info("nobody looked for %.1f s; every lease was extended by as much", given_back)
        self._leader = leader

    def _rest(self, stop: threading.Event, led: bool) -> None:
        """Until something changes; an instance that does not lead just waits."""
        if led:
            self._redis.blpop([keys.WAKE], timeout=ROUND_SECONDS)
        else:
            stop.wait(ROUND_SECONDS)

    def _resign(self) -> None:
        if self._leader is not None:
            try:
                self._transitions.resign(self._leader)
            except RedisError as error:
                logger.warning("left without resigning: %s", error)


def reservation_changes(groups: Sequence[Group], decision: Decision) -> list[tuple[JobId, HostId | None]]:
    """For which waiting jobs another host, or none, is to be noted."""
    noted = {job.id: one.sample.reserved_on for one in groups for job in one.jobs if one.sample.reserved_on}
    wanted = {one.job: one.host for one in decision.reservations}
    placed = {one.job for one in decision.placements}
    gone = [(job, None) for job in noted if job not in wanted and job not in placed]
    return gone + [(job, host) for job, host in wanted.items() if noted.get(job) != host]
