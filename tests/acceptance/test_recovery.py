"""What is promised when things die, stand still or are said twice: real processes, real signals."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter

import pytest

from graft_scheduler import keys
from graft_scheduler.broker import Broker, make_app
from graft_scheduler.client import Client
from graft_scheduler.demand import Demand, Request
from graft_scheduler.jobs import CountJob
from graft_scheduler.leader import Scheduler
from graft_scheduler.redis_connection import connect
from graft_scheduler.states import HostId, JobId, JobState, Token
from graft_scheduler.transitions import Transitions
from tests.services import Fleet, Service, eventually, has_left

pytestmark = pytest.mark.processes

LONG = CountJob(steps=100_000, step_seconds=0.05)


def count_events(client: Client, job: str) -> Counter[str]:
    return Counter(event.name for event in client.events(job))


def wait_running(client: Client, job: str, *, beyond_token: int = 0) -> None:
    """Until the job runs and has a checkpoint that another host can use."""
    eventually(
        lambda: (r := client.get(job)).state is JobState.RUNNING and r.token > beyond_token and r.resume
    )


def seconds_between(client: Client, job: str, before: str, after: str) -> float:
    """On Redis' clock, between two events of a job."""
    at = {event.name: event.at for event in client.events(job)}
    return at[after] - at[before]


def start(fleet: Fleet, *workers: str) -> tuple[Client, list[Service]]:
    fleet.start_scheduler()
    started = [fleet.start_worker(name) for name in workers]
    fleet.wait_for_hosts(len(workers))
    return fleet.client(), started


def by_host(services: list[Service], client: Client, job: str) -> tuple[Service, Service]:
    """The worker that runs the job, and the other one."""
    running = client.get(job).host_name
    one, other = services
    return (one, other) if one.name == f"worker-{running}" else (other, one)


def test_a_message_said_twice_is_one_run(fleet: Fleet) -> None:
    client, _ = start(fleet, "one")
    handle = client.submit(CountJob(steps=20))
    eventually(lambda: client.get(handle.id).state is JobState.RUNNING)
    record = client.get(handle.id)
    assert record.assignment is not None
    broker = Broker(make_app(fleet.redis.url))
    for _ in range(3):
        broker.nudge(handle.id, record.token, record.assignment.hosts[0], "count", "me")

    handle.wait(30)
    after = client.submit(CountJob(steps=1)).wait(30)  # the doubled messages are behind us now

    assert after.state is JobState.COMPLETED
    assert count_events(client, handle.id)["running"] == 1
    assert count_events(client, handle.id)["completed"] == 1


def test_nothing_of_a_running_job_is_left_for_celery_to_deliver_again(fleet: Fleet) -> None:
    client, _ = start(fleet, "one")
    job = client.submit(LONG).id
    wait_running(client, job)
    assignment = client.get(job).assignment
    assert assignment is not None

    with connect(fleet.redis.url) as redis:
        eventually(lambda: redis.hlen("unacked") == 0, 5, "acknowledged before the work")
        assert redis.llen(keys.host_queue(assignment.hosts[0])) == 0
        assert redis.keys("celery-task-meta-*") == []


class LossyBroker(Broker):
    """Loses its first message."""

    lost = 0

    def nudge(self, job_id: JobId, token: Token, host_id: HostId, kind: str, person: str) -> None:
        if self.lost:
            super().nudge(job_id, token, host_id, kind, person)
        else:
            self.lost = token


def test_a_message_that_is_lost_is_sent_again_within_15_seconds(fleet: Fleet) -> None:
    fleet.start_worker("one")
    fleet.wait_for_hosts(1)
    client, stop = fleet.client(), threading.Event()
    broker = LossyBroker(make_app(fleet.redis.url))
    scheduler = Scheduler(connect(fleet.redis.url), broker, client.settings)
    thread = threading.Thread(target=scheduler.run, args=(stop,))
    thread.start()
    try:
        record = client.submit(CountJob(steps=1)).wait(15)
    finally:
        stop.set()
        thread.join()

    assert broker.lost == 1
    assert record.token == 2


