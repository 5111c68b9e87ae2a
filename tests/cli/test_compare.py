"""`graft compare`: what is queued and refused, how results read, and how it is left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from graft_cli import compare, compare_watching, samples
from graft_cli.compare_report import share
from graft_scheduler.client import Client
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.messages import TrainResult
from graft_scheduler.records import Failure, Hold
from graft_scheduler.rooms import Placement
from graft_scheduler.states import Digest, FailureClass, HostId, JobId, JobState
from graft_scheduler.transitions import Ending, Transitions, Window
from tests.cli.conftest import Graft
from tests.cli.test_output import Terminal
from tests.cli.test_plan import register

NEEDED = ("-m", str(samples.base_model()), "-d", str(samples.data_folder()))
MIB = 1 << 20
PNG_BEGINNING = b"\x89PNG\r\n\x1a\n"
HOST = HostId("studio")


def queue(service: Graft, *words: str, name: str = "first") -> list[JobId]:
    """A comparison of lora and qlora that nobody runs."""
    variants = ("--variant", "lora", "--variant", "small: qlora,rank=2")
    run = service("compare", *NEEDED, *variants, "--name", name, "--no-wait", *words)
    assert run.code == 0, run.stderr
    with Client() as client:
        return list(client.comparison(name).jobs)


def end(redis: Redis, job: JobId, ending: Ending) -> None:
    """Run a job to this end, as a worker would."""
    transitions = Transitions(redis)
    _, leader, _ = transitions.lead("test", 60)
    token, why = transitions.place(Placement(job, HOST, MIB), leader, Window(60, 60))
    assert token is not None, why
    held = Hold(job, token, "nonce")
    assert transitions.claim(held, HOST, "1", 60) is not None
    transitions.finish(held, HOST, ending)


def completed(perplexity: float, memory: int, adapter: Digest | None = None) -> Ending:
    facts = {"trainable_parameters": 16234, "device": "M4", "cut": {"gradient_checkpointing": False}}
    result = TrainResult(
        steps=9,
        initial_loss=5.0,
        perplexity=perplexity,
        training_seconds=80.0,
        tokens_per_second=1234.0,
        peak_memory_bytes=memory * MIB,
        facts=facts,
    )
    return Ending(JobState.COMPLETED, "completed", result=result, adapter=adapter)


FAILED = Ending(
    JobState.FAILED, "failed", failure=Failure(failure=FailureClass.DIVERGED, text="the loss is no number")
)


def test_jobs_of_one_budget_are_queued_with_their_names(service: Graft) -> None:
    run = service("compare", *NEEDED, "--no-wait", "--set", "scale=3")
    name = run.stdout.strip()

    with Client() as client:
        records = client.comparison(name).records()
    specs = [one.spec for one in records if isinstance(one.spec, TrainJob)]
    assert [one.method.value for one in specs] == ["lora", "qlora", "dora", "full"]
    assert [one.name for one in specs] == [f"{name}/{one.method.value}" for one in specs]
    assert len({one.batch_size for one in specs}) == 1
    assert specs[0].labels["place"] == "1 of 4"
    assert f"all variants take {specs[0].batch_size} rows a step" in run.stderr
    assert "full: without `adapter.scale`" in run.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--variant", "lora"], 2, "a comparison has at least two"),
        (["--variant", "lora", "--variant", "dorra"], 2, "did you mean `dora`?"),
        (
            ["--variant", "lora", "--variant", "lora,layers=99"],
            2,
            "variant `lora,layers=99`: `adapter.layers`",
        ),
        (["--variant", "lora", "--variant", "lora,rank=8"], 2, "are the same job"),
        (["--no-wait", "--plot", "a.png"], 2, "nothing to draw"),
        (["--plot", "nowhere/a.png"], 2, "there is no folder nowhere"),
        (["--show", "first"], 2, "`--model` describes a job"),
        (["--name", "first"], 7, "there is a comparison first already"),
    ],
)
def test_what_is_refused_queues_nothing(service: Graft, words: list[str], code: int, told: str) -> None:
    there = queue(service)

    run = service("compare", *NEEDED, *words)

    assert (run.code, run.stdout) == (code, "")
    assert told in run.stderr
    assert len(service("ps", "--json").json) == len(there)


def test_a_comparison_that_is_not_there_is_told_with_those_that_are(service: Graft) -> None:
    queue(service)

    run = service("compare", "--show", "second")

    assert run.code == 3
    assert "there is no comparison second; the newest are first" in run.stderr
    assert service("compare", "--show", "first", "--variant", "lora").code == 2


def test_what_is_there_is_shown_while_jobs_wait(service: Graft) -> None:
    lora, small = queue(service)

    run = service("compare", "--show", "first")

    assert run.code == 0
    assert [line.split()[0] for line in run.stdout.splitlines()[1:3]] == ["lora", "small"]
    assert lora in run.stdout
    assert small in run.stdout
    assert "none yet" in run.stdout
    assert "--show first --wait" in run.stderr


def test_results_are_a_table_a_recommendation_and_a_picture(
    service: Graft, redis: Redis, tmp_path: Path
) -> None:
    register(redis, HOST, 64 << 30)
    lora, small = queue(service)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_bytes(bytes(3 * MIB))
    with Client() as client:
        adapter = client.store().put_folder(tmp_path / "adapter")
    end(redis, lora, completed(4.00, 200, adapter))
    end(redis, small, completed(4.02, 100))

    run = service("compare", "--show", "first", "--wait", "--plot", str(tmp_path / "a.png"))

    assert run.code == 0
    first, second = (line.split("  ") for line in run.stdout.splitlines()[1:3])
    for told in ("5.0000", "1.3863", "4.00", "1m20s", "1,234", "200 MB", "3 MB", "1%", "studio"):
        assert told in [cell.strip() for cell in first]
    assert second[-1].strip() == "completed"
    assert "take     small" in run.stdout
    assert "0.5% above the lowest, that of lora; it took 100 MB" in run.stdout
    assert "of the variants whose perplexity is within 1% of the lowest" in run.stdout
    assert f"graft pull {small}" in run.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(PNG_BEGINNING)


def test_a_variant_that_failed_is_a_row_with_its_reason_and_the_exit_code(
    service: Graft, redis: Redis
) -> None:
    register(redis, HOST, 64 << 30)
    lora, small = queue(service)
    end(redis, lora, completed(4.0, 200))
    end(redis, small, FAILED)

    run = service("compare", "--show", "first", "--wait", "--json")

    assert run.code == 20
    assert [one["state"] for one in run.json["rows"]] == ["completed", "failed"]
    assert run.json["rows"][1]["failure"] == "diverged: the loss is no number"
    assert run.json["recommendation"]["variant"] is None
    shown = service("compare", "--show", "first")
    assert shown.code == 0
    assert "failed, diverged: the loss is no number" in shown.stdout


def test_jobs_that_can_never_run_end_the_waiting_with_6(service: Graft, redis: Redis) -> None:
    register(redis, HOST, 64 << 30)
    queue(service, "--set", "limits.memory_bytes=1000000000000")

    run = service("compare", "--show", "first", "--wait")

    assert run.code == 6
    assert "small: no registered host can ever run job" in run.stderr
    assert "queued" in run.stdout


def test_waiting_too_long_prints_what_there_is_and_leaves_with_24(service: Graft, redis: Redis) -> None:
    register(redis, HOST, 64 << 30)
    lora, small = queue(service)
    end(redis, lora, completed(4.0, 200))

    run = service("compare", "--show", "first", "--wait", "--timeout", "0")

    assert run.code == 24
    assert "completed" in run.stdout
    assert f"not ended within 0 s: small ({small}); they go on" in run.stderr


def test_ctrl_c_leaves_the_jobs_alone_and_says_how_to_come_back(
    service: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(service)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_watching.LinesView, "show", interrupted)
    run = service("compare", "--show", "first", "--wait")

    assert (run.code, run.stdout) == (130, "")
    assert "graft compare --show first --wait" in run.stderr
    with Client() as client:
        assert all(one.state is JobState.QUEUED for one in client.comparison("first").records())


def test_jobs_that_a_person_labelled_are_a_comparison_too(service: Graft) -> None:
    with Client() as client:
        for words in (["--method", "lora", "--seed", "1"], ["--method", "dora", "--name", "mine"]):
            assert service("train", *NEEDED, *words, "--label", "comparison=by hand").code == 0
        client.submit(CountJob(labels={"comparison": ""}))

    shown = service("compare", "--show", "by hand", "--json").json

    assert "mine" in [row["variant"] for row in shown["rows"]]
    assert shown["recommendation"]["reason"] == "the losses are not comparable: the jobs differ in `seed`"


def test_on_a_terminal_every_job_has_a_line(service: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    queue(service)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    view = compare_watching.comparison_view()
    with Client() as client:
        view.show(client.comparison("first").records())
    view.say("small waits")
    view.close()

    for told in ("lora", "small", "queued", "small waits"):
        assert told in screen.getvalue()


def test_what_waits_is_explained_once_per_reason(service: Graft) -> None:
    queue(service)
    now, said = 100.0, list[str]()
    with Client() as client:
        handle = client.comparison("first")
        waiting = compare_watching.Waiting(handle, clock=lambda: now)
        for _ in range(8):
            waiting.look(handle.records(), said.append)
            now += 3

    assert len(said) == 1
    assert "lora waits: no scheduler is running" in said[0]
    assert compare.code_of(handle, is_stuck=False) == 0


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, "-"), (0.000123, "0.012%"), (0.0043, "0.43%"), (0.0539, "5.39%"), (1.0, "100%")],
)
def test_a_share_is_told_with_the_digits_that_count(value: float | None, told: str) -> None:
    assert share(value) == told
