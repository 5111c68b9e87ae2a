"""Real limits on the memory of a fleet's runners, and what they took: for tests on Linux."""

from __future__ import annotations

import os
import re
import resource
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.services import Service, eventually

CGROUPS = Path("/sys/fs/cgroup")
POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Peak:
    """The most that one runner took."""

    resident_bytes: int = 0
    """Of memory that is no file's."""
    virtual_bytes: int = 0


@dataclass
class RunnerPeaks:
    """Looks at the runners of a worker as long as it is open; `limit` is put on each that is new."""

    worker: Service
    limit: Callable[[int], None] = lambda pid: None
    peaks: dict[int, Peak] = field(default_factory=lambda: defaultdict(Peak))
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> RunnerPeaks:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def largest(self) -> Peak:
        """Of all runners, in each way."""
        return Peak(
            max(peak.resident_bytes for peak in self.peaks.values()),
            max(peak.virtual_bytes for peak in self.peaks.values()),
        )

    def _look(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            for pid in [runner.pid for runner in self.worker.runners()]:
                if pid not in self.peaks:
                    self.limit(pid)
                with suppress(OSError):
                    self._note(pid, (Path("/proc") / str(pid) / "status").read_text())

    def _note(self, pid: int, status: str) -> None:
        before = self.peaks[pid]
        self.peaks[pid] = Peak(
            max(before.resident_bytes, _kilobytes(status, "RssAnon") * 1024),
            max(before.virtual_bytes, _kilobytes(status, "VmPeak") * 1024),
        )


def limit_address_space(size: int) -> Callable[[int], None]:
    """Allocations beyond `size` fail."""

    def limit(pid: int) -> None:
        assert sys.platform == "linux"
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, (size, size))

    return limit


@contextmanager
def limited_cgroup(size: int) -> Iterator[Callable[[int], None]]:
    """A cgroup that kills what takes more than `size`; processes are put into it.

    Raises:
        OSError: cgroups cannot be made here.
    """
    version_1 = (CGROUPS / "memory" / "memory.limit_in_bytes").exists()
    folder = (CGROUPS / "memory" if version_1 else CGROUPS) / f"graft-test-{os.getpid()}-{size}"
    folder.mkdir()
    try:
        name = "memory.limit_in_bytes" if version_1 else "memory.max"
        (folder / name).write_text(str(size))
        for swap, value in (("memory.memsw.limit_in_bytes", str(size)), ("memory.swap.max", "0")):
            if (folder / swap).exists():
                (folder / swap).write_text(value)

        def limit(pid: int) -> None:
            with suppress(ProcessLookupError):
                (folder / "cgroup.procs").write_text(str(pid))

        yield limit
    finally:
        folder.rmdir()


def end_runners(worker: Service) -> None:
    """Those that wait for another job too: the next one has a process of its own."""
    runners = worker.runners()
    for runner in runners:
        with suppress(psutil.NoSuchProcess):
            runner.kill()
    eventually(lambda: not any(psutil.pid_exists(runner.pid) for runner in runners))


def can_make_cgroups() -> bool:
    with suppress(OSError), limited_cgroup(1 << 30):
        return True
    return False


def _kilobytes(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) if found else 0
