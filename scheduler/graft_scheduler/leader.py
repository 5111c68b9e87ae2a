"""The scheduler: one of its instances leads, and in each round looks, decides and acts."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from graft_scheduler import fleet, keys, rescuer
from graft_scheduler.broker import Broker
from graft_scheduler.placement import Placement, place
from graft_scheduler.settings import Settings
from graft_scheduler.states import JobId
from graft_scheduler.transitions import MISSED_BEATS, Transitions

logger = logging.getLogger(__name__)

LEADER_TTL_SECONDS = 5.0
"""A dead leader is replaced after this; it renews every round."""
ROUND_SECONDS = 1.0
"""Longest time between two rounds; a change in the queue or the fleet starts one at once."""
ANNOUNCE_SECONDS = 30.0
"""How often waiting jobs are announced again, for a Flower that was started after them."""


class Scheduler:
    """One instance of the scheduler; start as many as you like, one leads."""

    def __init__(self, redis: Redis, broker: Broker, settings: Settings) -> None:
        self._redis = redis
        self._transitions = Transitions(redis)
        self._broker = broker
        self._claim_seconds = settings.claim_seconds
        self._alive_seconds = settings.heartbeat_seconds * MISSED_BEATS
        self._instance = f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
        self._leader: str | None = None
        self._announced_at = float("-inf")
        self._looked_at = float("-inf")

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
        """Fill the free slots, from the head of the queue."""
        for pending in fleet.read_pending(self._redis):
            rooms = fleet.host_rooms(fleet.read_hosts(self._redis, self._alive_seconds))
            for placement in place(pending, rooms):
                if not self._still_leads():
                    return
                self._grant(placement)
            if not self._still_leads() or not any(room.used_slots < room.slots for room in rooms):
                return

    def _grant(self, placement: Placement) -> None:
        try:
            token, refusal = self._transitions.place(
                placement.job, placement.host, str(self._leader), self._claim_seconds, self._alive_seconds
            )
        except ResponseError as error:  # a record that the script cannot read is that job's trouble alone
            token, refusal = None, str(error)
        if token is None:
            logger.info("job %s was not placed on %s: %s", placement.job, placement.host, refusal)
            return
        kind, person = self._kind_and_person(placement.job)
        logger.info("job %s placed on %s as attempt %d", placement.job, placement.host, token)
        self._broker.nudge(placement.job, token, placement.host, kind, person)

    def _announce(self) -> None:
        now = time.monotonic()
        if now - self._announced_at < ANNOUNCE_SECONDS:
            return
        self._announced_at = now
        ids: Any = self._redis.zrange(keys.QUEUE, 0, fleet.PAGE - 1)
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
