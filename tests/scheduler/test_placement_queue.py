"""The queue as groups in Redis, and a leader that places from them: on a real Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from graft_scheduler import fleet, keys, pending
from graft_scheduler.broker import Broker, make_app
from graft_scheduler.client import Client
from graft_scheduler.demand import Demand, Request
from graft_scheduler.errors import Conflict, Fenced
from graft_scheduler.jobs import CountJob
from graft_scheduler.leader import Scheduler
from graft_scheduler.lessons import Lesson, LessonKey, read_lessons
from graft_scheduler.pending import Queue, read_job
from graft_scheduler.records import Hold, HostInfo, JobProgress
from graft_scheduler.rooms import Placement
from graft_scheduler.settings import load_settings
from graft_scheduler.snapshot import read_snapshot
from graft_scheduler.states import HostId, JobId, JobState
from graft_scheduler.transitions import Ending, Report, Transitions, Window
from tests.services import RedisServer

GIB = 1 << 30
WINDOW = Window(claim_seconds=10.0, alive_seconds=15.0)
YIELDED = Ending(JobState.QUEUED, "yielded")


@pytest.fixture
def client(redis_server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("GRAFT_REDIS_URL", redis_server.url)
    with Client() as found:
        yield found


@pytest.fixture
def scheduler(redis_server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    monkeypatch.setenv("GRAFT_REDIS_URL", redis_server.url)
    return Scheduler(redis, Broker(make_app(redis_server.url)), load_settings())


def submit(transitions: Transitions, job: str, gib: int = 1, priority: int = 5) -> JobId:
    request = Request(demands={"cpu": Demand.of(gib * GIB)}, store_id="store")
    transitions.submit(JobId(job), CountJob(priority=priority), request)
    return JobId(job)


def host(transitions: Transitions, name: str, gib: int = 16, slots: int = 4, **changes: object) -> HostId:
    info = HostInfo(
        id=HostId(name),
        name=name,
        machine_id=f"machine-{name}",
        boot="boot",
        store_id="store",
        budget_bytes=gib * GIB,
        machine_bytes=gib * GIB,
        slots=slots,
        backend="cpu",
        device="CPU",
        system="test",
        versions={},
    )
    transitions.host_beat(info.model_copy(update=changes), 5)
    return info.id


def run(transitions: Transitions, redis: Redis, job: str) -> Hold:
    """Claimed, on the host where it was placed."""
    fields: Any = redis.hmget(keys.job(JobId(job)), "token", "host")
    hold = Hold(JobId(job), fields[0], "nonce")
    assert transitions.claim(hold, HostId(fields[1]), "boot", 60) is not None
    return hold


def grouped(redis: Redis) -> list[list[str]]:
    return sorted(sorted(job.id for job in group.jobs) for group in Queue(redis).read())


def state_of(redis: Redis, job: str) -> str:
    return str(redis.hget(keys.job(JobId(job)), "state"))


def test_jobs_that_ask_for_the_same_are_one_group_in_the_order_of_the_queue(
    transitions: Transitions, redis: Redis
) -> None:
    for job, gib, priority in (("a", 1, 5), ("b", 2, 5), ("c", 1, 0), ("d", 1, 5)):
        submit(transitions, job, gib, priority)

    groups = Queue(redis).read()

    assert [[job.id for job in group.jobs] for group in groups] == [["c", "a", "d"], ["b"]]
    assert [job.priority for job in groups[0].jobs] == [0, 5, 5]


def test_a_job_that_must_avoid_a_host_is_alike_to_no_other(transitions: Transitions, redis: Redis) -> None:
    for job in "ab":
        submit(transitions, job)
    leader = transitions.lead("me", 60)[1]
    host(transitions, "one")
    transitions.place(Placement(JobId("a"), HostId("one"), GIB), leader, WINDOW)
    run(transitions, redis, "a")
    redis.zadd(keys.LEASES, {"a": 1})

    transitions.expire(JobId("a"), HostId("one"))

    assert grouped(redis) == [["a"], ["b"]]
    avoiding = read_job(redis, JobId("a"))
    assert avoiding is not None
    assert avoiding.avoid == HostId("one")


def test_a_reservation_is_noted_at_the_job_and_only_by_the_leader(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions, "a")
    leader = transitions.lead("me", 60)[1]

    assert not transitions.reserve(JobId("a"), HostId("one"), "somebody:9")
    assert transitions.reserve(JobId("a"), HostId("one"), leader)

    (group,) = Queue(redis).read()
    assert group.sample.reserved_on == HostId("one")
    assert list(redis.hvals(keys.RESERVED)) == ["a"]
    transitions.reserve(JobId("a"), None, leader)
    assert Queue(redis).read()[0].sample.reserved_on is None
    assert redis.hlen(keys.RESERVED) == 0


def test_groups_behind_the_first_come_into_view_in_turn(
    transitions: Transitions, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "FIRST_GROUPS", 2)
    monkeypatch.setattr(pending, "OTHER_GROUPS", 2)
    for number in range(8):
        submit(transitions, f"j{number}", gib=number + 1)
    leader = transitions.lead("me", 60)[1]
    transitions.reserve(JobId("j7"), HostId("one"), leader)
    queue = Queue(redis)

    seen = [{job.id for group in queue.read() for job in group.jobs} for _ in range(4)]

    assert all({"j0", "j1", "j7"} <= view for view in seen)
    assert set.union(*seen) == {f"j{number}" for number in range(8)}


def test_a_long_group_is_read_in_part(
    transitions: Transitions, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "HEAD", 3)
    for number in range(5):
        submit(transitions, f"j{number}")

    (group,) = Queue(redis).read()

    assert ([job.id for job in group.jobs], group.is_cut) == (["j0", "j1", "j2"], True)


STEPS = ["place", "claim", "give back", "fail", "expire", "cancel", "retry", "reserve"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from("abc")), max_size=25))
def test_whatever_happens_a_job_is_in_a_group_only_while_it_waits(
    redis: Redis, transitions: Transitions, steps: list[tuple[str, str]]
) -> None:
    redis.flushall()
    host(transitions, "one", slots=2)
    leader = transitions.lead("me", 60)[1]
    for number, job in enumerate("abc"):
        submit(transitions, job, gib=1 + number // 2)

    for step, name in steps:
        take(transitions, redis, step, JobId(name), leader)

        queued: Any = redis.zrange(keys.QUEUE, 0, -1)
        groups = Queue(redis).read()
        assert sorted(job.id for group in groups for job in group.jobs) == sorted(queued)
        assert [group.jobs[0].order for group in groups] == sorted(group.jobs[0].order for group in groups)
        assert redis.zcard(keys.GROUPS) == redis.hlen(keys.GROUP_REQUESTS) == len(groups)
        for group in groups:
            first = read_job(redis, group.jobs[0].id)
            assert first is not None
            assert (first.request, first.reserved_on) == (group.sample.request, group.sample.reserved_on)
        reserved = {group.jobs[0].id for group in groups if group.sample.reserved_on}
        assert len(reserved) <= redis.hlen(keys.RESERVED) <= 3
        held: Any = redis.zrange(keys.HELD, 0, -1)
        assert {member.rpartition(":")[2] for member in held} == {
            one.job for one in fleet.read_commitments(redis)
        }


def take(transitions: Transitions, redis: Redis, step: str, job: JobId, leader: str) -> None:
    token: Any = redis.hget(keys.job(job), "token")
    hold = Hold(job, token, "nonce")
    try:
        match step:
            case "place":
                transitions.place(Placement(job, HostId("one"), GIB), leader, WINDOW)
            case "claim":
                transitions.claim(hold, HostId("one"), "boot", 60)
            case "give back":
                transitions.finish(hold, HostId("one"), YIELDED)
            case "fail":
                transitions.finish(hold, HostId("one"), Ending(JobState.FAILED, "failed"))
            case "expire":
                redis.zadd(keys.LEASES, {job: 1}, xx=True)
                redis.zadd(keys.PLACED, {job: 1}, xx=True)
                transitions.expire(job, HostId("one"))
            case "cancel":
                transitions.cancel(job, "me")
            case "retry":
                transitions.retry(job, "me")
            case _:
                transitions.reserve(job, HostId("one"), leader)
    except (Fenced, Conflict):
        pass


def test_a_round_places_more_jobs_than_it_reads_of_a_group_at_once(
    transitions: Transitions, redis: Redis, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "HEAD", 2)
    host(transitions, "one", gib=64, slots=7)
    for number in range(9):
        submit(transitions, f"j{number}")

    scheduler.round()

    assert sorted(one.job for one in fleet.read_commitments(redis)) == [f"j{number}" for number in range(7)]


def test_a_large_job_is_not_passed_by_small_ones_and_starts_when_its_host_has_drained(
    transitions: Transitions, redis: Redis, scheduler: Scheduler, client: Client
) -> None:
    one = host(transitions, "one", gib=16, slots=4)
    submit(transitions, "first", gib=8)
    scheduler.round()
    hold = run(transitions, redis, "first")
    transitions.report(hold, Report(JobProgress(seconds_left=720)))
    submit(transitions, "large", gib=16)
    submit(transitions, "small", gib=4)

    scheduler.round()

    assert state_of(redis, "small") == "queued"
    (small,) = client.why("small").hosts
    (large,) = client.why("large").hosts
    assert small.reason == "reserved for job large, which has waited 0 s"
    assert large.reason.endswith("starts here when job first ends (in about 12 min)")

    transitions.finish(hold, one, Ending(JobState.COMPLETED, "completed"))
    scheduler.round()
    assert (state_of(redis, "large"), state_of(redis, "small")) == ("placed", "queued")


def test_the_next_leader_keeps_the_room_that_the_last_one_kept(
    transitions: Transitions, redis: Redis, scheduler: Scheduler, redis_server: RedisServer
) -> None:
    for name in ("one", "two"):
        host(transitions, name, gib=16, slots=4)
        submit(transitions, f"on-{name}", gib=12)
    scheduler.round()
    submit(transitions, "large", gib=16)
    scheduler.round()
    before = read_job(redis, JobId("large"))
    assert before is not None
    assert before.reserved_on is not None
    redis.delete(keys.LEADER)

    second = Scheduler(redis, Broker(make_app(redis_server.url)), load_settings())
    second.round()

    after = read_job(redis, JobId("large"))
    assert after is not None
    assert after.reserved_on == before.reserved_on


def test_a_reservation_ends_with_the_job_that_has_it(
    transitions: Transitions, redis: Redis, scheduler: Scheduler
) -> None:
    host(transitions, "one", gib=16, slots=4)
    for job, gib in (("first", 8), ("large", 16), ("small", 4)):
        submit(transitions, job, gib)
    scheduler.round()
    assert state_of(redis, "small") == "queued"

    transitions.cancel(JobId("large"), "me")
    scheduler.round()

    assert state_of(redis, "small") == "placed"
    assert redis.hlen(keys.RESERVED) == 0


def test_why_falls_back_to_the_records_when_no_leader_stands_by_its_snapshot(
    transitions: Transitions, redis: Redis, scheduler: Scheduler, client: Client
) -> None:
    host(transitions, "one", gib=16, slots=1)
    for job in ("first", "next"):
        submit(transitions, job, gib=8)
    scheduler.round()
    snapshot = read_snapshot(redis)
    assert snapshot is not None
    assert (snapshot.queued, len(snapshot.rooms)) == (1, 1)
    by_snapshot = client.why("next").hosts[0].reason
    assert by_snapshot == "busy: 1 of 1 slots in use; starts here when job first ends"

    redis.delete(keys.SNAPSHOT, keys.LEADER)

    why = client.why("next")
    assert "no scheduler is running" in why.summary
    assert why.hosts[0].reason == "busy: 1 of 1 slots in use; fits when job first ends"


def test_a_host_that_is_taken_out_is_told_of_at_once(
    transitions: Transitions, redis: Redis, scheduler: Scheduler, client: Client
) -> None:
    host(transitions, "one", gib=8)
    submit(transitions, "big", gib=16)
    submit(transitions, "fits", gib=8)
    redis.hset(keys.job(JobId("fits")), "state", "placed")  # so that it waits for the second look
    scheduler.round()
    redis.hset(keys.job(JobId("fits")), "state", "queued")

    client.set_draining("one", True)

    assert client.why("fits").hosts[0].reason == "draining: it takes nothing new"


def test_what_a_host_reports_as_available_is_not_given_out_twice(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions, "a", gib=3)
    host(transitions, "one", available_bytes=5 * GIB)
    leader = transitions.lead("me", 60)[1]

    transitions.place(Placement(JobId("a"), HostId("one"), 3 * GIB), leader, WINDOW)

    assert fleet.read_rooms(redis, 15.0)[0].free_bytes == 2 * GIB


def test_a_lesson_that_cannot_be_understood_is_left_out(redis: Redis) -> None:
    good = Lesson(memory_factor=1.1, flops_per_second=1e12, samples=3)
    key = LessonKey("llama", "lora", "Apple M3 Max", "0.32.4")
    redis.hset(keys.LESSONS, key.field, good.model_dump_json())
    redis.hset(keys.LESSONS, "two|parts", good.model_dump_json())
    redis.hset(keys.LESSONS, "a|b|c|d", json.dumps({"memory_factor": "nan"}))

    assert read_lessons(redis) == {key: good}


def test_a_job_that_the_script_cannot_place_does_not_take_the_turn_of_others_for_ever(
    transitions: Transitions, redis: Redis, scheduler: Scheduler
) -> None:
    host(transitions, "one", slots=1)
    submit(transitions, "bad")
    submit(transitions, "good")
    redis.hset(keys.job(JobId("bad")), "token", str((1 << 63) - 1))  # it cannot rise

    scheduler.round()
    scheduler.round()

    assert (state_of(redis, "bad"), state_of(redis, "good")) == ("queued", "placed")


def test_when_a_job_ends_is_believed_for_a_few_seconds_and_counted_down(
    transitions: Transitions, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(transitions, "a")
    host(transitions, "one")
    leader = transitions.lead("me", 60)[1]
    transitions.place(Placement(JobId("a"), HostId("one"), GIB, seconds=500), leader, WINDOW)
    rooms = fleet.Rooms(redis, 15.0)
    assert rooms.read()[0].running[0].seconds_left == pytest.approx(500, abs=1)

    hold = run(transitions, redis, "a")
    transitions.report(hold, Report(JobProgress(seconds_left=100)))
    assert rooms.read()[0].running[0].seconds_left == pytest.approx(100, abs=1)

    transitions.report(hold, Report(JobProgress(seconds_left=50)))
    now = fleet.redis_now(redis)
    monkeypatch.setattr(fleet, "redis_now", lambda redis: now + 4)
    assert rooms.read()[0].running[0].seconds_left == pytest.approx(96, abs=1)
    monkeypatch.setattr(fleet, "redis_now", lambda redis: now + 6)
    assert rooms.read()[0].running[0].seconds_left == pytest.approx(50, abs=1)
