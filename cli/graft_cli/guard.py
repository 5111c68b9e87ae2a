"""Runs one command and never outlives its parent: `python -m graft_cli.guard [options] -- COMMAND...`.

The parent holds the other end of our standard input. When that ends, however the parent died,
the command is told to stop, given time, and killed. A SIGTERM does the same; a second one kills.
Only the standard library is used, so that a guard costs little.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import subprocess
import sys

CHUNK_BYTES = 4096


class Guard:
    """One command, and the two things that end it: its parent's end, or a signal."""

    def __init__(self, command: list[str], grace_seconds: float, keep_fds: list[int]) -> None:
        self._grace_seconds = grace_seconds
        self._wake, wake_end = socket.socketpair()
        wake_end.setblocking(False)
        self._wake_end = wake_end
        signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=keep_fds)

    def run(self) -> int:
        """The command's exit code, once it has ended."""
        while self._child.poll() is None:
            if self._is_told_to_stop():
                self._stop()
        code = self._child.returncode
        return code if code >= 0 else 128 - code

    def _is_told_to_stop(self, timeout_seconds: float | None = None, *, watch_parent: bool = True) -> bool:
        sources = [self._wake, sys.stdin] if watch_parent else [self._wake]
        ready = select.select(sources, [], [], timeout_seconds)[0]
        if sys.stdin in ready and not os.read(sys.stdin.fileno(), CHUNK_BYTES):
            return True
        return self._wake in ready and self._is_signalled()

    def _is_signalled(self) -> bool:
        numbers = set(self._wake.recv(CHUNK_BYTES))
        return bool(numbers & {signal.SIGTERM, signal.SIGINT})

    def _stop(self) -> None:
        """Ask, wait for the grace or a second request, then kill."""
        self._child.terminate()
        deadline = _now() + self._grace_seconds
        while self._child.poll() is None and (left := deadline - _now()) > 0:
            if self._is_told_to_stop(left, watch_parent=False):
                break
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def main() -> int:
    """Parse our own options, run the command, return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m graft_cli.guard")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds between asking and killing")
    parser.add_argument("--keep-fd", type=int, action="append", default=[], help="a descriptor it inherits")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    return Guard(options.command, options.grace, options.keep_fd).run()


def _now() -> float:
    import time

    return time.monotonic()


if __name__ == "__main__":
    sys.exit(main())
