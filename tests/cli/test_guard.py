"""A guard's command never outlives the guard's parent. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from graft_cli.children import Children, Service, ServiceFailed
from tests.services import eventually, has_left

pytestmark = pytest.mark.processes

GUARD = [sys.executable, "-m", "graft_cli.guard"]
SLEEPER = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "graft_cli.guard", "--", *sys.argv[1:]], stdin=subprocess.PIPE)
time.sleep(600)
"""


def sleeper(pid_file: Path, code: str = SLEEPER) -> list[str]:
    return [sys.executable, "-c", code, str(pid_file)]


def started(pid_file: Path) -> psutil.Process:
    """The sleeping process, once it has written its id."""
    eventually(lambda: pid_file.exists() and pid_file.read_text(), what="the command started")
    return psutil.Process(int(pid_file.read_text()))


@pytest.fixture
def guarded() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a guard as `graft up` does; kills what a failed test leaves."""
    guards: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], *options: str) -> subprocess.Popen[bytes]:
        guards.append(subprocess.Popen([*GUARD, *options, "--", *command], stdin=subprocess.PIPE))
        return guards[-1]

    yield start
    for guard in guards:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.kill()
        guard.wait()


def test_the_command_ends_when_the_parent_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *sleeper(pid_file)])
    child = started(pid_file)

    parent.kill()
    parent.wait()

    eventually(lambda: has_left(child), 5, "the command left")


def test_a_guard_passes_the_exit_code_on(guarded: Callable[..., subprocess.Popen[bytes]]) -> None:
    assert guarded([sys.executable, "-c", "raise SystemExit(7)"]).wait(10) == 7


def test_a_command_that_ignores_the_request_is_killed_after_its_grace(
    guarded: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    guard = guarded(sleeper(tmp_path / "pid", STUBBORN), "--grace", "0.2")
    child = started(tmp_path / "pid")

    guard.terminate()

    assert guard.wait(10) == 128 + signal.SIGKILL
    assert has_left(child)


def test_a_second_request_kills_at_once(
    guarded: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    guard = guarded(sleeper(tmp_path / "pid", STUBBORN), "--grace", "600")
    child = started(tmp_path / "pid")

    def asked() -> bool:
        guard.terminate()
        return has_left(child)

    eventually(asked, 10, "the command was killed")


def test_services_stop_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def leave(*_):\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2] + ' ')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "open(sys.argv[1] + sys.argv[2], 'w')\n"
        "time.sleep(600)\n"
    )
    names = ["redis", "scheduler", "worker-1", "flower"]
    with Children(tmp_path / "logs", None, lambda news: None) as children:
        for name in names:
            children.start(Service(name, (sys.executable, "-c", code, str(order), name)))
            eventually(lambda name=name: (tmp_path / f"order{name}").exists(), 10)  # type: ignore[misc]

    assert order.read_text().split() == ["flower", "worker-1", "scheduler", "redis"]


def test_a_service_that_dies_is_started_again(tmp_path: Path) -> None:
    news: list[str] = []
    pid_file = tmp_path / "pid"
    with Children(tmp_path / "logs", None, news.append) as children:
        children.start(Service("worker", tuple(sleeper(pid_file))))
        first = started(pid_file)
        first.kill()

        eventually(lambda: int(pid_file.read_text() or first.pid) != first.pid, 10, "a new process")

    assert news == ["worker died (by SIGKILL); starting it again in 1 s"]


def test_a_service_that_keeps_dying_is_given_up_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft_cli.children.FIRST_BACKOFF_SECONDS", 0.01)
    broken = (sys.executable, "-c", "print('no licence today'); raise SystemExit(3)")
    with Children(tmp_path / "logs", None, lambda news: None) as children:
        children.start(Service("worker", broken))

        with pytest.raises(ServiceFailed, match="no licence today"):
            children.wait_until(lambda: False, "never", 20)


def test_a_killed_guard_takes_its_command_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with Children(tmp_path / "logs", None, lambda news: None) as children:
        children.start(Service("worker", tuple(sleeper(pid_file))))
        child = started(pid_file)
        guard = child.parent()
        assert guard is not None
        os.kill(guard.pid, signal.SIGKILL)

        eventually(lambda: has_left(child), 5, "the command left with its guard")


def test_waiting_for_what_never_comes_ends(tmp_path: Path) -> None:
    start = time.monotonic()
    with (
        Children(tmp_path / "logs", None, lambda news: None) as children,
        pytest.raises(ServiceFailed, match="did not come"),
    ):
        children.wait_until(lambda: False, "it did not come", 0.1)

    assert time.monotonic() - start < 10
