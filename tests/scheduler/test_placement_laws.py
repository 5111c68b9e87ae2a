"""What holds for placement whatever the fleet and the queue."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from graft_scheduler.kinds import Kind
from graft_scheduler.ledger import Ledger
from graft_scheduler.lessons import Lesson, LessonKey
from graft_scheduler.placement import NOTHING_LEARNED, Group, group, place, place_groups, preference
from graft_scheduler.rooms import HostRoom, PendingJob, Placement, Running, lesson_for, need_on
from graft_scheduler.states import HostId, JobId
from graft_scheduler.waiting import explain_wait, never_fits
from tests.scheduler.fleets import GIB, hosts, job, queues, room

LESSONS = {
    LessonKey("f", "lora", "", ""): Lesson(memory_factor=1.2, flops_per_second=1e9),
}
learned = st.sampled_from([NOTHING_LEARNED, LESSONS])


@given(pending=queues(), rooms=hosts(), lessons=learned)
def test_no_host_and_no_machine_is_ever_given_more_than_it_has(
    pending: list[PendingJob], rooms: list[HostRoom], lessons: dict[LessonKey, Lesson]
) -> None:
    by_id, by_job = {host.id: host for host in rooms}, {one.id: one for one in pending}
    on_host: dict[str, int] = defaultdict(int)
    on_machine: dict[str, int] = defaultdict(int)
    slots: dict[str, int] = defaultdict(int)

    placements = place(pending, rooms, lessons).placements

    for placement in placements:
        host, asks = by_id[placement.host], by_job[placement.job].request
        on_host[host.id] += placement.bytes
        on_machine[host.machine_id] += placement.bytes
        slots[host.id] += 1
        assert placement.bytes >= need_on(asks, host, lesson_for(asks, host, lessons)).least_bytes
        assert on_host[host.id] + host.committed_bytes <= host.budget_bytes
        assert on_machine[host.machine_id] + host.machine_committed_bytes <= host.machine_bytes
        assert slots[host.id] + host.used_slots <= host.slots
        assert host.available_bytes is None or on_machine[host.machine_id] <= host.available_bytes
        assert not host.is_draining
    assert len({placement.job for placement in placements}) == len(placements)


@given(pending=queues(), rooms=hosts(), lessons=learned, order=st.randoms(use_true_random=False))
def test_the_decision_depends_on_nothing_but_queue_and_hosts(
    pending: list[PendingJob],
    rooms: list[HostRoom],
    lessons: dict[LessonKey, Lesson],
    order: Random,
) -> None:
    groups = group(pending)
    shuffled = list(groups)
    order.shuffle(shuffled)

    first, again = place_groups(groups, rooms, lessons), place_groups(shuffled, rooms, lessons)

    assert (first.placements, first.reservations) == (again.placements, again.reservations)


@given(pending=queues(), rooms=hosts(), lessons=learned)
def test_looking_at_groups_decides_as_looking_at_every_job(
    pending: list[PendingJob], rooms: list[HostRoom], lessons: dict[LessonKey, Lesson]
) -> None:
    groups = group(pending)
    alone = [
        Group(one.kind, replace(one.sample, id=queued.id), [queued]) for one in groups for queued in one.jobs
    ]

    together, apart = place_groups(groups, rooms, lessons), place_groups(alone, rooms, lessons)

    assert together.placements == apart.placements
    assert together.reservations == apart.reservations


@given(pending=queues(), rooms=hosts(), lessons=learned)
def test_each_job_gets_the_best_of_all_hosts_at_its_turn(
    pending: list[PendingJob], rooms: list[HostRoom], lessons: dict[LessonKey, Lesson]
) -> None:
    free = [replace(one, reserved_on=None, priority=5) for one in pending]
    decision = place(free, rooms, lessons)
    ledger = Ledger(rooms)
    for number, placement in enumerate(decision.placements):
        if any(one.beside for one in decision.placements[: number + 1]) or decision.reservations:
            break  # what is kept is not known to this simple search
        pick = next(one for one in free if one.id == placement.job)
        kind = Kind(pick, lessons)
        able = [
            (preference(kind, stand, offer), stand.room.id)
            for stand in ledger.stands
            if (offer := ledger.offer(kind, pick.id, pick.priority, stand)) is not None
        ]
        assert placement.host == min(able)[1]
        ledger.commit(placement)


@given(pending=queues(), rooms=hosts(), lessons=learned)
def test_a_job_is_told_that_a_host_is_free_only_if_it_is_placed(
    pending: list[PendingJob], rooms: list[HostRoom], lessons: dict[LessonKey, Lesson]
) -> None:
    for one in (replace(first, reserved_on=None) for first in pending[:1]):
        is_placed = bool(place([one], rooms, lessons).placements)
        assert is_placed == any(reason.is_free for reason in explain_wait(one, rooms, lessons))

    decision = place(pending, rooms, lessons)

    placed = {one.job for one in decision.placements}
    waiting = [one for one in pending if one.id not in placed and not decision.is_partial]
    for one in waiting:
        reasons = explain_wait(one, decision.rooms, lessons, decision.reservations, now=0)
        assert [reason for reason in reasons if reason.is_free] == []


@given(pending=queues(), rooms=hosts())
def test_a_machine_has_one_reservation_and_a_job_too(
    pending: list[PendingJob], rooms: list[HostRoom]
) -> None:
    by_id = {host.id: host for host in rooms}

    kept = place(pending, rooms).reservations

    assert len({by_id[one.host].machine_id for one in kept}) == len(kept)
    assert len({one.job for one in kept}) == len(kept)


@dataclass
class Simulation:
    """A fleet in which jobs end when they are told to, and the leader looks after every end."""

    rooms: dict[HostId, HostRoom]
    queue: list[PendingJob]
    running: dict[JobId, tuple[HostId, Running]] = field(default_factory=dict)
    reserved: dict[JobId, tuple[HostId, frozenset[JobId]]] = field(default_factory=dict)
    """Where room is kept, and what was on the machine, less what was let in beside it, when it was given."""

    def look(self) -> None:
        for _ in range(5):
            decision = place(self.queue, self._hosts())
            self._check_waits(decision.placements)
            for one in decision.placements:
                thought = 60.0 * (int(one.job[1:]) * 37 % 101)  # and wrong: jobs end as they are told to
                self.running[one.job] = (one.host, Running(one.job, one.bytes, thought, one.beside))
            noted = {one.job: one.host for one in decision.reservations}
            for job_id, host in noted.items():
                if self.reserved.get(job_id, (None, None))[0] != host:
                    self.reserved[job_id] = (host, self._on(host))
            self.reserved = {job_id: kept for job_id, kept in self.reserved.items() if job_id in noted}
            self.queue = [
                replace(one, reserved_on=noted.get(one.id))
                for one in self.queue
                if one.id not in self.running
            ]
            if not decision.is_partial:
                return

    def end(self, number: int) -> None:
        if self.running:
            del self.running[sorted(self.running)[number % len(self.running)]]

    def _check_waits(self, placements: Sequence[Placement]) -> None:
        """No job waits on when all that ran on its host when it got the reservation has ended."""
        placed = {one.job for one in placements}
        for job_id, (host, before) in self.reserved.items():
            if before.isdisjoint(self.running) and host in self.rooms:
                assert job_id in placed

    def _on(self, host: HostId) -> frozenset[JobId]:
        return frozenset(job_id for job_id, (at, _) in self.running.items() if at == host)

    def _hosts(self) -> list[HostRoom]:
        found = []
        for host in self.rooms.values():
            held = tuple(one for at, one in self.running.values() if at == host.id)
            total = sum(one.bytes for one in held)
            found.append(
                replace(
                    host,
                    used_slots=len(held),
                    committed_bytes=total,
                    machine_committed_bytes=total,
                    running=held,
                )
            )
        return found


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), hosts_of_fleet=st.integers(1, 3))
def test_a_job_waits_no_longer_than_its_host_takes_to_drain_and_all_are_placed_in_the_end(
    seed: int, hosts_of_fleet: int
) -> None:
    rng = Random(seed)
    sizes = [(rng.randint(8, 32), rng.randint(2, 5)) for _ in range(hosts_of_fleet)]
    rooms = {HostId(f"h{n}"): room(f"h{n}", gib, slots=slots) for n, (gib, slots) in enumerate(sizes)}
    fleet = Simulation(rooms, [])
    for number in range(60):
        gib = rng.randint(8, 34) if rng.random() < 0.2 else rng.randint(1, 8)
        fleet.queue.append(job(f"j{number}", gib))
        fleet.look()
        if rng.random() < 0.7:
            fleet.end(rng.randrange(100))
            fleet.look()

    for _ in range(60):
        fleet.end(0)
        fleet.look()

    assert not fleet.running
    assert all(never_fits(one, list(rooms.values())) for one in fleet.queue)


def test_a_job_never_fits_only_when_every_registered_host_is_wrong_for_it() -> None:
    assert never_fits(job(gib=64), [room("a", 8), room("b", 16)])
    assert not never_fits(job(gib=64), [room("a", 8), room("b", 64, is_alive=False)])
    assert not never_fits(job(gib=64), [])
    assert never_fits(job(above_bytes=16 * GIB), [room("a", 8), room("b", 16)])
