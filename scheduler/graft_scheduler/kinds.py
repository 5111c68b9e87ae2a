"""Jobs that are alike, as they look at the hosts of one decision: what they need, and how long they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft_scheduler.demand import Request
from graft_scheduler.lessons import Lesson, Lessons
from graft_scheduler.rooms import (
    FETCH_BYTES_PER_SECOND,
    HostRoom,
    Need,
    PendingJob,
    has_access,
    has_disk,
    lacks_base,
    lesson_for,
    need_on,
    train_seconds,
    usual_seconds,
)

if TYPE_CHECKING:
    from graft_scheduler.stands import Stand


@dataclass(frozen=True, slots=True)
class Look:
    """What jobs that are alike find on hosts of one make, whatever those have to do and have cached."""

    need: Need
    is_allowed: bool
    """Whether such a host could run such a job if it had nothing else."""
    train_seconds: float | None
    """How long the training will take there, where that can be told."""


class Kind:
    """Jobs that are alike, as they look at hosts."""

    def __init__(self, sample: PendingJob, lessons: Lessons) -> None:
        self.request: Request = sample.request
        self.avoid = sample.avoid
        self.above_bytes = sample.above_bytes
        self.is_paused = sample.pause_seconds > 0
        self._lessons = lessons
        self._looks: dict[int, Look] = {}
        self._learned: dict[tuple[str, str], Lesson | None] = {}
        """By chip and version of MLX."""
        self._needs: dict[tuple[str, str, str], Need] = {}
        """By backend, chip and version of MLX, where that is all they depend on."""
        self._usual_seconds = usual_seconds(sample.request, lessons)

    def look(self, stand: Stand) -> Look:
        """What such a job finds on that host."""
        look = self._looks.get(stand.make)
        if look is None:
            look = self._looks[stand.make] = self._first_look(stand.room)
        return look

    def lacks_base(self, stand: Stand) -> bool:
        """Whether the host would have to fetch the base."""
        return lacks_base(self.request, stand.room)

    def can_fetch(self, stand: Stand) -> bool:
        """Whether what the job needs on that host's disk is there, or may come and has the room."""
        return has_disk(self.request, stand.room) and has_access(self.request, stand.room)

    def seconds(self, stand: Stand) -> float | None:
        """How long such a job will take there, where that can be told."""
        train = self.look(stand).train_seconds
        return None if train is None else train + self._fetch_seconds(stand)

    def ends(self, stand: Stand) -> float:
        """For comparing: a chip not met yet is taken to be as fast as the others on average."""
        train = self.look(stand).train_seconds
        return (self._usual_seconds if train is None else train) + self._fetch_seconds(stand)

    def _fetch_seconds(self, stand: Stand) -> float:
        return self.request.weight_bytes / FETCH_BYTES_PER_SECOND if self.lacks_base(stand) else 0.0

    def _first_look(self, room: HostRoom) -> Look:
        lesson = self._lesson(room)
        need = self._need(room, lesson)
        if not self._allows(room, need):
            return Look(need, is_allowed=False, train_seconds=None)
        return Look(need, is_allowed=True, train_seconds=train_seconds(self.request, lesson))

    def _lesson(self, room: HostRoom) -> Lesson | None:
        on = (room.chip, room.mlx)
        if on not in self._learned:
            self._learned[on] = lesson_for(self.request, room, self._lessons)
        return self._learned[on]

    def _need(self, room: HostRoom, lesson: Lesson | None) -> Need:
        if self.request.demands is None or room.backend not in self.request.demands:
            return need_on(self.request, room, lesson)  # a share of that host
        on = (room.backend, room.chip, room.mlx)
        need = self._needs.get(on)
        if need is None:
            need = self._needs[on] = need_on(self.request, room, lesson)
        return need

    def _allows(self, room: HostRoom, need: Need) -> bool:
        largest = room.largest_bytes
        return (
            need.least_bytes <= largest
            and largest > self.above_bytes
            and self.request.store_id == room.store_id
            and (room.allow_remote_code or not self.request.needs_remote_code)
        )
