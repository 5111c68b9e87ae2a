"""What the leader saw and decided in its last round, published for `graft why` and `graft plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.rooms import HostRoom, Reservation

FRESH_SECONDS = 10
"""A snapshot that no leader has confirmed for so long is gone."""
REPEAT_SECONDS = 5.0
"""How often it is published although only times and free memory changed."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fleet at one moment."""

    at: float
    """Seconds since 1970 on Redis' clock."""
    queued: int
    """Jobs that waited."""
    rooms: tuple[HostRoom, ...]
    reservations: tuple[Reservation, ...]


_SNAPSHOT: TypeAdapter[Snapshot] = TypeAdapter(Snapshot)


class Publisher:
    """Writes the snapshot, and only when there is something new in it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._published: Snapshot | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Write it, or confirm the one that is there."""
        last = self._published
        is_same = (
            last is not None and _gist(last) == _gist(snapshot) and snapshot.at - last.at < REPEAT_SECONDS
        )
        if is_same and self._redis.expire(keys.SNAPSHOT, FRESH_SECONDS):
            return
        self._redis.set(keys.SNAPSHOT, _SNAPSHOT.dump_json(snapshot), ex=FRESH_SECONDS)
        self._published = snapshot


def read_snapshot(redis: Redis) -> Snapshot | None:
    """The newest snapshot, if a leader stands by it and it can be understood."""
    text: Any = redis.get(keys.SNAPSHOT)
    try:
        return None if text is None else _SNAPSHOT.validate_json(text)
    except ValidationError:  # of another version: what Redis holds of the hosts themselves will do
        return None


def forget_snapshot(redis: Redis) -> None:
    """Somebody changed what a host may do: until the leader's next round only the records are right."""
    redis.delete(keys.SNAPSHOT)


def _gist(snapshot: Snapshot) -> tuple[Sequence[HostRoom], list[tuple[str, str]]]:
    """Without what changes all the time."""
    rooms = [
        replace(
            room,
            rest_seconds=0.0,
            available_bytes=None,
            running=tuple(replace(one, seconds_left=None) for one in room.running),
        )
        for room in snapshot.rooms
    ]
    return rooms, [(one.job, one.host) for one in snapshot.reservations]
