"""The state machine, on a real Redis: what each transition promises and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from graft_scheduler import fleet, keys
from graft_scheduler.checkpoints import KeptCheckpoint
from graft_scheduler.demand import Demand, Request
from graft_scheduler.errors import Conflict, Fenced, NotFound
from graft_scheduler.jobs import CountJob, Limits
from graft_scheduler.pending import Queue, read_job
from graft_scheduler.records import Failure, Hold, HostInfo, JobProgress, JobRecord, MemorySample, ResumePoint
from graft_scheduler.recovery import MemoryLimit, Recovery
from graft_scheduler.rooms import Placement
from graft_scheduler.states import Digest, FailureClass, HostId, JobId, JobState, Phase, StopReason, Token
from graft_scheduler.transitions import (
    Ending,
    Report,
    Transitions,
    Window,
    ending_after,
    ending_out_of_memory,
)

GIB = 1 << 30
JOB = JobId("job1")
HOST = HostId("host1")
LEASE = 60.0
ALIVE = 15.0
WINDOW = Window(claim_seconds=10.0, alive_seconds=ALIVE)
NONCE = "nonce"
COMPLETED = Ending(JobState.COMPLETED, "completed")
YIELDED = Ending(JobState.QUEUED, "yielded")


def host_info(host: str = HOST, machine: str = "machine1", gib: int = 8, slots: int = 1) -> HostInfo:
    return HostInfo(
        id=HostId(host),
        name=f"name-of-{host}",
        machine_id=machine,
        boot=f"boot-of-{host}",
        store_id="store",
        budget_bytes=gib * GIB,
        machine_bytes=8 * GIB,
        slots=slots,
        backend="cpu",
        device="CPU",
        system="test",
        versions={},
    )


def asks(gib: int | None) -> Request:
    return Request(demands=None if gib is None else {"cpu": Demand.of(gib * GIB)}, store_id="store")


def submit(transitions: Transitions, job: str = JOB, gib: int | None = 1, **fields: object) -> JobId:
    spec = CountJob.model_validate(fields)
    transitions.submit(JobId(job), spec, asks(gib))
    return JobId(job)


def lead(transitions: Transitions) -> str:
    leads, value, _ = transitions.lead("me", 5)
    assert leads
    return value


def decided(job: str = JOB, host: str = HOST, gib: int = 1) -> Placement:
    return Placement(JobId(job), HostId(host), gib * GIB)


def place(transitions: Transitions, job: str = JOB, host: str = HOST, gib: int = 1) -> Token:
    token, why = transitions.place(decided(job, host, gib), lead(transitions), WINDOW)
    assert token is not None, why
    return token


def hold(token: int, job: str = JOB, nonce: str = NONCE) -> Hold:
    return Hold(JobId(job), Token(token), nonce)


def run(transitions: Transitions, job: str = JOB, host: str = HOST) -> Hold:
    """Registered, placed and claimed."""
    transitions.host_beat(host_info(host), 5)
    held = hold(place(transitions, job, host), job)
    assert transitions.claim(held, HostId(host), f"boot-of-{host}", LEASE) is not None
    return held


def record(redis: Redis, job: str = JOB) -> JobRecord:
    fields: Any = redis.hgetall(keys.job(JobId(job)))
    return JobRecord.parse(JobId(job), fields)


def event_names(redis: Redis, job: str = JOB) -> list[str]:
    entries: Any = redis.xrange(keys.job_events(JobId(job)))
    return [fields["name"] for _, fields in entries]


def end_lease(redis: Redis, job: str = JOB) -> None:
    redis.zadd(keys.LEASES, {job: 1})


def test_a_submitted_job_is_queued_with_its_event(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)

    assert record(redis).state is JobState.QUEUED
    assert event_names(redis) == ["submitted"]


def test_an_id_is_accepted_once(transitions: Transitions) -> None:
    submit(transitions)

    with pytest.raises(Conflict):
        submit(transitions, name="another job")


def test_urgent_jobs_queue_before_older_ones(transitions: Transitions, redis: Redis) -> None:
    submit(transitions, "old", priority=5)
    submit(transitions, "urgent", priority=0)
    submit(transitions, "new", priority=5)

    assert redis.zrange(keys.QUEUE, 0, -1) == ["urgent", "old", "new"]


def test_every_placement_raises_the_token(transitions: Transitions) -> None:
    submit(transitions)
    first = run(transitions)
    transitions.finish(first, HOST, YIELDED)

    assert place(transitions) == first.token + 1


def test_only_the_leader_places(transitions: Transitions) -> None:
    submit(transitions)
    transitions.host_beat(host_info(), 5)
    lead(transitions)

    assert transitions.place(decided(), "somebody:1", WINDOW) == (None, "not the leader")


def test_a_stalled_leader_that_wakes_cannot_place(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    transitions.host_beat(host_info(), 5)
    stalled = lead(transitions)
    redis.delete(keys.LEADER)  # its time ran out
    transitions.lead("other", 5)

    assert transitions.place(decided(), stalled, WINDOW)[0] is None


def test_a_leader_that_lost_the_lead_and_took_it_again_has_another_epoch(
    transitions: Transitions, redis: Redis
) -> None:
    before = lead(transitions)
    redis.delete(keys.LEADER)

    assert lead(transitions) != before


def test_a_full_slot_refuses(transitions: Transitions) -> None:
    submit(transitions, "a")
    submit(transitions, "b")
    run(transitions, "a")

    assert transitions.place(decided("b"), lead(transitions), WINDOW) == (None, "no free slot")


def test_memory_of_all_workers_of_a_machine_is_counted_together(transitions: Transitions) -> None:
    for job in "ab":
        submit(transitions, job, gib=5)
    transitions.host_beat(host_info("one"), 5)
    transitions.host_beat(host_info("two"), 5)
    place(transitions, "a", "one", gib=5)

    refused = transitions.place(decided("b", "two", gib=5), lead(transitions), WINDOW)

    assert refused == (None, "not enough memory")


def test_what_was_reserved_is_what_the_leader_decided(transitions: Transitions, redis: Redis) -> None:
    submit(transitions, gib=1)
    transitions.host_beat(host_info(), 5)

    place(transitions, gib=7)

    assert record(redis).reserved_bytes == 7 * GIB
    assert fleet.read_hosts(redis, ALIVE)[0].committed_bytes == 7 * GIB


@pytest.mark.parametrize("field", ["draining", "cordoned"])
def test_a_host_that_takes_nothing_new_refuses(transitions: Transitions, redis: Redis, field: str) -> None:
    submit(transitions)
    transitions.host_beat(host_info(), 5)
    redis.hset(keys.host(HOST), field, "1")

    assert transitions.place(decided(), lead(transitions), WINDOW)[0] is None


def test_a_host_that_does_not_report_refuses(transitions: Transitions) -> None:
    submit(transitions)
    transitions.host_beat(host_info(), 5)
    transitions.host_away(HOST, 5)

    assert transitions.place(decided(), lead(transitions), WINDOW) == (None, "host is away")


def test_an_assignment_is_claimed_once(transitions: Transitions) -> None:
    submit(transitions)
    held = run(transitions)

    assert transitions.claim(hold(held.token, nonce="another"), HOST, "boot", LEASE) is None


def test_a_claim_whose_answer_was_lost_can_be_said_again(transitions: Transitions) -> None:
    submit(transitions)
    held = run(transitions)

    again = transitions.claim(held, HOST, "boot", LEASE)

    assert again is not None
    assert again.state is JobState.RUNNING


def test_a_token_that_redis_forgot_and_gave_again_is_not_enough(transitions: Transitions) -> None:
    submit(transitions)
    held = run(transitions)
    forgotten = hold(held.token, nonce="of a claim before the power cut")

    with pytest.raises(Fenced):
        transitions.beat(forgotten, LEASE)
    with pytest.raises(Fenced):
        transitions.finish(forgotten, HOST, COMPLETED)


def test_a_request_said_again_gets_the_answer_it_had(transitions: Transitions, redis: Redis) -> None:
    spec = CountJob()
    transitions.submit(JOB, spec, asks(None))
    transitions.submit(JOB, spec, asks(None))
    assert redis.zcard(keys.QUEUE) == 1

    arguments = [JOB, "me", "one request", "cancel", "cancelled", "cancelling", ""]
    for _ in range(2):
        assert transitions._run("cancel", arguments, job=JOB) == "queued"
    assert event_names(redis).count("cancelled") == 1


def test_a_host_that_takes_nothing_is_left_alone_for_longer_and_longer(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions)
    rests = []
    for _ in range(4):
        transitions.host_beat(host_info(), 5)
        place(transitions)
        redis.zadd(keys.PLACED, {JOB: 1})
        transitions.expire(JOB, HOST)
        rests.append(fleet.read_hosts(redis, ALIVE)[0].rest_seconds)

    assert rests == pytest.approx([0, 4, 8, 16], abs=1)


def test_a_store_that_is_away_lets_a_job_wait_and_does_not_charge_it(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions)
    held = run(transitions)

    state = transitions.finish(held, HOST, failing(FailureClass.STORE, record(redis)))

    waiting = read_job(redis, JOB)
    assert waiting is not None
    assert state is JobState.QUEUED
    assert waiting.pause_seconds == pytest.approx(10, abs=1)
    assert waiting.avoid == HOST
    assert (record(redis).charged, record(redis).lost, record(redis).stalled) == (0, 0, 1)


def test_getting_further_clears_what_was_lost_before(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    run(transitions)
    end_lease(redis)
    transitions.expire(JOB, HOST)
    held = run(transitions)
    assert record(redis).lost == 1

    transitions.report(held, Report(checkpoints=[KeptCheckpoint(digest=Digest("sha256:0"), step=1)]))

    assert record(redis).lost == 0


def test_a_clock_that_was_set_back_does_not_lengthen_leases(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    run(transitions)
    before = redis.zscore(keys.LEASES, JOB)
    now_ms = fleet.redis_now(redis) * 1000
    redis.set(keys.CLOCK, int(now_ms + 3_600_000))  # the last look was in what is now the future

    transitions.lead("me", 5)

    after = redis.zscore(keys.LEASES, JOB)
    assert before is not None
    assert after is not None
    assert after == pytest.approx(before - 3_600_000, abs=1000)


def test_a_record_that_cannot_be_understood_is_left_out_of_placement(
    transitions: Transitions, redis: Redis
) -> None:
    for number, broken in enumerate(['{"demands": {"cpu": null}}', '{"store_id": 1}', "[1]", "not json"]):
        submit(transitions, f"bad{number}", gib=number + 2)
        group = str(redis.hget(keys.job(JobId(f"bad{number}")), "grouped")).partition(":")[0]
        redis.hset(keys.GROUP_REQUESTS, group, json.dumps([broken, "", "", "", ""]))
    submit(transitions, "good")

    found = [job.id for group in Queue(redis).read() for job in group.jobs]

    assert found == ["good"]


def test_another_host_cannot_claim(transitions: Transitions) -> None:
    submit(transitions)
    transitions.host_beat(host_info(), 5)
    token = place(transitions)

    assert transitions.claim(hold(token), HostId("other"), "boot", LEASE) is None


def test_a_beat_goes_on_until_a_cancel_is_asked_for(transitions: Transitions) -> None:
    submit(transitions)
    token = run(transitions)
    assert transitions.beat(token, LEASE) is None

    transitions.cancel(JOB, "me")

    assert transitions.beat(token, LEASE) is StopReason.CANCEL


def test_an_unclaimed_placement_goes_back_to_its_place_in_the_queue(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions, "first")
    submit(transitions, "second")
    transitions.host_beat(host_info(), 5)
    place(transitions, "first")
    redis.zadd(keys.PLACED, {"first": 1})

    assert transitions.expire(JobId("first"), HOST) is JobState.QUEUED
    assert redis.zrange(keys.QUEUE, 0, -1) == ["first", "second"]
    assert fleet.read_commitments(redis) == []
    assert redis.hget(keys.host(HOST), "missed_claims") == "1"


def test_a_lost_lease_queues_the_job_again_uncharged(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    run(transitions)
    end_lease(redis)

    assert transitions.expire(JOB, HOST) is JobState.QUEUED
    assert (record(redis).charged, record(redis).lost) == (0, 1)


def test_a_live_lease_does_not_expire(transitions: Transitions) -> None:
    submit(transitions)
    run(transitions)

    assert transitions.expire(JOB, HOST) is None


def test_a_job_that_loses_three_hosts_fails(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    for _ in range(3):
        run(transitions)
        end_lease(redis)
        last = transitions.expire(JOB, HOST)

    assert last is JobState.FAILED
    failure = record(redis).failure
    assert failure is not None
    assert failure.failure is FailureClass.HOST


def test_a_cancelled_job_whose_host_is_lost_ends_cancelled(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    run(transitions)
    transitions.cancel(JOB, "me")
    end_lease(redis)

    assert transitions.expire(JOB, HOST) is JobState.CANCELLED


def test_after_a_gap_leases_are_given_the_time_back_before_anything_expires(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions)
    run(transitions)
    end_lease(redis)
    now_ms = fleet.redis_now(redis) * 1000
    redis.set(keys.CLOCK, int(now_ms - 200_000))  # nobody has looked for 200 s

    assert transitions.expire(JOB, HOST) is None
    assert transitions.lead("me", 5)[2] == pytest.approx(200, abs=1)
    redis.zadd(keys.LEASES, {JOB: now_ms - 190_000})
    redis.set(keys.CLOCK, int(now_ms - 200_000))
    transitions.lead("me", 5)
    assert transitions.expire(JOB, HOST) is None


@pytest.mark.parametrize("write", ["beat", "report", "finish"])
def test_a_worker_that_lost_its_lease_cannot_write(
    transitions: Transitions, redis: Redis, write: str
) -> None:
    submit(transitions)
    old = run(transitions)
    end_lease(redis)
    transitions.expire(JOB, HOST)
    run(transitions)
    before = record(redis)
    writes: dict[str, Callable[[], object]] = {
        "beat": lambda: transitions.beat(old, LEASE),
        "report": lambda: transitions.report(old, Report(JobProgress(step=99), lines=["x"])),
        "finish": lambda: transitions.finish(old, HOST, COMPLETED),
    }

    with pytest.raises(Fenced):
        writes[write]()

    assert record(redis) == before


def test_a_report_is_written_whole(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    token = run(transitions)
    checkpoint = KeptCheckpoint(digest=Digest("sha256:0"), step=3)

    said = [("checkpoint", {"step": 3})]
    transitions.report(token, Report(JobProgress(step=3), [checkpoint], [], said, ["a line", "ä"]))

    now = record(redis)
    assert now.progress is not None
    assert (now.progress.step, now.resume) == (3, ResumePoint(digest=Digest("sha256:0"), step=3))
    assert event_names(redis)[-1] == "checkpoint"
    lines: Any = redis.xrange(keys.job_log(JOB))
    assert [fields["line"] for _, fields in lines] == ["a line", "ä"]


def test_finishing_twice_is_finishing_once(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    token = run(transitions)

    assert transitions.finish(token, HOST, COMPLETED) is JobState.COMPLETED
    assert transitions.finish(token, HOST, COMPLETED) is JobState.COMPLETED
    assert event_names(redis).count("completed") == 1


def test_giving_a_job_back_twice_queues_it_once(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    token = run(transitions)

    assert transitions.finish(token, HOST, YIELDED) is JobState.QUEUED
    assert transitions.finish(token, HOST, YIELDED) is JobState.QUEUED
    assert redis.zcard(keys.QUEUE) == 1


def test_a_job_given_back_after_a_cancel_is_cancelled(transitions: Transitions) -> None:
    submit(transitions)
    token = run(transitions)
    transitions.cancel(JOB, "me")

    assert transitions.finish(token, HOST, YIELDED) is JobState.CANCELLED


def failing(failure: FailureClass, record: JobRecord, *, blames_host: bool = False) -> Ending:
    return ending_after(Failure(failure=failure, text="it broke"), record, blames_host=blames_host)


def test_a_job_that_fails_by_itself_is_tried_as_often_as_it_says(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions, limits=Limits(attempts=2))
    states = []
    for _ in range(2):
        token = run(transitions)
        states.append(transitions.finish(token, HOST, failing(FailureClass.INTERNAL, record(redis))))

    assert states == [JobState.QUEUED, JobState.FAILED]
    assert record(redis).charged == 2


def out_of_memory(recovery: Recovery) -> Ending:
    return ending_out_of_memory(Failure(failure=FailureClass.MEMORY, text="too much"), recovery)


def test_running_out_of_memory_is_not_charged_and_its_lesson_is_kept(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions, limits=Limits(attempts=1))
    limit = MemoryLimit(micro_batch_tokens=512, host=HOST, host_bytes=8 * GIB, failures=1)
    held = run(transitions)

    state = transitions.finish(held, HOST, out_of_memory(Recovery(limit)))

    found = record(redis)
    assert state is JobState.QUEUED
    assert (found.charged, found.memory_failures) == (0, 1)
    assert (found.memory_limit, found.above_bytes) == (limit, None)


def test_a_job_that_needs_a_larger_host_says_above_what(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    held = run(transitions)

    transitions.finish(held, HOST, out_of_memory(Recovery(MemoryLimit(), above_bytes=600 * GIB)))

    assert record(redis).above_bytes == 600 * GIB
    assert record(redis).as_json()["above_bytes"] == 600 * GIB


def test_a_retry_keeps_the_cut_that_was_learned_and_tries_every_host_again(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions)
    learned = MemoryLimit(micro_batch_tokens=512, host=HOST, host_bytes=600 * GIB, failures=3)
    ending = out_of_memory(Recovery(learned, above_bytes=8 * GIB, is_retried=False))
    assert transitions.finish(run(transitions), HOST, ending) is JobState.FAILED

    transitions.retry(JOB, "me")

    found = record(redis)
    assert (found.memory_failures, found.above_bytes) == (0, None)
    assert found.memory_limit == MemoryLimit(micro_batch_tokens=512, host=HOST)


def test_what_an_attempt_took_of_memory_stays_in_the_record(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    samples = (
        MemorySample(seconds=1.0, phase=Phase.PREPARING, footprint_bytes=5),
        MemorySample(
            seconds=2.5, phase=Phase.TRAINING, active_bytes=7, cache_bytes=1, footprint_bytes=9 * GIB
        ),
    )

    transitions.finish(run(transitions), HOST, replace(COMPLETED, memory=samples))

    assert record(redis).memory == samples


def test_a_host_that_may_use_more_wakes_the_scheduler(transitions: Transitions, redis: Redis) -> None:
    transitions.host_beat(host_info(gib=4), 5)
    redis.delete(keys.WAKE)

    transitions.host_beat(host_info(gib=4), 5)
    assert not redis.exists(keys.WAKE)
    transitions.host_beat(host_info(gib=3).model_copy(update={"available_bytes": 2 * GIB}), 5)
    assert not redis.exists(keys.WAKE)
    assert redis.hmget(keys.host(HOST), "budget_bytes", "available_bytes") == [str(3 * GIB), str(2 * GIB)]
    transitions.host_beat(host_info(gib=4), 5)
    assert redis.exists(keys.WAKE)


@pytest.mark.parametrize(
    "failure", [FailureClass.CONFIG, FailureClass.DATA, FailureClass.DIVERGED, FailureClass.TIMEOUT]
)
def test_what_would_fail_again_is_not_tried_again(
    transitions: Transitions, redis: Redis, failure: FailureClass
) -> None:
    submit(transitions)
    token = run(transitions)

    assert transitions.finish(token, HOST, failing(failure, record(redis))) is JobState.FAILED


def test_three_different_jobs_that_fail_cordon_the_host(transitions: Transitions, redis: Redis) -> None:
    for job in ("a", "a", "b", "c"):
        if not redis.exists(keys.job(JobId(job))):
            submit(transitions, job)
        assert redis.hget(keys.host(HOST), "cordoned") is None
        token = run(transitions, job)
        ending = failing(FailureClass.INTERNAL, record(redis, job), blames_host=True)
        transitions.finish(token, HOST, ending)

    assert redis.hget(keys.host(HOST), "cordoned") == "1"


def test_a_success_clears_the_hosts_name(transitions: Transitions, redis: Redis) -> None:
    for job in ("a", "b"):
        submit(transitions, job)
    token = run(transitions, "a")
    blamed = failing(FailureClass.INTERNAL, record(redis, "a"), blames_host=True)
    transitions.finish(token, HOST, blamed)
    assert fleet.read_hosts(redis, ALIVE)[0].faults == 1
    token = run(transitions, "b")
    transitions.finish(token, HOST, COMPLETED)

    assert fleet.read_hosts(redis, ALIVE)[0].faults == 0


def test_cancelling_a_waiting_job_ends_it_at_once(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)

    transitions.cancel(JOB, "me")

    assert record(redis).state is JobState.CANCELLED
    assert redis.zcard(keys.QUEUE) == 0


def test_a_placed_job_that_was_cancelled_cannot_be_claimed(transitions: Transitions) -> None:
    submit(transitions)
    transitions.host_beat(host_info(), 5)
    token = place(transitions)
    transitions.cancel(JOB, "me")

    assert transitions.claim(hold(token), HOST, "boot", LEASE) is None


PAUSED = Ending(JobState.PAUSED, "paused")


def test_a_job_that_pauses_holds_no_host_and_goes_on_when_told(
    transitions: Transitions, redis: Redis
) -> None:
    transitions.submit(JobId(JOB), CountJob(), asks(1), pause_step=4)
    held = run(transitions)
    assert record(redis).pause_step == 4
    transitions.report(held, Report(checkpoints=[KeptCheckpoint(digest=Digest("sha256:1"), step=4)]))
    assert transitions.finish(held, HOST, PAUSED) is JobState.PAUSED
    assert redis.hlen(keys.COMMITTED) == 0
    assert redis.zcard(keys.QUEUE) == redis.zcard(keys.GROUPS) == redis.zcard(keys.LEASES) == 0
    assert transitions.resume(JOB, "study", 8) is JobState.PAUSED
    after = record(redis)
    assert (after.state, after.pause_step, after.charged) == (JobState.QUEUED, 8, 0)
    assert after.resume is not None
    assert redis.zcard(keys.PAUSED) == 0
    assert run(transitions).token == held.token + 1


def test_a_waiting_job_pauses_at_once_and_only_once(transitions: Transitions, redis: Redis) -> None:
    submit(transitions)
    assert transitions.pause(JOB, "me") is JobState.QUEUED
    assert transitions.pause(JOB, "me") is JobState.PAUSED
    assert event_names(redis) == ["submitted", "paused"]
    assert Queue(redis).read() == []
    transitions.resume(JOB, "me")
    assert record(redis).pause_step is None
    assert len(Queue(redis).read()) == 1


@pytest.mark.parametrize(
    ("asked", "state"),
    [("pause", JobState.PAUSED), ("prune", JobState.CANCELLED), ("cancel", JobState.CANCELLED)],
)
@pytest.mark.parametrize("is_lost", [False, True])
def test_what_a_running_job_was_asked_decides_what_becomes_of_it(
    transitions: Transitions, redis: Redis, asked: str, state: JobState, is_lost: bool
) -> None:
    submit(transitions)
    held = run(transitions)
    assert getattr(transitions, asked)(JOB, "me") is JobState.RUNNING
    assert transitions.beat(held, LEASE) is StopReason(asked)
    if is_lost:
        end_lease(redis)
        assert transitions.expire(JobId(JOB), HOST) is state
    else:
        assert transitions.finish(held, HOST, YIELDED) is state
    assert record(redis).state is state
    assert redis.hlen(keys.COMMITTED) == 0


def test_a_pause_that_is_taken_back_queues_the_job_again(transitions: Transitions) -> None:
    submit(transitions)
    held = run(transitions)
    transitions.pause(JOB, "me")
    assert transitions.resume(JOB, "me") is JobState.RUNNING
    assert transitions.beat(held, LEASE) is StopReason.YIELD
    assert transitions.finish(held, HOST, PAUSED) is JobState.QUEUED


def test_a_cancel_is_not_turned_into_a_pause(transitions: Transitions) -> None:
    submit(transitions)
    held = run(transitions)
    transitions.cancel(JOB, "me")
    transitions.pause(JOB, "me")
    assert transitions.beat(held, LEASE) is StopReason.CANCEL


def test_a_paused_job_can_be_cancelled_and_pruned(transitions: Transitions, redis: Redis) -> None:
    for job, end in (("job1", transitions.cancel), ("job2", transitions.prune)):
        submit(transitions, job)
        transitions.pause(JobId(job), "me")
        assert end(JobId(job), "me") is JobState.PAUSED
        assert record(redis, job).state is JobState.CANCELLED
    assert event_names(redis, "job2")[-1] == "pruned"
    assert redis.zcard(keys.PAUSED) == 0


def test_cancelling_an_ended_job_is_a_conflict(transitions: Transitions) -> None:
    submit(transitions)
    transitions.cancel(JOB, "me")

    with pytest.raises(Conflict, match="cancelled already"):
        transitions.cancel(JOB, "me")


def test_cancelling_nothing_says_so(transitions: Transitions) -> None:
    with pytest.raises(NotFound):
        transitions.cancel(JobId("nothing"), "me")


def test_a_retried_job_goes_on_from_its_checkpoint_with_clean_counts(
    transitions: Transitions, redis: Redis
) -> None:
    submit(transitions, limits=Limits(attempts=1))
    token = run(transitions)
    checkpoint = KeptCheckpoint(digest=Digest("sha256:0"), step=3)
    transitions.report(token, Report(checkpoints=[checkpoint]))
    transitions.finish(token, HOST, failing(FailureClass.INTERNAL, record(redis)))

    transitions.retry(JOB, "me")

    now = record(redis)
    assert (now.state, now.charged, now.failure) == (JobState.QUEUED, 0, None)
    assert now.resume == ResumePoint(digest=Digest("sha256:0"), step=3)
    assert redis.ttl(keys.job(JOB)) == -1


def test_only_ended_jobs_are_retried(transitions: Transitions) -> None:
    submit(transitions)

    with pytest.raises(Conflict):
        transitions.retry(JOB, "me")


def test_a_worker_that_starts_again_lets_go_of_what_it_held(transitions: Transitions) -> None:
    submit(transitions)
    run(transitions)

    assert transitions.expire(JOB, HOST, restarted_boot="boot-of-host1") is None
    assert transitions.expire(JOB, HOST, restarted_boot="a later boot") is JobState.QUEUED


STEPS = ["place", "claim", "beat", "finish", "give back", "fail", "end lease", "expire", "cancel", "retry"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(["a", "b"])), max_size=25))
def test_whatever_happens_a_job_is_in_one_place_and_memory_is_accounted_for(
    redis: Redis, transitions: Transitions, steps: list[tuple[str, str]]
) -> None:
    redis.flushall()
    transitions.host_beat(host_info(slots=2), 5)
    for job in "ab":
        submit(transitions, job)
    tokens = {"a": Token(0), "b": Token(0)}

    for step, job in steps:
        take_step(redis, transitions, step, JobId(job), tokens)

        committed = {one.job for one in fleet.read_commitments(redis)}
        for each in (JobId("a"), JobId("b")):
            check_consistency(redis, each, committed)


def take_step(
    redis: Redis, transitions: Transitions, step: str, job: JobId, tokens: dict[str, Token]
) -> None:
    token = hold(tokens[job], job)
    try:
        match step:
            case "place":
                placed, _ = transitions.place(decided(job), lead(transitions), WINDOW)
                tokens[job] = placed or tokens[job]
            case "claim":
                transitions.claim(token, HOST, "boot", LEASE)
            case "beat":
                transitions.beat(token, LEASE)
            case "finish":
                transitions.finish(token, HOST, COMPLETED)
            case "give back":
                transitions.finish(token, HOST, YIELDED)
            case "fail":
                transitions.finish(token, HOST, failing(FailureClass.INTERNAL, record(redis, job)))
            case "end lease":
                redis.zadd(keys.LEASES, {job: 1}, xx=True)
                redis.zadd(keys.PLACED, {job: 1}, xx=True)
            case "expire":
                transitions.expire(job, HOST)
            case "cancel":
                transitions.cancel(job, "me")
            case _:
                transitions.retry(job, "me")
    except (Fenced, Conflict):
        pass


def check_consistency(redis: Redis, job: JobId, committed: set[JobId]) -> None:
    state = record(redis, job).state
    homes = {
        JobState.QUEUED: redis.zscore(keys.QUEUE, job) is not None,
        JobState.PLACED: redis.zscore(keys.PLACED, job) is not None,
        JobState.RUNNING: redis.zscore(keys.LEASES, job) is not None,
    }
    assert [home for home, is_there in homes.items() if is_there] == ([state] if state in homes else [])
    assert (job in committed) == (state in {JobState.PLACED, JobState.RUNNING})


def test_a_scheduler_that_does_not_lead_any_more_moves_no_trial(
    transitions: Transitions, redis: Redis
) -> None:
    leader = lead(transitions)
    submit(transitions)
    redis.set(keys.LEADER, "another:9", ex=60)
    assert transitions.pause(JOB, "study", leader) is JobState.QUEUED
    assert transitions.prune(JOB, "study", leader) is JobState.QUEUED
    assert record(redis).state is JobState.QUEUED
    transitions.pause(JOB, "me")
    assert transitions.resume(JOB, "study", None, leader) is JobState.PAUSED
    assert record(redis).state is JobState.PAUSED
    with pytest.raises(Fenced):
        transitions.submit(JobId("job2"), CountJob(), asks(1), leader=leader)
    assert not redis.exists(keys.job(JobId("job2")))
