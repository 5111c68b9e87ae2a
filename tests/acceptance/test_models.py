"""Bases from the hub through the whole service: who may have them, and what hosts are asked to keep."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.states import JobState
from tests.hub import Hub, running_hub
from tests.services import Fleet, eventually

pytestmark = pytest.mark.processes

NAME = "org/gated"


@pytest.fixture
def hub(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that gives the tiny base to one token only."""
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with running_hub() as hub:
        hub.add(NAME, tiny_base, tokens=frozenset({"hf_accepted"}))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield hub


def of_host(fleet: Fleet, name: str, token: str = "") -> dict[str, str]:
    """Two hosts with disks and tokens of their own."""
    folder = fleet.folder / name
    return {"HF_HOME": str(folder / "hf"), "HF_TOKEN": token, "GRAFT_DATA_DIR": str(folder / "data")}


def test_a_gated_base_is_trained_on_the_host_that_has_access_and_the_other_says_why_not(
    fleet: Fleet, hub: Hub, tiny_data: Path
) -> None:
    fleet.start_scheduler()
    one = fleet.start_worker("one", variables=of_host(fleet, "one"))
    fleet.wait_for_hosts(1)
    client = fleet.client()
    job = graft(fleet, "train", "-m", NAME, "-d", str(tiny_data), "--steps", "2", "--batch-size", "2")["id"]

    def refusals() -> list[str]:
        return [one.reason for one in client.why(job).hosts if "has no access to org/gated" in one.reason]

    eventually(refusals, what="the host says that it has no access")
    waiting = client.get(job)
    two = fleet.start_worker("two", variables=of_host(fleet, "two", "hf_accepted"))
    record = client.wait(job, 90)

    assert (waiting.state, waiting.failure, waiting.charged, waiting.stalled) == (JobState.QUEUED, None, 0, 0)
    assert (record.state, record.host_name) == (JobState.COMPLETED, "two")
    assert "no access" in [event.name for event in client.events(job)]
    cached = {host.info.name: host.info.cached for host in client.hosts()}
    assert cached == {"one": (), "two": (f"{NAME}@{hub.models[NAME].commit}",)}
    kept = b"".join(path.read_bytes() for path in fleet.redis.folder.rglob("*") if path.is_file())
    assert b"org/gated" in kept
    assert b"hf_accepted" not in kept
    assert "hf_accepted" not in one.log() + two.log()


def graft(fleet: Fleet, *words: str, code: int = 0, token: str = "hf_accepted") -> Any:
    """What a command prints as JSON, typed on the laptop."""
    command = [sys.executable, "-c", "from graft_cli.main import run; run()", *words, "--json"]
    laptop = "laptop" if token else "strangers-laptop"
    variables = {**fleet.environment, **of_host(fleet, laptop, token)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=90)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout or "null")


def test_hosts_fetch_keep_and_remove_bases_as_they_are_asked(
    fleet: Fleet, hub: Hub, tiny_base: Path, tiny_data: Path
) -> None:
    one = fleet.start_worker("one", variables=of_host(fleet, "one"))
    two = fleet.start_worker("two", variables=of_host(fleet, "two", "hf_accepted"))
    fleet.wait_for_hosts(2)
    client, commit = fleet.client(), hub.models[NAME].commit
    models = client.models

    pulled = graft(fleet, "model", "pull", NAME, "--wait", "--timeout", "60", code=20)
    (stored,) = models.wait(models.pull(str(tiny_base), client.store, ["two"]), 60)
    digest = stored.wish.model

    assert {one["host"]: one["state"] for one in pulled} == {"one": "failed", "two": "done"}
    assert "no access to org/gated" in pulled[0]["text"]
    eventually(lambda: names(fleet)["two"] == {f"{NAME}@{commit}", digest}, what="two tells what it has")
    assert names(fleet)["one"] == set()
    models.pin(digest[:20])
    eventually(lambda: (fleet.folder / "two" / "data" / "cache" / "pins").exists(), what="the pin arrives")
    queued = graft(fleet, "train", "-m", NAME, "-d", str(tiny_data), token="")
    (refused,) = models.wait(models.remove(digest[:20]), 60)
    (removed,) = models.wait(models.remove(NAME, ["two"]), 60)
    assert "is pinned" in refused.wish.text
    assert "freed" in removed.wish.text
    assert not (fleet.folder / "two" / "hf" / "hub" / f"models--{NAME.replace('/', '--')}").exists()
    eventually(lambda: names(fleet)["two"] == {digest}, what="two tells what it has")
    assert (queued["spec"]["model"]["revision"], queued["demands"]) == (commit, None)
    graft(fleet, "train", "-m", NAME, "-d", str(tiny_data), token="", code=4)
    happened = [(event.name, event.data["action"]) for event in models.events("two")]
    assert happened == [
        ("asked", "pull"),
        ("pulled", "pull"),
        ("asked", "pull"),
        ("pulled", "pull"),
        ("asked", "rm"),
        ("failed", "rm"),
        ("asked", "rm"),
        ("removed", "rm"),
    ]
    assert "Traceback" not in one.log() + two.log()


def names(fleet: Fleet) -> dict[str, set[str]]:
    """What each host says that it has."""
    found = fleet.client().models.ls()
    return {one.host.info.name: {held.name for held in one.models} for one in found}
