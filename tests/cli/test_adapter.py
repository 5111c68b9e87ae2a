"""`graft adapter`, `graft pull` and `graft gc`, against a real Redis and a store in a folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from redis import Redis

from graft_scheduler.cards import BaseCard, write_card
from graft_scheduler.checkpoints import KeptCheckpoint
from graft_scheduler.client import Client
from graft_scheduler.demand import Request
from graft_scheduler.errors import Conflict, NotFound
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import TrainResult
from graft_scheduler.states import Digest, JobState
from graft_scheduler.store.digests import digest_of_files
from graft_scheduler.store.manifest import list_folder
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


def test_an_adapter_for_other_commands_is_found_by_its_name_and_checkpoint(
    service: Graft, job: str, tmp_path: Path
) -> None:
    from graft_cli.adapter_choice import Asked, adapter_folder, choose_adapter

    service("adapter", "tag", job, "good")

    folder = adapter_folder("good")
    best = choose_adapter(Asked("good", "best"), needs="nothing")
    service("adapter", "rm", job, "--yes")

    assert (folder / "adapters.safetensors").read_text() == "adapters.safetensors 0"
    assert adapter_folder("good") == folder
    assert adapter_folder(str(tmp_path)) == tmp_path
    assert (best.folder / "adapters.safetensors").read_text() == "adapters.safetensors 2"
    assert not (best.folder / "optimizer.safetensors").exists()
    assert best.name == f"{job}-step-2"
    assert choose_adapter(Asked("good"), needs="nothing").name == "good"
    with Client() as client:
        assert folder.is_relative_to(client.settings.data_dir / "brought")
    with pytest.raises(NotFound, match="there is no folder nothing, and no adapter of that name"):
        adapter_folder("nothing")
    for words in (("fuse",), ("export", "--to", "peft"), ("push-hub", "--repo", "a/b")):
        gone = service(*words, job)
        assert (gone.code, "was removed by" in gone.stderr) == (7, True)


@pytest.mark.parametrize("is_in_store", [True, False])
def test_a_base_that_changed_is_taken_from_the_store_or_refused(
    service: Graft, tmp_path: Path, is_in_store: bool
) -> None:
    del service
    from graft_cli.adapter_choice import base_of_job

    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    digest = digest_of_files(list_folder(base))
    spec = TrainJob.model_validate(
        {"model": {"source": str(base), "digest": digest}, "data": "rows.jsonl", "method": "lora"}
    )
    with Client() as client:
        if is_in_store:
            client.store().put_folder(base)
        assert base_of_job(client, spec) == spec.model
        (base / "config.json").write_text('{"another": 1}')

        if is_in_store:
            brought = Path(base_of_job(client, spec).source)
            assert (brought / "config.json").read_text() == "{}"
        else:
            with pytest.raises(Conflict, match="its files have changed since, and the store has no copy"):
                base_of_job(client, spec)


def test_a_folders_base_is_had_from_the_store_by_the_digest_in_its_card(
    service: Graft, tmp_path: Path
) -> None:
    del service
    from graft_cli.adapter_choice import Asked, choose_adapter

    base, adapter = tmp_path / "base", tmp_path / "sql" / "adapter"
    base.mkdir()
    adapter.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (base / name).write_text("{}")
    with Client() as client:
        digest = client.store().put_folder(base)
    write_card(adapter, card(base=BaseCard(name="base", digest=digest)))

    whole = choose_adapter(Asked(str(adapter)))
    config = choose_adapter(Asked(str(adapter)), needs="config")
    write_card(adapter, card(base=BaseCard(name="base", digest=Digest("sha256:" + "0" * 64))))

    assert whole.name == "sql"
    assert whole.model is not None
    assert whole.model == whole.trained_on
    assert {path.name for path in Path(whole.model.source).iterdir()} == {"config.json", "model.safetensors"}
    assert config.model is not None
    assert config.base_name == "base"
    assert [path.name for path in Path(config.model.source).iterdir()] == ["config.json"]
    with pytest.raises(NotFound, match="a folder called `base`, which cannot be had from the store"):
        choose_adapter(Asked(str(adapter)))
    assert choose_adapter(Asked(str(adapter), model="org/base")).trained_on is None
