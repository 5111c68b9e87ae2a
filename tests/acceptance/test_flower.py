"""What Flower shows of the queue, asked over HTTP as a browser would."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from graft_scheduler.jobs import CountJob, Limits
from graft_scheduler.redis_connection import connect
from graft_scheduler.states import JobState
from tests.services import Fleet, eventually, free_port

pytestmark = pytest.mark.processes

PASSWORD = "a-password"


@dataclass
class Flower:
    """A running Flower and the way to ask it."""

    port: int

    def get(self, path: str, password: str | None = PASSWORD, method: str = "GET") -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        if password is not None:
            token = base64.b64encode(f"graft:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.read().decode())

    def status(self, path: str, password: str | None = PASSWORD, method: str = "GET") -> int:
        try:
            self.get(path, password, method)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def attempts(self) -> dict[str, dict[str, Any]]:
        return dict(json.loads(self.get("/api/tasks")))

    def wait_for(self, attempt: str, state: str) -> None:
        """Until Flower shows the attempt in that state."""
        shown: dict[str, Any] = {}

        def is_shown() -> bool:
            with suppress(OSError):
                shown.update(self.attempts().get(attempt) or {})
            return shown.get("state") == state

        try:
            eventually(is_shown)
        except AssertionError as error:
            raise AssertionError(f"{attempt} is not shown as {state}: {shown}") from error


@pytest.fixture
def flower(fleet: Fleet) -> Flower:
    port = free_port()
    fleet.start_flower(port, PASSWORD)
    shown = Flower(port)

    def answers() -> bool:
        with suppress(OSError):
            return shown.status("/healthcheck", None) == 200
        return False

    eventually(answers, what="Flower answers")
    with connect(fleet.redis.url) as redis:
        eventually(lambda: redis.pubsub_numpat() or redis.pubsub_channels("*celeryev*"), what="it listens")
    return shown


def test_a_job_is_pending_from_its_submission_and_then_what_became_of_it(
    fleet: Fleet, flower: Flower
) -> None:
    client = fleet.client()
    done, failing, stopped = (
        client.submit(CountJob(steps=1)).id,
        client.submit(CountJob(steps=3, fail_at=1, limits=Limits(attempts=1))).id,
        client.submit(CountJob(steps=100_000)).id,
    )
    dropped = client.submit(CountJob(steps=1)).id
    for job in (done, failing, stopped, dropped):
        flower.wait_for(f"{job}-1", "PENDING")
    client.cancel(dropped)
    flower.wait_for(f"{dropped}-1", "REVOKED")

    fleet.start_scheduler()
    fleet.start_worker("one")
    eventually(lambda: client.get(stopped).state is JobState.RUNNING)
    flower.wait_for(f"{stopped}-1", "STARTED")
    client.cancel(stopped)

    flower.wait_for(f"{stopped}-1", "REVOKED")
    flower.wait_for(f"{done}-1", "SUCCESS")
    flower.wait_for(f"{failing}-1", "FAILURE")
    shown = flower.attempts()
    assert shown[f"{done}-1"]["name"] == "graft.count"
    assert shown[f"{done}-1"]["worker"].startswith("one@")
    assert "`fail_at` is 1" in shown[f"{failing}-1"]["exception"]
    assert shown[f"{stopped}-1"]["worker"].startswith("one@")
    assert "nobody" not in flower.get("/workers")


def test_an_attempt_whose_host_was_lost_is_failed_and_the_next_one_pending(
    fleet: Fleet, flower: Flower
) -> None:
    client = fleet.client()
    fleet.start_scheduler()
    worker = fleet.start_worker("one")
    fleet.wait_for_hosts(1)
    job = client.submit(CountJob(steps=100_000)).id
    flower.wait_for(f"{job}-1", "STARTED")
    eventually(lambda: client.get(job).state is JobState.RUNNING, what="claimed, not only begun")

    worker.kill()

    flower.wait_for(f"{job}-1", "FAILURE")
    flower.wait_for(f"{job}-2", "PENDING")
    assert "host was lost" in flower.attempts()[f"{job}-1"]["exception"]


def test_nothing_is_open_without_the_password_or_for_writing(flower: Flower) -> None:
    assert flower.status("/tasks", None) == 401
    assert flower.status("/tasks", "wrong") == 401
    assert flower.status("/tasks") == 200
    assert flower.status("/api/task/async-apply/graft.count", method="POST") in {403, 405}
    assert flower.status("/api/worker/shutdown/any", method="POST") in {403, 404, 405}


def test_attempts_show_ids_and_a_person_and_nothing_else(fleet: Fleet, flower: Flower) -> None:
    client = fleet.client()
    job = client.submit(CountJob(name="secret-project", labels={"token": "hunter2"}, submitter="ada")).id
    flower.wait_for(f"{job}-1", "PENDING")

    shown = json.dumps(flower.attempts())

    assert "ada" in shown
    assert "secret-project" not in shown
    assert "hunter2" not in shown
