"""`graft adapter`, `graft pull` and `graft gc`, against a real Redis and a store in a folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from redis import Redis

from graft_scheduler.cards import write_card
from graft_scheduler.checkpoints import KeptCheckpoint
from graft_scheduler.client import Client
from graft_scheduler.demand import Request
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import TrainResult
from graft_scheduler.states import Digest, JobState
from graft_scheduler.transitions import Ending, Report, Transitions
from tests.cli.conftest import Graft
from tests.scheduler.test_cards import card
from tests.scheduler.test_transitions import HOST, JOB, run, submit


@pytest.fixture
def job(service: Graft, redis: Redis, tmp_path: Path) -> str:
    """A completed job with an adapter and two checkpoints."""
    del service
    folders = {}
    for step in (2, 4, 0):
        folder = folders[step] = tmp_path / f"made-{step}"
        folder.mkdir()
        for name in ("adapters.safetensors", "adapter_config.json", "optimizer.safetensors"):
            (folder / name).write_text(f"{name} {step}")
        write_card(folder, card(step=step, what="checkpoint" if step else "adapter"))
    transitions = Transitions(redis)
    spec = TrainJob.model_validate({"model": "org/base", "data": "rows.jsonl", "method": "lora"})
    with Client() as client:
        store = client.store()
        transitions.submit(JOB, spec, Request(demands=None, store_id=store.id))
        held = run(transitions)
        for step, loss in ((2, 0.25), (4, 0.5)):
            digest = store.put_folder(folders[step])
            kept = KeptCheckpoint(step=step, digest=digest, loss=loss, bytes=2048)
            transitions.report(held, Report(checkpoints=[kept]))
        adapter = store.put_folder(folders[0])
    result = TrainResult(
        steps=4, saved_step=4, best_step=2, best_loss=0.25, final_loss=0.5, perplexity=1.6487
    )
    ending = Ending(JobState.COMPLETED, "completed", result=result, adapter=adapter, adapter_bytes=4096)
    transitions.finish(held, HOST, ending)
    return JOB


def test_an_adapter_is_listed_named_shown_and_brought_by_its_name(
    service: Graft, job: str, tmp_path: Path
) -> None:
    tagged = service("adapter", "tag", job, "sql-v1")
    best = service("adapter", "tag", job, "sql-best", "--checkpoint", "best")
    header, *rows = service("adapter", "ls").stdout.splitlines()
    pulled = service("pull", "sql-best", "-o", str(tmp_path / "out"))

    assert (tagged.code, tagged.stdout) == (0, "sql-v1\n")
    assert "`graft pull sql-v1` brings it" in tagged.stderr
    assert best.code == 0
    assert header.split()[:3] == ["NAME", "JOB", "WHAT"]
    assert sorted(" ".join(row.split()[:8]) for row in rows) == [
        f"sql-best {job} checkpoint 2 org/base lora rows.jsonl 0.2500",
        f"sql-v1 {job} adapter 4 org/base lora rows.jsonl 0.5000",
    ]
    assert pulled.stdout == f"{tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "adapters.safetensors").read_text() == "adapters.safetensors 2"
    assert not (tmp_path / "out" / "optimizer.safetensors").exists()
    assert "step 2  loss 0.2500, 2 KB, best" in service("show", job).stdout
    assert "licence of the base  apache-2.0" in service("adapter", "show", "sql-v1").stdout
    assert service("adapter", "show", job, "--checkpoint", "4", "--json").json["step"] == 4


def test_a_step_that_there_is_not_is_refused_with_those_there_are(service: Graft, job: str) -> None:
    run_ = service("pull", job, "--checkpoint", "3")

    assert run_.code == 3
    assert "has no checkpoint of step 3; there is 2 (best), 4 (last)" in run_.stderr


def test_a_name_is_moved_only_by_force(service: Graft, job: str) -> None:
    service("adapter", "tag", job, "good")

    refused = service("adapter", "tag", job, "good", "--checkpoint", "2")
    moved = service("adapter", "tag", job, "good", "--checkpoint", "2", "--force")

    assert refused.code == 7
    assert f"`good` names the adapter of job {job}; `--force` moves it" in refused.stderr
    assert moved.code == 0
    assert service("adapter", "rm", "good").code == 0
    assert service("adapter", "show", "good").code == 3


def test_an_adapter_is_removed_when_somebody_says_so(service: Graft, job: str) -> None:
    asked = service("adapter", "rm", job)
    removed = service("adapter", "rm", job, "--yes")

    assert asked.code == 2
    assert "`--yes` says so" in asked.stderr
    assert removed.code == 0
    assert service("pull", job).code == 7
    assert "was removed by" in service("pull", job, "--checkpoint", "last").stderr
    assert service("adapter", "ls").stdout == ""


def test_removing_what_a_failed_job_would_go_on_from_says_so(service: Graft, redis: Redis) -> None:
    transitions = Transitions(redis)
    held = run(transitions, submit(transitions))
    kept = KeptCheckpoint(step=4, digest=Digest("sha256:" + "4" * 64))
    transitions.report(held, Report(checkpoints=[kept]))
    transitions.finish(held, HOST, Ending(JobState.FAILED, "failed"))
    assert service("adapter", "tag", JOB, "early", "--checkpoint", "4").code == 0

    named = service("show", JOB)
    removed = service("adapter", "rm", JOB, "--yes")
    shown = service("show", JOB)

    assert "early (checkpoint of step 4)" in named.stdout
    assert f"`graft retry {JOB}` then begins at step 0" in removed.stderr
    assert "removed by" in shown.stdout
    assert [tag["name"] for tag in json.loads(service("show", JOB, "--json").stdout)["tags"]] == ["early"]


def test_gc_says_what_would_go_and_asks_before_it_goes(service: Graft, job: str) -> None:
    service("adapter", "rm", job, "--yes")
    with Client() as client:
        root = Path(client.store().depot.place.removeprefix("file://"))
    then = time.time() - 2 * 86_400
    for path in root.rglob("blobs/sha256/*/*"):
        os.utime(path, (then, then))

    planned = service("gc", "--dry-run")
    asked = service("gc")
    done = service("gc", "--yes", "--json")

    assert planned.stdout.splitlines()[1].split()[:2] == ["checkpoint", "3"]
    assert "`graft gc` removes it" in planned.stderr
    assert asked.code == 2
    assert done.json["removed"]["blobs"] == done.json["blobs"] > 0
    assert service("gc", "--dry-run", "--json").json["blobs"] == 0
    assert service("gc").code == 0
    assert service("gc", "--older-than", "5m").code == 2
    assert service("gc", "--redis-url", "redis://127.0.0.1:1/0").code == 8


def test_an_adapter_for_generate_is_found_by_its_name(service: Graft, job: str, tmp_path: Path) -> None:
    from graft_cli.adapter import adapter_folder
    from graft_scheduler.errors import NotFound

    service("adapter", "tag", job, "good")

    folder = adapter_folder("good")

    assert (folder / "adapters.safetensors").read_text() == "adapters.safetensors 0"
    assert adapter_folder("good") == folder
    assert adapter_folder(str(tmp_path)) == tmp_path
    with pytest.raises(NotFound, match="there is no folder nothing, and no adapter of that name"):
        adapter_folder("nothing")
