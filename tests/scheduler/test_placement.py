"""Which host gets which job, example by example; the laws are in `test_placement_laws`."""

from __future__ import annotations

import gc
from dataclasses import replace

from graft_scheduler.lessons import Lesson, LessonKey
from graft_scheduler.placement import Decision, place
from graft_scheduler.rooms import HostRoom, PendingJob
from graft_scheduler.stands import Machine, Shelf, Stand
from graft_scheduler.states import HostId, JobId
from tests.scheduler.fleets import GIB, busy, job, request, room, runs


def chosen(pending: list[PendingJob], rooms: list[HostRoom]) -> dict[str, str]:
    return {placement.job: placement.host for placement in place(pending, rooms).placements}


def kept(decision: Decision) -> dict[str, str]:
    return {one.job: one.host for one in decision.reservations}


def test_a_job_goes_to_the_smallest_host_that_has_the_memory() -> None:
    assert chosen([job(gib=6)], [room("small", 4), room("large", 64), room("fit", 8)]) == {"j": "fit"}


def test_the_oldest_job_gets_the_slot() -> None:
    assert chosen([job("old"), job("new")], [room()]) == {"old": "a"}


def test_a_more_urgent_job_gets_the_slot_before_an_older_one() -> None:
    assert chosen([job("old"), job("urgent", priority=0)], [room()]) == {"urgent": "a"}


def test_a_job_that_fits_nowhere_does_not_hold_back_the_next() -> None:
    assert chosen([job("large", 64), job("small", 1)], [room("a", 8)]) == {"small": "a"}


def test_the_demand_on_the_hosts_own_backend_counts() -> None:
    assert chosen([job(gib=12)], [room("mac", 8, backend="metal")]) == {"j": "mac"}
    assert chosen([job(gib=12)], [room("linux", 8)]) == {}


def test_a_host_that_did_not_take_its_last_job_is_asked_last() -> None:
    rooms = [room("tight", 2, missed_claims=1), room("large", 64)]

    assert chosen([job()], rooms) == {"j": "large"}


def test_a_job_avoids_the_host_it_was_lost_on_but_takes_it_when_there_is_no_other() -> None:
    burnt = job(avoid=HostId("tight"))

    assert chosen([burnt], [room("tight", 2), room("large", 64)]) == {"j": "large"}
    assert chosen([burnt], [room("tight", 2)]) == {"j": "tight"}


def test_a_job_of_unknown_size_waits_for_an_idle_machine_and_takes_all_of_it() -> None:
    taken = busy(room("busy", 64, slots=2), runs("r", 1))

    assert chosen([job(gib=None)], [taken]) == {}
    assert chosen([job(gib=None), job("next")], [room("idle", 8, slots=2)]) == {"j": "idle"}
    assert place([job(gib=None)], [room("idle", 8)]).placements[0].bytes == 8 * GIB


def test_a_job_of_unknown_size_does_with_what_other_programs_leave_if_that_is_most_of_the_host() -> None:
    mostly, hardly = room("a", 8, available_bytes=7 * GIB), room("a", 8, available_bytes=5 * GIB)

    assert place([job(gib=None)], [mostly]).placements[0].bytes == 7 * GIB
    assert place([job(gib=None)], [hardly]).placements == []


def test_a_job_gets_what_it_prefers_where_that_is_free_and_less_where_only_less_is() -> None:
    asks = request(4, prefers=12)

    assert place([job(asks=asks)], [room("a", 6), room("b", 64)]).placements[0].host == "b"
    assert place([job(asks=asks)], [room("a", 6), room("b", 64)]).placements[0].bytes == 12 * GIB
    assert place([job(asks=asks)], [room("a", 6)]).placements[0].bytes == 6 * GIB
    assert place([job(asks=asks)], [room("a", 3)]).placements == []


def test_what_other_programs_use_is_not_given_out() -> None:
    assert chosen([job(gib=6)], [room("a", 8, available_bytes=5 * GIB)]) == {}


def test_hosts_of_nearly_one_size_are_alike_and_the_one_with_the_base_is_taken() -> None:
    asks = request(4, model="base", weight_bytes=GIB)
    rooms = [room("a", 30), room("b", 31, cached=frozenset({"base"})), room("c", 64)]

    assert chosen([job(asks=asks)], rooms) == {"j": "b"}


def test_of_hosts_of_one_size_the_faster_chip_is_taken() -> None:
    asks = request(4, family="llama", method="lora", flops=1e15)
    rooms = [room("a", 32, chip="slow"), room("b", 32, chip="fast")]
    lessons = {
        LessonKey("llama", "lora", "slow", ""): Lesson(memory_factor=1, flops_per_second=1e12),
        LessonKey("llama", "lora", "fast", ""): Lesson(memory_factor=1, flops_per_second=4e12),
    }

    (placement,) = place([job(asks=asks)], rooms, lessons).placements

    assert (placement.host, placement.seconds) == ("b", 250)


