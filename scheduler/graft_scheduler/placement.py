"""Which host gets which job, and for which jobs room is kept: pure functions of plain values.

Jobs take their turns in the order of the queue. Jobs that are alike are one group, which looks at the
hosts once. A job that no host can take now gets a reservation; later jobs may use that host if they leave
the room, or will surely have ended before.
"""

from __future__ import annotations

import gc
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from graft_scheduler.foresight import foresee
from graft_scheduler.kinds import Kind
from graft_scheduler.ledger import Ledger, Offer, coarse_time
from graft_scheduler.lessons import Lesson, LessonKey, Lessons
from graft_scheduler.rooms import HostRoom, PendingJob, Placement, Reservation
from graft_scheduler.stands import Kept, Stand
from graft_scheduler.states import HostId, JobId

PRIORITY_STEP = 10**13
"""As in `submit.lua`: an order in the queue is priority times this, plus the number of the submission."""
NEW_RESERVATIONS = 4
"""Made in one decision at most: each looks at every host. The next decision makes the next ones."""
MOST_PLACEMENTS = 150
"""In one decision, so that it never takes long; the next one follows at once."""
NOTHING_LEARNED: Mapping[LessonKey, Lesson] = {}

Preference = tuple[int, bool, int, int, bool, float, int, int, str]
Waiting = tuple[int, bool, int, int, float, str]
IDEAL = (0, False, 0)
"""How a preference begins when a host has nothing against it but, perhaps, its size."""
Entry = tuple[Preference, int, int]
"""A host by its number, and its version when it was looked at; it is out of date when that has changed."""


class Queued(NamedTuple):
    """A job's place in the queue."""

    order: int
    id: JobId

    @property
    def priority(self) -> int:
        return self.order // PRIORITY_STEP


@dataclass(frozen=True, slots=True)
class Group:
    """Queued jobs that are alike in all that placement looks at."""

    kind: str
    """Equal for jobs that ask for the same, whether or not room is kept for them."""
    sample: PendingJob
    """Any of them."""
    jobs: Sequence[Queued]
    """In the order of the queue."""
    is_cut: bool = False
    """There are more of them, behind these."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one look at the queue and the hosts led to."""

    placements: list[Placement]
    reservations: list[Reservation]
    """All that hold from now on."""
    rooms: list[HostRoom]
    """The hosts after the placements."""
    is_partial: bool = False
    """There may be more to place: look again at once."""


def place(
    pending: Sequence[PendingJob], hosts: Sequence[HostRoom], lessons: Lessons = NOTHING_LEARNED
) -> Decision:
    """Placements for the pending jobs, none above a host's or a machine's budget or slots.

    More urgent jobs come first, and those of one priority in the order given.
    """
    return place_groups(group(pending), hosts, lessons)


def group(pending: Iterable[PendingJob]) -> list[Group]:
    """The jobs by what they are alike in."""
    texts: dict[int, str] = {}  # of requests by identity: writing one out is slow, and they are shared
    found: dict[tuple[str, HostId | None, int, float, HostId | None], tuple[PendingJob, list[Queued]]] = {}
    for number, job in enumerate(pending):
        text = texts.get(id(job.request))
        if text is None:
            text = texts[id(job.request)] = job.request.model_dump_json()
        key = (text, job.avoid, job.above_bytes, job.pause_seconds, job.reserved_on)
        alike = found.get(key)
        if alike is None:
            alike = found[key] = (job, [])
        alike[1].append(Queued(job.priority * PRIORITY_STEP + number, job.id))
    return [Group(repr(key[:3]), sample, sorted(jobs)) for key, (sample, jobs) in found.items()]


