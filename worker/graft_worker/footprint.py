"""How much memory processes hold that nobody else could have: a runner with all that it started."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress

import psutil

from graft_scheduler.runner_process import RUNNER_MODULE

LOOK_EVERY = 5
"""Readings from one look for processes below to the next."""
RUSAGE_INFO_V0 = 0
RUSAGE_BYTES = 96
"""Of `rusage_info_v0`: an id of 16 bytes and ten numbers of 8, in <sys/resource.h> of macOS."""
FOOTPRINT_OFFSET = 72
"""Of `ri_phys_footprint`: memory, compressed and GPU memory too; what Activity Monitor shows."""


class Footprint:
    """Of one process and all below it. Looking for those takes a while, so it is not done each time."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._process: psutil.Process | None = None
        self._below: list[psutil.Process] = []
        self._looks = 0

    def read(self) -> int | None:
        """What they hold now; nothing when the process has ended."""
        try:
            self._process = self._process or psutil.Process(self._pid)
            if self._looks % LOOK_EVERY == 0:
                self._below = self._process.children(recursive=True)
            self._looks += 1
            return _one(self._process) + _together(self._below)
        except psutil.NoSuchProcess:
            return None


def runners_bytes() -> int:
    """What all runners on this machine hold, whichever worker started them."""
    return _together(process for process in psutil.process_iter() if _is_runner(process))


def parse_rusage(buffer: bytes) -> int:
    """The footprint in a `rusage_info_v0`."""
    (footprint,) = struct.unpack_from("=Q", buffer, FOOTPRINT_OFFSET)
    return int(footprint)


def _together(processes: Iterable[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with suppress(psutil.Error):  # it has ended, or is not ours to look at
            total += _one(process)
    return total


def _one(process: psutil.Process) -> int:
    """Its own memory: without the pages of files and of memory that it shares."""
    if sys.platform == "darwin":
        return _of_darwin(process)
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def _of_darwin(process: psutil.Process) -> int:
    buffer = ctypes.create_string_buffer(RUSAGE_BYTES)
    library = ctypes.CDLL("/usr/lib/libproc.dylib", use_errno=True)
    if library.proc_pid_rusage(process.pid, RUSAGE_INFO_V0, buffer) != 0:
        return int(process.memory_info().rss)
    return parse_rusage(buffer.raw)


def _is_runner(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return RUNNER_MODULE in process.cmdline()
    return False
