"""The commands about jobs and hosts, against a real Redis with nobody else there."""

from __future__ import annotations

import pytest

from graft_scheduler.client import Client
from graft_scheduler.jobs import CountJob
from graft_scheduler.records import HostInfo
from graft_scheduler.states import HostId
from graft_scheduler.transitions import Transitions
from tests.cli.conftest import Graft

MINI = HostInfo(
    id=HostId("0123abcd"),
    name="mini",
    machine_id="m",
    boot="1",
    store_id="s",
    budget_bytes=40 << 30,
    machine_bytes=40 << 30,
    slots=1,
    backend="metal",
    device="Apple M9",
    system="macOS 26",
    versions={},
)


@pytest.fixture
def job(service: Graft) -> str:
    """A job that waits, as no worker is there."""
    del service
    with Client() as client:
        return client.submit(CountJob(name="patience", submitter="ada")).id


def test_ps_lists_the_job_with_its_reason(service: Graft, job: str) -> None:
    run = service("ps")

    header, row = run.stdout.splitlines()
    assert header.split() == ["JOB", "NAME", "STATE", "HOST", "PROGRESS", "WHO", "SUBMITTED"]
    assert row.startswith(f"{job}  patience  queued")
    assert "no scheduler is running" in row
    assert run.stderr == ""


def test_ps_without_jobs_prints_nothing_on_stdout_and_a_hint(service: Graft) -> None:
    run = service("ps")

    assert run.stdout == ""
    assert "graft train" in run.stderr


def test_ps_mine_leaves_out_what_others_submitted(service: Graft, job: str) -> None:
    assert job not in service("ps", "--mine").stdout


@pytest.mark.parametrize(
    "words", [["ps"], ["show", "JOB"], ["why", "JOB"], ["logs", "JOB"], ["hosts"], ["config"], ["version"]]
)
def test_json_is_one_document_on_stdout(service: Graft, job: str, words: list[str]) -> None:
    run = service(*[job if word == "JOB" else word for word in words], "--json")

    assert run.code == 0
    assert run.json is not None


def test_show_tells_settings_and_history(service: Graft, job: str) -> None:
    shown = service("show", job[:4]).stdout

    assert f"Job {job}" in shown
    assert "patience" in shown
    assert "ago by ada" in shown
    assert "+0s  submitted" in shown


def test_why_tells_that_nobody_is_there(service: Graft, job: str) -> None:
    run = service("why", job)

    assert "no scheduler is running" in run.stdout
    assert "graft up" in run.stderr


def test_an_empty_log_is_said_on_stderr(service: Graft, job: str) -> None:
    run = service("logs", job)

    assert (run.code, run.stdout) == (0, "")
    assert "the log is empty" in run.stderr


def test_waiting_with_a_timeout_leaves_with_24_and_the_job_goes_on(service: Graft, job: str) -> None:
    run = service("wait", job, "--timeout", "0")

    assert run.code == 24
    assert "it goes on" in run.stderr
    assert service("ps", "--json").json[0]["state"] == "queued"


def test_a_cancelled_job_can_be_waited_for_and_retried_but_not_cancelled_again(
    service: Graft, job: str
) -> None:
    cancelled = service("cancel", job)
    assert (cancelled.code, cancelled.stdout) == (0, f"{job}\n")
    assert service("wait", job).code == 21
    assert service("cancel", job).code == 7

    retried = service("retry", job)
    assert (retried.code, retried.stdout) == (0, f"{job}\n")
    assert service("retry", job).code == 7
    service("cancel", job)


def test_a_waiting_job_has_nothing_to_pull(service: Graft, job: str) -> None:
    run = service("pull", job)

    assert run.code == 7
    assert "no adapter" in run.stderr


@pytest.mark.parametrize(
    "words", [["show"], ["why"], ["logs"], ["wait"], ["cancel"], ["retry"], ["pull"], ["hosts", "drain"]]
)
def test_an_unknown_name_leaves_with_3(service: Graft, words: list[str]) -> None:
    run = service(*words, "nobody")

    assert run.code == 3
    assert "nobody" in run.stderr


def test_hosts_says_how_to_get_one(service: Graft) -> None:
    run = service("hosts")

    assert run.stdout == ""
    assert "graft worker" in run.stderr


def test_a_host_is_listed_drained_and_taken_back(service: Graft, transitions: Transitions) -> None:
    transitions.host_beat(MINI, heartbeat_seconds=5)
    header, row = service("hosts").stdout.splitlines()

    assert header.split() == ["NAME", "STATE", "DEVICE", "MEMORY", "SLOTS", "JOBS", "SEEN"]
    assert row.startswith("mini  alive  Apple M9  0 B / 40")
    service("hosts", "drain", "mini")
    assert "draining" in service("hosts").stdout
    service("hosts", "undrain", "mini")
    service("hosts", "uncordon", "mini")
    assert service("hosts", "--json").json[0]["is_draining"] is False
    assert service("hosts", "forget", "mini", "--yes").code == 7


def test_forgetting_a_host_asks_first(service: Graft) -> None:
    run = service("hosts", "forget", "mini")

    assert run.code == 2
    assert "--yes" in run.stderr