def place_groups(groups: Sequence[Group], hosts: Sequence[HostRoom], lessons: Lessons) -> Decision:
    """As `place`, for jobs that are grouped already."""
    with _collector_paused():
        return _decide(groups, hosts, lessons)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """What a decision makes is gone at its end without the collector of cycles, which would look through
    the whole process meanwhile, for longer than the decision takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _decide(groups: Sequence[Group], hosts: Sequence[HostRoom], lessons: Lessons) -> Decision:
    ledger = Ledger(hosts)
    turns = [_Turn(one, ledger, lessons) for one in groups if one.jobs]
    turns.sort(key=lambda turn: turn.next_job)
    reservations = _Reservations(ledger, turns)
    placements: list[Placement] = []
    is_partial = False
    waiting = [(turn.next_job, number) for number, turn in enumerate(turns)]
    while waiting:
        number = waiting[0][1]
        turn = turns[number]
        placement = turn.placement()
        if placement is None:
            heapq.heappop(waiting)
            reservations.keep_room(turn)
            continue
        ledger.commit(placement)
        placements.append(placement)
        reservations.note_placed(placement)
        if turn.step():
            heapq.heapreplace(waiting, (turn.next_job, number))
        else:
            heapq.heappop(waiting)
        if len(placements) >= MOST_PLACEMENTS or (turn.is_over and turn.group.is_cut):
            is_partial = True
            break  # nobody may overtake those that were not looked at
    placed = {placement.job for placement in placements}
    kept = [one for one in ledger.reservations() if one.job not in placed]
    decision = Decision(placements, kept, ledger.rooms(), is_partial or reservations.is_unsettled)
    ledger.dissolve()
    return decision


@dataclass(slots=True)
class _Turn:
    """A group that looks for hosts."""

    group: Group
    ledger: Ledger
    lessons: Lessons
    number: int = 0
    """Of the job whose turn it is."""
    kind: Kind = field(init=False)
    _rankings: dict[int, list[Entry]] = field(default_factory=dict)
    """A heap for each size of hosts that was asked for."""
    _seen: int = 0
    _priority: int = 0

    def __post_init__(self) -> None:
        self.kind = Kind(self.group.sample, self.lessons)

    @property
    def next_job(self) -> Queued:
        return self.group.jobs[self.number]

    def step(self) -> bool:
        """On to the next job; whether there is one."""
        self.number += 1
        return not self.is_over

    @property
    def is_over(self) -> bool:
        return self.number >= len(self.group.jobs)

    def placement(self) -> Placement | None:
        """The best host for the next job, or nothing."""
        job = self.next_job
        self._catch_up(job)
        best: Entry | None = None
        for size_class in range(len(self.ledger.open)):
            entry = self._best_of(size_class, job)
            if entry is not None and (best is None or entry < best):
                best = entry
            if best is not None and best[0][:3] == IDEAL:
                break  # a larger host cannot be better
        if best is None:
            return None
        stand = self.ledger.stands[best[1]]
        offer = self._offer(job, stand)
        assert offer is not None  # the entry is up to date
        return Placement(job.id, stand.room.id, offer.bytes, self.kind.seconds(stand), offer.beside)

    def _catch_up(self, job: Queued) -> None:
        """Look again at the hosts that changed since this group's last turn."""
        changes = self.ledger.changes
        if self._priority != job.priority:  # what is kept for others may mean something else to it
            self._rankings.clear()
        for stand in {stand.index: stand for stand in changes[self._seen :]}.values():
            if (ranking := self._rankings.get(stand.size_class)) is not None:
                self._push(ranking, stand, job)
        self._seen, self._priority = len(changes), job.priority

    def _best_of(self, size_class: int, job: Queued) -> Entry | None:
        """Of the hosts of one size; they are looked at when they are first asked for."""
        ranking = self._rankings.get(size_class)
        if ranking is None:
            ranking = self._rankings[size_class] = self._rank(size_class, job)
        while ranking and self.ledger.stands[ranking[0][1]].version != ranking[0][2]:
            _, index, version = heapq.heappop(ranking)
            shelf = self.ledger.stands[index].shelf
            if version == 0 and shelf is not None and self.kind.avoid is None:
                self._push(ranking, shelf.first(), job)
        return ranking[0] if ranking else None

    def _rank(self, size_class: int, job: Queued) -> list[Entry]:
        """One of each shelf will do, the first by its id, unless the job has a host to avoid."""
        ranking: list[Entry] = []
        for shelves in self.ledger.open[size_class].values():
            look = self.kind.look(shelves[0].stands[0])
            if not look.is_allowed:
                continue
            for shelf in shelves:
                if shelf.free_bytes < look.need.least_bytes:
                    break
                for stand in [shelf.first()] if self.kind.avoid is None else shelf.all():
                    self._push(ranking, stand, job)
        for stand in self.ledger.changed[size_class].values():
            self._push(ranking, stand, job)
        return ranking

    def _push(self, ranking: list[Entry], stand: Stand | None, job: Queued) -> None:
        entry = None if stand is None else self._entry(stand, job)
        if entry is not None:
            heapq.heappush(ranking, entry)

    def _entry(self, stand: Stand, job: Queued) -> Entry | None:
        offer = self._offer(job, stand)
        return None if offer is None else (preference(self.kind, stand, offer), stand.index, stand.version)

    def _offer(self, job: Queued, stand: Stand) -> Offer | None:
        return self.ledger.offer(self.kind, job.id, job.priority, stand)