def test_when_a_worker_is_killed_its_job_goes_on_elsewhere_from_its_checkpoint(fleet: Fleet) -> None:
    client, workers = start(fleet, "one", "two")
    job = client.submit(CountJob(steps=40)).id
    wait_running(client, job)
    victim, _ = by_host(workers, client, job)
    (runner,) = victim.runners()

    victim.kill()
    eventually(lambda: has_left(runner), 1, "the runner of a killed worker leaves")
    wait_running(client, job, beyond_token=1)
    record = client.wait(job, 30)

    assert record.state is JobState.COMPLETED
    assert (record.token, record.charged) == (2, 0)
    assert count_events(client, job)["lost"] == 1
    last_word = max(
        event.at for event in client.events(job) if event.name == "checkpoint" and event.token == 1
    )
    lost_at = next(event.at for event in client.events(job) if event.name == "lost")
    assert lost_at - last_word < fleet.lease_seconds + 3  # one lease, and a round of the scheduler
    first_steps = [event.data["first_step"] for event in client.events(job) if event.name == "planned"]
    assert first_steps[0] == 0
    assert first_steps[1] > 0
    assert count_events(client, job)["completed"] == 1


def test_a_worker_that_stood_still_past_its_lease_writes_nothing(fleet: Fleet) -> None:
    client, workers = start(fleet, "one", "two")
    job = client.submit(LONG).id
    wait_running(client, job)
    victim, _ = by_host(workers, client, job)
    (runner,) = victim.runners()

    victim.signal(signal.SIGSTOP)
    eventually(lambda: has_left(runner), 15)
    wait_running(client, job, beyond_token=1)
    victim.signal(signal.SIGCONT)
    eventually(lambda: "was taken away" in victim.log(), what="the old attempt noticed")

    events = client.events(job)
    lost_at = next(index for index, event in enumerate(events) if event.name == "lost")
    assert all(event.token != 1 for event in events[lost_at + 1 :])
    assert client.get(job).token == 2
    assert client.get(job).state is JobState.RUNNING


def test_a_killed_redis_loses_nothing_and_running_jobs_go_on(fleet: Fleet) -> None:
    client, _ = start(fleet, "one")
    running = client.submit(CountJob(steps=60)).id
    waiting = [client.submit(CountJob(steps=1)).id for _ in range(5)]
    wait_running(client, running)

    fleet.redis.kill()
    fleet.redis.start()

    assert client.wait(running, 30).token == 1
    assert all(client.wait(job, 60).state is JobState.COMPLETED for job in waiting)


def test_while_redis_is_away_for_three_leases_no_job_restarts(fleet: Fleet) -> None:
    client, _ = start(fleet, "one", "two")
    jobs = [client.submit(CountJob(steps=200, step_seconds=0.1)).id for _ in range(2)]
    for job in jobs:
        wait_running(client, job)

    fleet.redis.kill()
    time.sleep(3 * fleet.lease_seconds)
    fleet.redis.start()

    for job in jobs:
        record = client.wait(job, 60)
        assert (record.state, record.token, record.lost) == (JobState.COMPLETED, 1, 0)


def test_a_redis_that_hangs_for_three_leases_restarts_no_job_and_stalls_none(fleet: Fleet) -> None:
    client, _ = start(fleet, "one")
    job = client.submit(CountJob(steps=250)).id
    wait_running(client, job)
    steps = fleet.attempt_dir("one", job, 1) / "steps.log"
    assert fleet.redis.process is not None

    fleet.redis.process.send_signal(signal.SIGSTOP)
    time.sleep(3 * fleet.lease_seconds)
    before = len(steps.read_text().splitlines())
    eventually(lambda: len(steps.read_text().splitlines()) > before + 5, 5, "it trains on")
    fleet.redis.process.send_signal(signal.SIGCONT)

    record = client.wait(job, 60)
    assert (record.state, record.token, record.lost) == (JobState.COMPLETED, 1, 0)


def test_records_that_nobody_can_read_stop_neither_queue_nor_listing(fleet: Fleet) -> None:
    client, _ = start(fleet, "one")
    with connect(fleet.redis.url) as redis:
        transitions = Transitions(redis)
        for service in fleet.services:  # lest one of them reads a record before it is spoiled
            service.signal(signal.SIGSTOP)
        store_id = client.store().id
        for number, name in enumerate(("badsize", "badspec"), start=1):
            request = Request(demands={"cpu": Demand.of(number)}, store_id=store_id)
            transitions.submit(JobId(name), CountJob(), request)
        redis.hset(keys.job(JobId("badspec")), "spec", '{"kind": "count", "version": 2}')
        group = str(redis.hget(keys.job(JobId("badsize")), "grouped")).partition(":")[0]
        redis.hset(keys.GROUP_REQUESTS, group, '["{}", "", "", "", ""]')
        for service in fleet.services:
            service.signal(signal.SIGCONT)

        assert client.submit(CountJob(steps=1)).wait(30).state is JobState.COMPLETED
        eventually(lambda: redis.hget(keys.job(JobId("badspec")), "state") == "failed")
        assert "badspec" not in [record.id for record in client.jobs()]
        assert redis.hget(keys.job(JobId("badsize")), "state") == "queued"