def test_a_lesson_corrects_the_demand_of_such_jobs_on_such_hosts() -> None:
    asks = request(6, family="llama", method="lora")
    rooms = [room("a", 8, chip="m1"), room("b", 64, chip="m2")]
    lessons = {
        LessonKey("llama", "lora", "m1", ""): Lesson(memory_factor=1.5),
        LessonKey("llama", "lora", "m2", ""): Lesson(memory_factor=0.1),
    }

    (placement,) = place([job(asks=asks)], rooms, lessons).placements

    assert placement.host == "b"
    assert placement.bytes == -(-6 * GIB * 8 // 10)  # never below 0.8 of the estimate


def test_a_job_that_ran_out_of_memory_goes_to_a_host_that_can_give_more() -> None:
    rooms = [room("a", 8), room("b", 16)]

    assert chosen([job(above_bytes=8 * GIB)], rooms) == {"j": "b"}


def test_room_is_kept_for_a_large_job_where_it_can_start_soonest() -> None:
    late = busy(room("late", 16, slots=4), runs("r1", 12, minutes=600))
    soon = busy(room("soon", 16, slots=4), runs("r2", 12, minutes=10))

    decision = place([job("large", 16), job("small", 4), job("other", 4)], [late, soon])

    assert kept(decision)["large"] == "soon"
    assert {one.job: one.host for one in decision.placements} == {"small": "late"}
    assert {one.job: one.starts_in_seconds for one in decision.reservations}[JobId("large")] == 600


def test_a_job_that_ends_before_the_large_one_can_start_may_pass_it() -> None:
    host = busy(room("a", 16, slots=4, chip="m1"), runs("r", 12, minutes=60))
    quick = request(2, family="f", method="lora", flops=600e12)
    slow = request(2, family="f", method="lora", flops=3600e12)
    lessons = {LessonKey("f", "lora", "m1", ""): Lesson(memory_factor=1, flops_per_second=1e12)}

    decision = place([job("large", 16), job("slow", asks=slow), job("quick", asks=quick)], [host], lessons)

    (placement,) = decision.placements
    assert (placement.job, placement.beside) == ("quick", None)


def test_a_job_that_leaves_the_room_runs_beside_the_reservation() -> None:
    host = busy(room("a", 32, slots=4), runs("r", 20))

    decision = place([job("large", 24), job("big", 12), job("small", 8)], [host])

    (placement,) = decision.placements
    assert (placement.job, placement.beside) == ("small", "large")


def test_what_was_let_in_beside_a_reservation_never_delays_it_whatever_it_was_thought_to_take() -> None:
    host = busy(room("a", 32, slots=5), runs("r", 16, minutes=90), runs("s", 8, minutes=1, beside="large"))
    large = job("large", 24, reserved_on=HostId("a"))

    assert place([large, job("small", 4)], [host]).placements == []


def test_a_reservation_stays_where_it_is_although_another_host_would_be_free_sooner() -> None:
    here = busy(room("a", 16, slots=2), runs("r1", 12, minutes=60))
    sooner = busy(room("b", 16, slots=2), runs("r2", 12, minutes=10))

    assert kept(place([job("large", 16, reserved_on=HostId("a"))], [here, sooner])) == {"large": "a"}


def test_a_job_with_a_reservation_starts_elsewhere_when_it_can_at_once() -> None:
    here = busy(room("a", 16, slots=2), runs("r1", 12, minutes=60))
    large = job("large", 16, reserved_on=HostId("a"))

    decision = place([large], [here, room("b", 64)])

    assert [one.host for one in decision.placements] == ["b"]
    assert (kept(decision), decision.is_partial) == ({}, True)


def test_a_reservation_moves_when_its_host_takes_nothing_new() -> None:
    here = busy(room("a", 16, slots=2, is_draining=True), runs("r1", 12, minutes=1))
    there = busy(room("b", 16, slots=2), runs("r2", 12, minutes=600))

    assert kept(place([job("large", 16, reserved_on=HostId("a"))], [here, there])) == {"large": "b"}


def test_a_more_urgent_job_pushes_out_a_reservation() -> None:
    host = busy(room("a", 16, slots=2), runs("r", 12))
    waiting = job("waiting", 16, reserved_on=HostId("a"))

    assert kept(place([waiting, job("urgent", 15, priority=0)], [host])) == {"urgent": "a"}


def test_of_jobs_that_are_alike_one_has_a_reservation() -> None:
    rooms = [busy(room(name, 16), runs(f"r{name}", 12)) for name in "abc"]

    decision = place([job("one", 16), job("two", 16), job("three", 8)], rooms)

    assert set(kept(decision)) == {"one", "three"}
    assert len(set(kept(decision).values())) == 2


def test_room_is_kept_on_all_workers_of_a_machine() -> None:
    shared = {"machine_id": "m", "machine_bytes": 16 * GIB, "machine_committed_bytes": 12 * GIB}
    one = replace(busy(room("one", 16, slots=2), runs("r", 12)), **shared)  # type: ignore[arg-type]  # as in `room`
    two = room("two", 16, **shared)

    decision = place([job("large", 16), job("small", 4)], [one, two])

    assert decision.placements == []
    assert list(kept(decision)) == ["large"]


def test_a_paused_job_is_neither_placed_nor_kept_room_for() -> None:
    decision = place([job("paused", 16, pause_seconds=5.0), job("next", 4)], [room("a", 16)])

    assert [one.job for one in decision.placements] == ["next"]
    assert decision.reservations == []


def test_the_hosts_after_the_decision_show_what_was_given_out() -> None:
    (after,) = place([job("j", 6)], [room("a", 8, available_bytes=7 * GIB)]).rooms

    assert (after.used_slots, after.committed_bytes, after.available_bytes) == (1, 6 * GIB, GIB)
    assert [one.job for one in after.running] == [JobId("j")]


def test_a_decision_leaves_nothing_to_the_collector_of_cycles() -> None:
    gc.collect()
    gc.disable()
    try:
        decision = place([job("a", 6), job("b", 6), job("c", 1)], [room("one", 8), room("two", 4)])
        assert decision.placements
        assert decision.reservations
        assert [one for one in gc.get_objects() if isinstance(one, Machine | Shelf | Stand)] == []
        assert not gc.isenabled()
    finally:
        gc.enable()
    place([], [])
    assert gc.isenabled()
