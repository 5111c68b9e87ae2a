"""The services of one machine as child processes: started, watched, started again, stopped in order.

Each runs under a guard (`graft_cli.guard`), so none outlives this process, however it dies. Each
has a session of its own, so Ctrl-C in the terminal reaches this process alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

WATCH_SECONDS = 0.2
MOST_RESTARTS = 3
"""In a row; a service that then ran for `SETTLED_SECONDS` starts with a clean sheet."""
SETTLED_SECONDS = 60.0
FIRST_BACKOFF_SECONDS = 1.0
GUARD_SECONDS = 5.0
"""What a guard may take on top of its command's grace."""
TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Service:
    """One process to run: its command, its environment, and how long it may take to stop."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    grace_seconds: float = 10.0
    keeps_lock: bool = False
    """Holds the data folder's lock while it lives, even if everything else was killed."""


class Child:
    """One running service, by way of its guard."""

    def __init__(self, service: Service, log_path: Path, lock_fd: int | None) -> None:
        self.service = service
        self.log_path = log_path
        self.restarts = 0
        self._lock_fd = lock_fd
        self.started_at = 0.0
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self, earlier: Sequence[Child]) -> None:
        """Start it, its output going to its log.

        Its guard also holds the life lines of the services that were started `earlier`: if this
        process is killed, they end only after it, in the order in which `stop` would end them.
        """
        self.started_at = time.monotonic()
        if self._guard is not None:
            _close(self._guard.stdin)
        fds = [] if self._lock_fd is None else [self._lock_fd]
        fds += [line for line in (child.life_line() for child in earlier) if line is not None]
        with self.log_path.open("ab") as log:
            self._guard = subprocess.Popen(
                self._guard_command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.service.environment},
                start_new_session=True,
                pass_fds=fds,
            )

    def exit_code(self) -> int | None:
        """How it ended, or nothing while it runs; leftovers of a killed guard are killed too."""
        assert self._guard is not None
        code = self._guard.poll()
        if code is not None and code < 0:
            self._kill_group()
        return code

    def life_line(self) -> int | None:
        """The pipe whose end tells its guard that nobody needs it any more."""
        if self._guard is None or self._guard.stdin is None or self._guard.poll() is not None:
            return None
        return self._guard.stdin.fileno()

    def ask_to_stop(self) -> None:
        """Tell the guard; a second time means at once."""
        if self._guard is not None and self._guard.poll() is None:
            self._guard.terminate()

    def wait(self) -> None:
        """Wait for its end, and force it when it takes too long."""
        if self._guard is None:
            return
        try:
            self._guard.wait(self.service.grace_seconds + GUARD_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill_group()
            self._guard.wait()
        _close(self._guard.stdin)

    def log_tail(self) -> str:
        """The last lines it wrote."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        return ""

    def _guard_command(self) -> list[str]:
        options = ["--grace", str(self.service.grace_seconds)]
        if self.service.keeps_lock and self._lock_fd is not None:
            options += ["--keep-fd", str(self._lock_fd)]
        return [sys.executable, "-m", "graft_cli.guard", *options, "--", *self.service.command]

    def _kill_group(self) -> None:
        assert self._guard is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._guard.pid, signal.SIGKILL)


class Children:
    """All services of this process; leaving the context stops them, the last started first."""

    def __init__(self, log_dir: Path, lock_fd: int | None, on_news: Callable[[str], None]) -> None:
        self.failure: str | None = None
        """Set when a service died too often: what a person should read."""
        self._log_dir, self._lock_fd, self._on_news = log_dir, lock_fd, on_news
        self._is_interrupted = False
        self._children: list[Child] = []
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._failed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch-children", daemon=True)
        log_dir.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, service: Service) -> Child:
        """Start one more."""
        child = Child(service, self._log_dir / f"{service.name}.log", self._lock_fd)
        with self._changing:
            child.start(self._children)
            self._children.append(child)
        return child

    def interrupt(self) -> None:
        """Whoever waits here is to stop waiting, as by Ctrl-C."""
        self._is_interrupted = True

    def wait_until(self, is_ready: Callable[[], bool], what: str, timeout_seconds: float) -> None:
        """Wait for something the services bring about.

        Raises:
            ServiceFailed: a service died, or it took too long.
            KeyboardInterrupt: see `interrupt`.
        """
        deadline = time.monotonic() + timeout_seconds
        while not is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise ServiceFailed(f"{what} within {timeout_seconds:g} s; its log is in {self._log_dir}")
            self._failed.wait(WATCH_SECONDS)

    def wait_for_failure(self) -> None:
        """Stay here until a service has failed for good.

        Raises:
            ServiceFailed: always, in the end.
            KeyboardInterrupt: see `interrupt`.
        """
        while not self._failed.wait(1.0):  # short waits let signals through
            self.check()
        self.check()

    def check(self) -> None:
        """Raises `ServiceFailed` once a service failed for good, `KeyboardInterrupt` after `interrupt`."""
        if self._is_interrupted:
            raise KeyboardInterrupt
        if self.failure is not None:
            raise ServiceFailed(self.failure)

    def stop(self) -> None:
        """Stop all, the last started first, each role together; Ctrl-C meanwhile kills at once."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        try:
            while self._children:
                self._stop_role(self._children[-1].service.name.partition("-")[0])
        except KeyboardInterrupt:
            self._on_news("stopping at once")
            for child in self._children:
                child.ask_to_stop()
                child.ask_to_stop()
            self.stop()

    def _stop_role(self, role: str) -> None:
        """Workers are `worker-1`, `worker-2`...: they give their jobs back side by side."""
        ending = [child for child in self._children if child.service.name.partition("-")[0] == role]
        for child in ending:
            child.ask_to_stop()
        for child in ending:
            child.wait()
            self._children.remove(child)

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            for child in list(self._children):
                code = child.exit_code()
                if code is not None and not self._start_again(child, code):
                    return

    def _start_again(self, child: Child, code: int) -> bool:
        """Whether there was a next try, after a pause that doubles."""
        if time.monotonic() - child.started_at > SETTLED_SECONDS:
            child.restarts = 0
        if child.restarts >= MOST_RESTARTS:
            name, log = child.service.name, child.log_path
            self.failure = f"{name} keeps dying ({ended(code)}); the end of {log}:\n{child.log_tail()}"
            self._failed.set()
            return False
        pause = FIRST_BACKOFF_SECONDS * 2**child.restarts
        self._on_news(f"{child.service.name} died ({ended(code)}); starting it again in {pause:g} s")
        if self._stopping.wait(pause):
            return False
        child.restarts += 1
        with self._changing:
            child.start(self._children[: self._children.index(child)])
        return True


class ServiceFailed(Exception):
    """A service that is needed does not run."""


def ended(code: int) -> str:
    """How a process ended, in words."""
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"by {signal.Signals(number).name}"
    return f"with exit code {code}"


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(OSError):
            pipe.close()