def test_a_second_scheduler_leads_within_ten_seconds_of_the_firsts_death(fleet: Fleet) -> None:
    client, _ = start(fleet, "one")
    leader = fleet.services[0]
    fleet.start_scheduler("second")
    eventually(
        lambda: "standing by" in fleet.services[-1].log() or "scheduler on" in fleet.services[-1].log()
    )
    first = client.leader()

    leader.kill()

    eventually(lambda: client.leader() not in {None, first}, 10, "another leader")
    assert client.submit(CountJob(steps=1)).wait(20).state is JobState.COMPLETED


def test_a_leader_that_stood_still_stands_by_when_it_wakes(fleet: Fleet) -> None:
    client, _ = start(fleet, "one")
    stalled = fleet.services[0]
    first = client.leader()
    fleet.start_scheduler("second")

    stalled.signal(signal.SIGSTOP)
    eventually(lambda: client.leader() not in {None, first}, 15, "another leader")
    jobs = [client.submit(CountJob(steps=5)).id for _ in range(4)]
    stalled.signal(signal.SIGCONT)

    for job in jobs:
        assert client.wait(job, 30).token == 1
    eventually(lambda: "standing by" in stalled.log())


def test_a_cancel_reaches_a_running_job_within_two_seconds(fleet: Fleet) -> None:
    client, (worker,) = start(fleet, "one")
    job = client.submit(LONG).id
    wait_running(client, job)
    (runner,) = worker.runners()

    client.cancel(job)
    record = client.wait(job, 10)

    assert seconds_between(client, job, "cancelling", "cancelled") < 2.5
    assert record.state is JobState.CANCELLED
    assert record.resume is not None
    assert has_left(runner)


def test_a_worker_told_to_stop_gives_its_job_back(fleet: Fleet) -> None:
    client, workers = start(fleet, "one", "two")
    job = client.submit(LONG).id
    wait_running(client, job)
    leaving, _ = by_host(workers, client, job)

    assert leaving.terminate(15) == 0
    wait_running(client, job, beyond_token=1)

    record = client.get(job)
    assert (record.lost, record.charged) == (0, 0)
    assert count_events(client, job)["yielded"] == 1


def test_a_worker_that_comes_back_does_not_wait_for_its_old_lease(fleet: Fleet) -> None:
    fleet.lease_seconds = 60
    client, (worker,) = start(fleet, "one")
    job = client.submit(CountJob(steps=30)).id
    wait_running(client, job)

    worker.kill()
    fleet.start_worker("one")

    assert client.wait(job, 25).token == 2


def test_a_result_that_could_not_be_handed_over_is_not_computed_again(fleet: Fleet) -> None:
    client, (worker,) = start(fleet, "one")
    job = client.submit(CountJob(steps=100)).id
    done = fleet.attempt_dir("one", job, 1) / "DONE"
    wait_running(client, job)
    fleet.redis.kill()
    eventually(done.exists, what="the runner finished without Redis")

    worker.kill()
    fleet.redis.start()
    fleet.start_worker("one")
    record = client.wait(job, 30)

    assert (record.state, record.token) == (JobState.COMPLETED, 2)
    assert not (fleet.attempt_dir("one", job, 2) / "steps.log").exists()


def test_a_runner_that_is_killed_resumes_and_is_not_charged(fleet: Fleet) -> None:
    client, (worker,) = start(fleet, "one")
    job = client.submit(CountJob(steps=40)).id
    wait_running(client, job)

    worker.runners()[0].kill()
    record = client.wait(job, 30)

    assert (record.state, record.memory_failures, record.token) == (JobState.COMPLETED, 1, 2)
    assert record.charged == 0


def test_a_job_that_fits_nowhere_waits_and_says_why(fleet: Fleet) -> None:
    client, _ = start(fleet, "one")
    job = client.submit(CountJob(memory_bytes=1 << 50)).id

    eventually(lambda: client.why(job).never_fits)

    why = client.why(job)
    assert client.get(job).state is JobState.QUEUED
    assert "too small: the job needs 1024 TB" in why.hosts[0].reason


def test_a_draining_host_takes_nothing_new_and_is_named_as_the_reason(fleet: Fleet) -> None:
    client, _ = start(fleet, "one")
    client.set_draining("one", True)
    job = client.submit(CountJob(steps=1)).id

    eventually(lambda: "draining" in client.why(job).hosts[0].reason)
    assert client.get(job).state is JobState.QUEUED
    client.set_draining("one", False)
    assert client.wait(job, 20).state is JobState.COMPLETED
