"""Hosts and queued jobs for the tests of placement, in whole GB."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from graft_scheduler.demand import Demand, Request
from graft_scheduler.rooms import HostRoom, PendingJob, Running
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


def busy(one: HostRoom, *running: Running) -> HostRoom:
    """The same host, with these jobs on it and no others."""
    held = sum(job.bytes for job in running)
    return replace(
        one,
        used_slots=len(running),
        committed_bytes=held,
        machine_committed_bytes=held,
        running=running,
    )


def runs(job: str, gib: int, minutes: float | None = None, beside: str | None = None) -> Running:
    seconds = None if minutes is None else minutes * 60
    return Running(JobId(job), gib * GIB, seconds, JobId(beside) if beside else None)


def request(gib: int | None = 1, prefers: int | None = None, **changes: object) -> Request:
    demands = None
    if gib is not None:
        most = gib if prefers is None else prefers
        demands = {
            "cpu": Demand(minimum_bytes=gib * GIB, preferred_bytes=most * GIB),
            "metal": Demand(minimum_bytes=gib * GIB // 2, preferred_bytes=most * GIB // 2),
        }
    return Request(demands=demands, store_id="store").model_copy(update=changes)


def job(name: str = "j", gib: int | None = 1, asks: Request | None = None, **changes: object) -> PendingJob:
    plain = PendingJob(JobId(name), asks or request(gib))
    return replace(plain, **changes)  # type: ignore[arg-type]  # as above


@st.composite
def hosts(draw: st.DrawFn) -> list[HostRoom]:
    """Up to eight workers on up to four machines, some with jobs on them."""
    found: list[HostRoom] = []
    for number in range(draw(st.integers(0, 8))):
        plain = room(
            f"h{number}",
            draw(st.integers(1, 16)),
            machine_id=f"m{draw(st.integers(0, 3))}",
            machine_bytes=16 * GIB,
            slots=draw(st.integers(1, 3)),
            backend=draw(st.sampled_from(["cpu", "cpu", "metal"])),
            is_draining=draw(st.integers(0, 9)) == 0,
            missed_claims=draw(st.sampled_from([0, 0, 0, 1])),
            cached=frozenset(draw(st.sets(st.sampled_from("xy")))),
            available_bytes=draw(st.none() | st.integers(0, 16).map(lambda gib: gib * GIB)),
            free_disk_bytes=draw(st.none() | st.integers(0, 4).map(lambda gib: gib * GIB)),
            no_access=frozenset(draw(st.sets(st.sampled_from("xyz"), max_size=1))),
        )
        before = sum(one.committed_bytes for one in found if one.machine_id == plain.machine_id)
        running, left = [], min(plain.budget_bytes, plain.machine_bytes - before)
        for slot in range(draw(st.integers(0, plain.slots))):
            size = draw(st.integers(1, 8)) * GIB
            if size <= left:
                minutes = draw(st.none() | st.integers(1, 100))
                running.append(runs(f"r{number}-{slot}", size // GIB, minutes))
                left -= size
        found.append(busy(plain, *running))
    totals: dict[str, int] = {}
    for one in found:
        totals[one.machine_id] = totals.get(one.machine_id, 0) + one.committed_bytes
    return [replace(one, machine_committed_bytes=totals[one.machine_id]) for one in found]


@st.composite
def queues(draw: st.DrawFn) -> list[PendingJob]:
    """Up to twenty jobs of up to four kinds."""
    kinds = [
        request(
            least,
            None if least is None else least + draw(st.sampled_from([0, 0, 3])),
            model=draw(st.none() | st.sampled_from("xy")),
            weight_bytes=draw(st.sampled_from([0, 2 * GIB])),
            disk_bytes=draw(st.sampled_from([0, GIB])),
            flops=draw(st.none() | st.just(1e12)),
            family="f",
            method="lora",
        )
        for least in draw(st.lists(st.none() | st.integers(1, 20), min_size=1, max_size=4))
    ]
    places = st.none() | st.integers(0, 8).map(lambda number: HostId(f"h{number}"))
    return [
        job(
            f"j{number}",
            asks=draw(st.sampled_from(kinds)),
            priority=draw(st.sampled_from([5, 5, 5, 2])),
            avoid=draw(st.none() | places),
            reserved_on=draw(st.none() | st.none() | places),
            above_bytes=draw(st.sampled_from([0, 0, 0, 6 * GIB])),
        )
        for number in range(draw(st.integers(0, 20)))
    ]
