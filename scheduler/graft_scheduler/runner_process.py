"""Starts a runner and holds the other end of its channel: for the supervisor, and for `train --local`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

from graft_scheduler.channel import Channel
from graft_scheduler.messages import RunnerMessage, SupervisorMessage, parse_runner_message

RUNNER_MODULE = "graft_worker.runner"

EXIT_ORPHANED = 75
"""The runner left because its supervisor is gone."""
EXIT_DEADLINE = 76
"""The runner left because nobody extended its deadline in time."""

KILL_SECONDS = 10.0
"""How long the system may take to end a killed process."""


class RunnerProcess:
    """One runner. It dies with this process: the channel's end-of-file tells it to leave."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self._process = process
        self._channel = channel

    @classmethod
    def spawn(cls, log_path: Path) -> Self:
        """Start a runner; whatever it or its libraries print goes to `log_path`, also if it dies."""
        ours, theirs = socket.socketpair()
        with theirs, log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", RUNNER_MODULE, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # the terminal's Ctrl-C is for the supervisor to act on
            )
        return cls(process, Channel(ours))

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: SupervisorMessage) -> None:
        """Tell the runner, without waiting for it. One that reads nothing is killed.

        If it is gone, its end-of-file says so to the receiver.
        """
        if not self._channel.offer(message):
            self.kill()

    def receive(self, timeout_seconds: float) -> RunnerMessage | None:
        """The next message, or nothing when none came in time.

        Raises:
            EOFError: the runner has left and said everything it had to say.
        """
        frame = self._channel.receive(timeout_seconds)
        return None if frame is None else parse_runner_message(frame)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> int:
        """The exit code, negative for a signal; a runner that still lives is killed."""
        self._channel.close()
        try:
            return self._process.wait(timeout=KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()


def _environment() -> dict[str, str]:
    """This process's environment without our settings: a runner knows nothing of Redis."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
