"""Placement's laws, and the words it uses when a job waits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.placement import (
    HostRoom,
    PendingJob,
    explain_wait,
    never_fits,
    place,
    reserved_bytes,
)
from graft_scheduler.states import HostId, JobId

GIB = 1 << 30


def room(host: str = "a", gib: int = 8, **changes: object) -> HostRoom:
    plain = HostRoom(
        id=HostId(host),
        name=host,
        backend="cpu",
        machine_id=f"machine-{host}",
        store_id="store",
        budget_bytes=gib * GIB,
        machine_bytes=gib * GIB,
        slots=1,
        used_slots=0,
        committed_bytes=0,
        machine_committed_bytes=0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # names and types are the dataclass's own


def job(name: str = "j", gib: int | None = 1, **changes: object) -> PendingJob:
    estimates = None if gib is None else {"cpu": gib * GIB, "metal": gib * GIB // 2}
    return replace(PendingJob(JobId(name), estimates, "store"), **changes)  # type: ignore[arg-type]  # as above


def chosen(pending: list[PendingJob], rooms: list[HostRoom]) -> dict[str, str]:
    return {placement.job: placement.host for placement in place(pending, rooms)}


def test_a_job_goes_to_the_tightest_host_that_has_the_memory() -> None:
    assert chosen([job(gib=6)], [room("small", 4), room("large", 64), room("fit", 8)]) == {"j": "fit"}


def test_the_oldest_job_gets_the_slot() -> None:
    assert chosen([job("old"), job("new")], [room()]) == {"old": "a"}


def test_a_job_that_fits_nowhere_now_does_not_hold_back_the_next() -> None:
    assert chosen([job("large", 64), job("small", 1)], [room("a", 8)]) == {"small": "a"}


def test_the_estimate_of_the_hosts_own_backend_counts() -> None:
    assert chosen([job(gib=12)], [room("mac", 8, backend="metal")]) == {"j": "mac"}
    assert chosen([job(gib=12)], [room("linux", 8)]) == {}


def test_a_host_that_did_not_take_its_last_job_is_asked_last() -> None:
    rooms = [room("tight", 2, missed_claims=1), room("large", 64)]

    assert chosen([job()], rooms) == {"j": "large"}


def test_a_job_avoids_the_host_it_was_lost_on_but_takes_it_when_there_is_no_other() -> None:
    burnt = job(avoid=HostId("tight"))

    assert chosen([burnt], [room("tight", 2), room("large", 64)]) == {"j": "large"}
    assert chosen([burnt], [room("tight", 2)]) == {"j": "tight"}


def test_a_job_of_unknown_size_waits_for_an_idle_machine() -> None:
    busy = room("busy", 64, slots=2, used_slots=1, committed_bytes=GIB, machine_committed_bytes=GIB)

    assert chosen([job(gib=None)], [busy]) == {}
    assert chosen([job(gib=None), job("next")], [room("idle", 8, slots=2)]) == {"j": "idle"}


def test_every_reason_is_said_in_words() -> None:
    needs_code = job(gib=6, needs_remote_code=True)
    rooms = [
        room("small", 4),
        room("other-store", store_id="elsewhere"),
        room("careful"),
        room("away", is_alive=False, allow_remote_code=True),
        room("draining", is_draining=True, allow_remote_code=True),
        room("cordoned", is_cordoned=True, allow_remote_code=True),
        room("busy", used_slots=1, allow_remote_code=True),
        room(
            "full",
            slots=2,
            committed_bytes=4 * GIB,
            machine_committed_bytes=4 * GIB,
            allow_remote_code=True,
        ),
        room("free", allow_remote_code=True),
    ]

    reasons = {one.host_name: (one.reason, one.fits_ever) for one in explain_wait(needs_code, rooms)}

    assert reasons["small"] == (
        "too small: the job needs 6 GB, the host may use 4 GB (short by 2 GB)",
        False,
    )
    assert "another store" in reasons["other-store"][0]
    assert "code of their own" in reasons["careful"][0]
    assert reasons["away"] == ("away: its worker does not report", True)
    assert reasons["draining"] == ("draining: it takes nothing new", True)
    assert "graft hosts uncordon cordoned" in reasons["cordoned"][0]
    assert reasons["busy"] == ("busy: 1 of 1 slots in use", True)
    assert "not enough free memory" in reasons["full"][0]
    assert reasons["free"] == ("free: it will be placed here", True)


def test_a_job_never_fits_only_when_every_registered_host_is_wrong_for_it() -> None:
    assert never_fits(job(gib=64), [room("a", 8), room("b", 16)])
    assert not never_fits(job(gib=64), [room("a", 8), room("b", 64, is_alive=False)])
    assert not never_fits(job(gib=64), [])


rooms = st.lists(
    st.builds(
        lambda name, machine, gib, slots, used: room(
            f"h{name}",
            gib,
            machine_id=f"m{machine}",
            machine_bytes=16 * GIB,
            slots=slots,
            used_slots=min(used, slots),
        ),
        st.integers(0, 30),
        st.integers(0, 3),
        st.integers(1, 16),
        st.integers(1, 3),
        st.integers(0, 3),
    ),
    unique_by=lambda one: one.id,
    max_size=8,
)
jobs = st.lists(
    st.builds(job, st.integers(0, 99).map("j{}".format), st.none() | st.integers(1, 20)),
    unique_by=lambda one: one.id,
    max_size=20,
)


@given(pending=jobs, hosts=rooms)
def test_no_host_and_no_machine_is_ever_given_more_than_it_has(
    pending: list[PendingJob], hosts: list[HostRoom]
) -> None:
    by_id, by_job = {host.id: host for host in hosts}, {one.id: one for one in pending}
    on_host: dict[str, int] = defaultdict(int)
    on_machine: dict[str, int] = defaultdict(int)
    slots: dict[str, int] = defaultdict(int)

    placements = place(pending, hosts)

    for placement in placements:
        host = by_id[placement.host]
        taken = reserved_bytes(by_job[placement.job], host)
        on_host[host.id] += taken
        on_machine[host.machine_id] += taken
        slots[host.id] += 1
        assert on_host[host.id] <= host.budget_bytes
        assert on_machine[host.machine_id] <= host.machine_bytes
        assert slots[host.id] + host.used_slots <= host.slots
    assert len({placement.job for placement in placements}) == len(placements)


@given(pending=jobs, hosts=rooms)
def test_what_is_not_placed_has_a_reason_on_every_host(
    pending: list[PendingJob], hosts: list[HostRoom]
) -> None:
    placed = {placement.job for placement in place(pending[:1], hosts)}

    for waiting in pending[:1]:
        free = [one for one in explain_wait(waiting, hosts) if one.reason.startswith("free")]
        assert bool(free) == (waiting.id in placed)
