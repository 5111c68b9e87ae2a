"""`graft model`: what is shown of the hosts' disks, and what becomes of what one asks for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.holdings.board import Board
from graft_scheduler.holdings.values import HeldModel, WishState
from graft_scheduler.records import HostInfo
from graft_scheduler.states import HostId
from graft_scheduler.transitions import Transitions
from tests.cli.conftest import Graft
from tests.scheduler.test_transitions import host_info

HUB = f"org/name@{'c0ffee' * 6}abcd"
STORED = "sha256:" + "ab" * 32
MIB = 1 << 20


@pytest.fixture
def board(redis: Redis) -> Board:
    """Two hosts, `a` with two models and `b` with one of its owner's."""
    board, now = Board(redis), time.time()
    for name in ("a", "b"):
        info = HostInfo.model_validate({**host_info(name).model_dump(), "name": f"mac-{name}"})
        Transitions(redis).host_beat(info, 60)
    stored = HeldModel(name=STORED, source="/home/ada/llama", bytes=200 * MIB, used_at=now - 7200)
    hub = HeldModel(name=HUB, source="org/name", bytes=300 * MIB, used_at=now - 60, is_in_use=True)
    board.publish(HostId("a"), [stored, hub])
    board.publish(HostId("b"), [hub.model_copy(update={"is_ours": False, "is_in_use": False})])
    return board


def test_models_are_listed_with_their_hosts_newest_use_and_what_keeps_them(
    service: Graft, board: Board
) -> None:
    board.pin(HostId("a"), STORED, is_pinned=True)

    run = service("model", "ls")
    one = service("model", "ls", "--host", "mac-a", "--json").json

    first, second = [line.split("  ") for line in run.stdout.splitlines()[1:]]
    assert [part.strip() for part in first if part] == [
        "org/name@c0ffeec0ffee",
        "hub",
        "300 MB",
        "mac-a (in use), mac-b (its owner's)",
        "1m ago",
        "-",
    ]
    assert [part.strip() for part in second if part][1:] == [
        "/home/ada/llama",
        "200 MB",
        "mac-a",
        "2h ago",
        "mac-a",
    ]
    assert [(held["name"], held["is_pinned"]) for held in one[0]["models"]] == [(STORED, True), (HUB, False)]


def test_models_are_pinned_by_what_people_call_them_and_hosts_hear_of_it(
    service: Graft, board: Board
) -> None:
    for name in ("/home/ada/llama", "llama", "abababab", STORED[:20]):
        assert service("model", "pin", name, "--json").json == [{"host": "mac-a", "model": STORED}]
        assert board.orders(HostId("a"))[1] == {STORED}
        assert service("model", "unpin", name).stdout == f"mac-a  {STORED}\n"
        assert board.orders(HostId("a"))[1] == set()

    assert service("model", "unpin", "org/name").code == 3
    unknown = service("model", "pin", "org/other")
    assert (unknown.code, unknown.stdout) == (3, "")
    assert "no host has org/other; `graft model ls` lists what is there" in unknown.stderr
    assert service("model", "pin", "ab").code == 3  # too short to tell a digest by


def test_removing_asks_first_and_waiting_tells_how_it_went(service: Graft, board: Board) -> None:
    unsure = service("model", "rm", "org/name")
    assert unsure.code == 2
    assert (
        "Remove org/name@c0ffeec0ffee (300 MB) from mac-a, org/name@c0ffeec0ffee (300 MB) from mac-b?"
        in " ".join(unsure.stderr.split())
    )
    assert service("model", "rm", "org/other").code == 3
    asked = service("model", "rm", "org/name", "--host", "mac-a", "--yes")
    (wish,), _ = board.orders(HostId("a"))

    assert asked.code == 0
    assert "mac-a  rm     org/name@c0ffeec0ffee  waiting" in asked.stdout
    again = service("model", "rm", "org/name", "--host", "mac-a", "-y", "--wait", "--timeout", "0.1")
    assert again.code == 24
    assert not board.answer(HostId("a"), wish), "a later wish took its place"
    (later,), _ = board.orders(HostId("a"))
    assert board.answer(
        HostId("a"), later.model_copy(update={"state": WishState.FAILED, "text": "it is in use"}), "failed"
    )
    assert "it is in use" in service("model", "ls").stdout
    events = service("hosts", "events", "mac-a")
    assert [line.split()[2] for line in events.stdout.splitlines()[1:]] == ["asked", "asked", "failed"]
    assert HUB not in events.stdout
    assert "org/name@c0ffeec0ffee" in events.stdout


def test_a_folder_is_put_into_the_store_once_and_what_is_no_model_is_refused(
    service: Graft, board: Board, tmp_path: Path
) -> None:
    folder = tmp_path / "no model"
    folder.mkdir()

    refused = service("model", "pull", str(folder))
    missing = service("model", "pull", str(tmp_path / "missing"))

    assert (refused.code, missing.code) == (2, 2)
    assert "a model folder needs the config.json" in refused.stderr
    assert board.orders(HostId("a"))[0] == []


def test_a_host_that_is_forgotten_leaves_nothing_behind(service: Graft, board: Board, redis: Redis) -> None:
    board.pin(HostId("b"), HUB, is_pinned=True)
    service("model", "rm", "org/name", "--host", "mac-b", "--yes")
    redis.zadd(keys.HOSTS, {"b": 0})

    assert service("hosts", "forget", "mac-b", "--yes").code == 0

    assert list(redis.keys(keys.PREFIX + "host:b*")) == []
