"""The words that placement uses when a job waits."""

from __future__ import annotations

from dataclasses import replace

from graft_scheduler.placement import place
from graft_scheduler.rooms import Reservation
from graft_scheduler.states import HostId, JobId
from graft_scheduler.waiting import about, explain_wait
from tests.scheduler.fleets import GIB, busy, job, request, room, runs


def kept_for(name: str, host: str, gib: int, since: float | None = None) -> Reservation:
    return Reservation(JobId(name), HostId(host), gib * GIB, gib * GIB, since=since)


def test_every_reason_is_said_in_words() -> None:
    needs_code = job(asks=request(6, needs_remote_code=True))
    rooms = [
        room("small", 4),
        room("other-store", store_id="elsewhere"),
        room("careful"),
        room("away", is_alive=False, allow_remote_code=True),
        room("draining", is_draining=True, allow_remote_code=True),
        room("cordoned", is_cordoned=True, allow_remote_code=True),
        room("rests", rest_seconds=8, missed_claims=3, allow_remote_code=True),
        busy(room("busy", allow_remote_code=True), runs("r1", 1)),
        busy(room("full", slots=2, allow_remote_code=True), runs("r2", 4)),
        room("shared", available_bytes=5 * GIB, allow_remote_code=True),
        room("kept", allow_remote_code=True),
        room("free", allow_remote_code=True),
    ]

    reasons = {
        one.host_name: (one.reason, one.fits_ever)
        for one in explain_wait(needs_code, rooms, reservations=[kept_for("big", "kept", 8, 100)], now=7900)
    }

    assert reasons["small"] == (
        "too small: the job needs 6 GB, the host may use 4 GB (short by 2 GB)",
        False,
    )
    assert "another store" in reasons["other-store"][0]
    assert "code of their own" in reasons["careful"][0]
    assert reasons["away"] == ("away: its worker does not report", True)
    assert reasons["draining"] == ("draining: it takes nothing new", True)
    assert "graft hosts uncordon cordoned" in reasons["cordoned"][0]
    assert reasons["rests"] == ("it took none of its last 3 jobs; tried again in 8 s", True)
    assert reasons["busy"] == ("busy: 1 of 1 slots in use; fits when job r1 ends", True)
    assert reasons["full"] == (
        "not enough free memory: the job needs 6 GB, 4 GB of 8 GB is free (4 GB reserved); "
        "fits when job r2 ends",
        True,
    )
    assert reasons["shared"] == (
        "not enough free memory: the job needs 6 GB, other programs on the machine leave 5 GB",
        True,
    )
    assert reasons["kept"] == ("reserved for job big, which has waited 2 h", True)
    assert reasons["free"] == ("free: it will be placed here", True)


def test_the_job_that_must_end_and_the_time_it_takes_are_named() -> None:
    host = busy(room("a", 16, slots=3), runs("soon", 4, minutes=12), runs("late", 8, minutes=90))

    (small,) = explain_wait(job(gib=8), [host])
    (large,) = explain_wait(job(gib=16), [host])

    assert small.reason.endswith("fits when job soon ends (in about 12 min)")
    assert large.reason.endswith("fits when job late ends (in about 90 min)")
    assert (small.starts_in_seconds, large.starts_in_seconds) == (720, 5400)


def test_a_job_with_a_reservation_is_told_so() -> None:
    host = busy(room("a", 16, slots=2), runs("r", 8, minutes=12))

    (reason,) = explain_wait(job("big", 16), [host], reservations=[kept_for("big", "a", 16)])

    assert reason.reason.endswith("starts here when job r ends (in about 12 min)")


def test_a_job_behind_a_reservation_on_a_full_host_hears_of_both() -> None:
    host = busy(room("a", 16), runs("r", 8))

    (reason,) = explain_wait(job("small", 4), [host], reservations=[kept_for("big", "a", 16)])

    assert reason.reason == "busy: 1 of 1 slots in use; fits when job r ends; then reserved for job big"


def test_a_job_that_ran_out_of_memory_is_told_which_hosts_are_no_larger() -> None:
    (reason,) = explain_wait(job(above_bytes=8 * GIB), [room("a", 8)])

    assert not reason.fits_ever
    assert reason.reason == "too small: the job ran out of memory with 8 GB, the host may use 8 GB"


def test_a_job_of_unknown_size_is_told_that_it_needs_the_machine_for_itself() -> None:
    host = busy(room("a", 16, slots=2), runs("r", 1))

    (reason,) = explain_wait(job(gib=None), [host])

    assert reason.reason == (
        "busy: the job's size is unknown, so it needs the whole machine; fits when job r ends"
    )


def test_a_reservation_that_placement_made_is_explained() -> None:
    host = busy(room("a", 16, slots=2), runs("r", 12))
    decision = place([job("large", 16), job("small", 4)], [host])

    (reason,) = explain_wait(job("small", 4), decision.rooms, reservations=decision.reservations)

    assert reason.reason == "reserved for job large"


def test_times_are_told_no_finer_than_they_are_known() -> None:
    assert [about(seconds) for seconds in (7, 119, 720, 10_800, 200_000)] == [
        "7 s",
        "119 s",
        "12 min",
        "3 h",
        "2 days",
    ]


def test_a_host_without_the_disk_or_the_access_is_passed_over_and_says_so() -> None:
    asks = request(1, model="org/base@abc", weight_bytes=15 * GIB, disk_bytes=GIB)
    has_it = room(cached=frozenset({"org/base@abc"}), no_access=frozenset({"org/base"}))
    rooms = [
        room("full", free_disk_bytes=3 * GIB),
        room("refused", no_access=frozenset({"org/base"})),
        replace(has_it, id=HostId("crammed"), name="crammed", machine_id="c", free_disk_bytes=0),
        replace(has_it, id=HostId("has-it"), name="has-it", machine_id="h", free_disk_bytes=GIB),
        room("roomy", free_disk_bytes=16 * GIB),
    ]
    reasons = {one.host_name: one for one in explain_wait(job(asks=asks), rooms)}

    assert {name for name, one in reasons.items() if one.is_free} == {"has-it", "roomy"}
    assert all(one.fits_ever and not one.is_full for one in reasons.values())
    assert reasons["full"].reason == "needs 16 GB of disk, this host has 3 GB free"
    assert reasons["crammed"].reason == "needs 1 GB of disk, this host has 0 B free"
    assert reasons["refused"].reason.startswith(
        "has no access to org/base: accept its terms and set HF_TOKEN on that host"
    )


def test_no_room_is_kept_on_a_host_that_could_not_fetch_the_base() -> None:
    asks = request(8, model="org/base@abc", weight_bytes=15 * GIB)
    rooms = [
        busy(room("refused", no_access=frozenset({"org/base"})), runs("soon", 8, 1)),
        busy(room("full", free_disk_bytes=GIB), runs("later", 8, 2)),
        busy(room("able"), runs("last", 8, 100)),
    ]

    decision = place([job("big", asks=asks)], rooms)

    assert [one.host for one in decision.reservations] == ["able"]
    decision = place([job("big", asks=asks, reserved_on=HostId("full"))], rooms[:2])
    assert decision.reservations == []