def preference(kind: Kind, stand: Stand, offer: Offer) -> Preference:
    """Lower is better.

    Hosts that take what they are given; not where it was lost; all that it prefers, or the most of it
    that is to be had, in eighths; the smallest; with the base at hand; where it ends sooner; the
    tightest fit.
    """
    room = stand.room
    most = kind.look(stand).need.most_bytes
    return (
        room.missed_claims,
        room.id == kind.avoid,
        -(-8 * (most - offer.bytes) // most) if offer.bytes < most else 0,
        stand.size_class,
        kind.lacks_base(stand),
        kind.ends(stand),
        stand.free_bytes - offer.bytes,
        stand.used_slots,
        room.id,
    )


class _Reservations:
    """Which jobs room is kept for: one of each kind, the oldest that no host can take now."""

    def __init__(self, ledger: Ledger, turns: Sequence[_Turn]) -> None:
        self._ledger = ledger
        self._kinds: dict[str, JobId] = {}
        self._in_vain: set[str] = set()
        """Kinds that no host can be kept for, as their first jobs found."""
        self._new = 0
        self.is_unsettled = False
        """Something is free, or lost, that groups which had their turn have not seen."""
        for turn in turns:
            self._take_over(turn)

    def keep_room(self, turn: _Turn) -> None:
        """Keep room for the group's next job, where it can start soonest."""
        kind = turn.group.kind
        if kind in self._kinds or kind in self._in_vain or turn.kind.is_paused:
            return
        if self._new >= NEW_RESERVATIONS:
            return
        best = self._soonest(turn)
        if best is None:
            self._in_vain.add(kind)
            return
        if best.stand.machine.kept is not None:  # of a less urgent job, which looks again next time
            self.is_unsettled = True
        self._ledger.keep(best)
        self._kinds[kind] = best.job
        self._new += 1

    def note_placed(self, placement: Placement) -> None:
        """A job starts; if room was kept for it, that ends.

        Room kept on another host stays kept until the next decision: groups that had their turn may
        not be passed by those that come after them.
        """
        stand = self._ledger.by_id[placement.host]
        if stand.machine.kept is not None and stand.machine.kept.job == placement.job:
            self._ledger.let_go(stand)
        elif placement.job in self._kinds.values():
            self.is_unsettled = True

    def _take_over(self, turn: _Turn) -> None:
        """What was kept for the job is still kept, unless its host went away or got smaller."""
        host = turn.group.sample.reserved_on
        stand = self._ledger.by_id.get(host) if host else None
        if stand is None or stand.machine.kept is not None or turn.group.kind in self._kinds:
            return
        look = turn.kind.look(stand)
        can_start = look.is_allowed and turn.kind.can_fetch(stand)
        if stand.takes_new_jobs and can_start and not turn.kind.is_paused:
            job = turn.next_job
            self._ledger.keep(Kept(job.id, job.priority, stand, look.need))
            self._kinds[turn.group.kind] = job.id

    def _soonest(self, turn: _Turn) -> Kept | None:
        """Where the job can start soonest; times within a factor of two are alike, then the smallest
        host is taken, to leave the large ones to others.
        """
        best: tuple[Waiting, Kept] | None = None
        for missed, time, size_class, seconds, stand in self._ledger.by_soonest():
            if best is not None and (missed, False, time, size_class, seconds, "") > best[0]:
                break
            kept = self._possible(turn, stand)
            if kept is None:
                continue
            rank = self._rank(turn, kept)
            if best is None or rank < best[0]:
                best = (rank, kept)
        return None if best is None else best[1]

    def _possible(self, turn: _Turn, stand: Stand) -> Kept | None:
        job, held = turn.next_job, stand.machine.kept
        look = turn.kind.look(stand)
        if not look.is_allowed or not turn.kind.can_fetch(stand):
            return None
        if held is not None and job.priority >= held.priority:
            return None
        kept = Kept(job.id, job.priority, stand, look.need)
        foresee(kept)
        return kept

    @staticmethod
    def _rank(turn: _Turn, kept: Kept) -> Waiting:
        room = kept.stand.room
        starts = kept.starts_in_seconds
        is_avoided = room.id == turn.kind.avoid
        return (room.missed_claims, is_avoided, coarse_time(starts), kept.stand.size_class, starts, room.id)
