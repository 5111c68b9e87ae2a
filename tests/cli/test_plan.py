"""`graft plan` and `train --dry-run`: what is printed, what is told apart, and the exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis import Redis

from graft_cli import samples
from graft_cli.bars import bar, stacked
from graft_scheduler.client import Client
from graft_scheduler.jobs import CountJob
from graft_scheduler.records import HostInfo
from graft_scheduler.rooms import Placement
from graft_scheduler.states import HostId, JobId
from graft_scheduler.transitions import Transitions, Window
from tests.cli.conftest import Graft

NEEDED = ("-m", str(samples.base_model()), "-d", str(samples.data_folder()))


def register(redis: Redis, name: str, memory: int, **changes: object) -> None:
    """A host that reports."""
    with Client() as client:
        store_id = client.store().id
    info = HostInfo(
        id=HostId(name),
        name=name,
        machine_id=name,
        boot="1",
        store_id=store_id,
        budget_bytes=memory,
        machine_bytes=memory,
        slots=1,
        backend="metal",
        device="Apple M2 Max",
        system="macOS 26",
        versions={},
    )
    Transitions(redis).host_beat(info.model_copy(update=changes), 60)


def occupy(redis: Redis, host: str, memory: int) -> str:
    """A job that holds so much of the host."""
    with Client() as client:
        job = client.submit(CountJob(memory_bytes=memory)).id
    transitions = Transitions(redis)
    _, leader, _ = transitions.lead("test", 60)
    token, why = transitions.place(Placement(JobId(job), HostId(host), memory), leader, Window(60, 60))
    assert token is not None, why
    return job


def test_without_a_service_every_backend_is_planned_and_said_so(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFT_REDIS_URL", "redis://127.0.0.1:1/0")

    run = graft("plan", *NEEDED)

    assert run.code == 0
    assert "no fleet was asked" in run.stderr
    for told in (
        "metal",
        "cuda",
        "cpu",
        "weights",
        "together",
        "rows at once",
        "a step, no gradient checkpointing",
    ):
        assert told in run.stdout


def test_a_service_that_is_named_and_does_not_answer_is_an_error(graft: Graft) -> None:
    run = graft("plan", *NEEDED, "--redis-url", "redis://127.0.0.1:1/0")

    assert run.code == 8
    assert run.stdout == ""


def test_a_host_with_room_is_told_with_cut_time_and_basis(service: Graft, redis: Redis) -> None:
    register(redis, "studio", 64 << 30)

    run = service("plan", *NEEDED)

    assert run.code == 0
    assert "On studio (metal)" in run.stdout
    assert "a guess from the chip's public figures" in run.stdout
    assert re.search(r"^studio .* now$", run.stdout, re.MULTILINE)
    assert "graft train" in run.stderr


def test_a_busy_host_leaves_with_the_code_for_later(service: Graft, redis: Redis) -> None:
    register(redis, "studio", 64 << 30)
    holder = occupy(redis, "studio", 60 << 30)

    run = service("plan", *NEEDED)

    assert run.code == 5
    assert f"when {holder} ends" in run.stdout


def test_a_fleet_that_is_too_small_leaves_with_the_code_for_never_and_names_a_remedy(
    service: Graft, redis: Redis
) -> None:
    words = ("plan", *NEEDED, "--set", "gradient_checkpointing=false", "--method", "full")
    register(redis, "watch", 1 << 40)
    smaller = service("plan", *NEEDED, "--method", "qlora", "--json").json["backends"][0]["smallest"]
    register(redis, "watch", smaller["peak_bytes"])

    run = service(*words)

    assert run.code == 6
    assert "never, short by" in run.stdout
    assert "to fit on watch:" in run.stderr


def test_a_host_with_another_store_is_not_taken_for_too_small(service: Graft, redis: Redis) -> None:
    register(redis, "alien", 64 << 30, store_id="elsewhere")

    run = service("plan", *NEEDED)

    assert run.code == 6
    assert "uses another store" in run.stdout
    assert "whatever its size" in run.stderr


def test_a_dry_run_prints_the_plan_and_queues_nothing(service: Graft, redis: Redis) -> None:
    register(redis, "studio", 64 << 30)

    planned, dry = service("plan", *NEEDED), service("train", *NEEDED, "--dry-run")

    assert (dry.code, dry.stdout, dry.stderr) == (planned.code, planned.stdout, planned.stderr)
    assert service("ps", "--json").json == []


def test_json_has_the_whole_plan_and_the_same_code(service: Graft, redis: Redis) -> None:
    register(redis, "watch", 12 << 20)
    register(redis, "studio", 64 << 30)

    run = service("plan", *NEEDED, "--json", "--max-length", "128")

    assert run.code == 0
    assert run.json["fit"] == "now"
    assert [one["host"]["name"] for one in run.json["hosts"]] == ["studio", "watch"]
    assert run.json["job"]["max_length"] == 128
    assert run.json["job"]["batch_size"] == 64


def test_jobs_that_wait_already_are_told(service: Graft, redis: Redis) -> None:
    register(redis, "studio", 64 << 30)
    with Client() as client:
        client.submit(CountJob())

    assert "1 job waits in the queue" in service("plan", *NEEDED).stderr


def test_bad_data_is_refused_as_at_submit(service: Graft, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")

    run = service("plan", "-m", str(samples.base_model()), "-d", str(tmp_path / "rows.jsonl"))

    assert run.code == 2
    assert "rows.jsonl:1" in run.stderr


@pytest.mark.parametrize(
    ("value", "drawn"), [(0, ""), (1, "▏"), (50, "█████"), (100, "██████████"), (999, "██████████")]
)
def test_a_bar_is_as_long_as_its_share(value: int, drawn: str) -> None:
    assert bar(value, 100, 10) == drawn


def test_layers_of_a_bar_end_where_their_sum_does() -> None:
    assert stacked((50, 25, 25), 100, 12) == "██████▓▓▓░░░"
    assert stacked((50, 25, 25), 200, 12) == "███▓░░"
