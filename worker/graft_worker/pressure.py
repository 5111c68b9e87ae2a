"""How short memory is on this machine, as the system says it: what macOS and Linux print, as numbers.

The parsers are pure; the readers take the roots of the system's own file systems.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path, PurePosixPath

import psutil

MIB = 1 << 20
UNLIMITED_BYTES = 1 << 60
"""Limits of cgroups above this are none; version 1 writes the largest number of pages."""
SYSCTL_NAMES = ("vm.swapusage", "kern.memorystatus_vm_pressure_level", "iogpu.wired_limit_mb")
SYSCTL_SECONDS = 2.0
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
SWAP_USED = re.compile(r"used = ([\d.,]+)([KMGT])")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Level(IntEnum):
    """What macOS makes of its memory; Linux has no such word."""

    NORMAL = 1
    WARNING = 2
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The limit of a process's cgroup, or of the one around it that has the least left."""

    limit_bytes: int
    used_bytes: int
    """Without files that are only cached."""

    @property
    def left_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True)
class Pressure:
    """The machine's memory at one time."""

    total_bytes: int
    available_bytes: int
    """What new work could have without swapping."""
    swap_used_bytes: int = 0
    level: Level = Level.NORMAL
    stalled_percent: float = 0.0
    """Of the last ten seconds, in which nothing ran because all waited for memory."""
    cgroup: Cgroup | None = None
    address_limit_bytes: int | None = None
    """Of the process alone: what is mapped beyond it fails, and few programs bear that well."""


def read_pressure(pid: int) -> Pressure:
    """The memory of this machine, and of the cgroup that process `pid` is in."""
    if sys.platform == "darwin":
        return _read_darwin(read_sysctl(SYSCTL_NAMES))
    return read_linux(pid, PROC, CGROUPS)


def read_linux(pid: int, proc: Path, cgroups: Path) -> Pressure:
    """As `read_pressure`, from these roots."""
    memory = parse_meminfo((proc / "meminfo").read_text())
    stalled = 0.0
    with suppress(OSError):  # a kernel without pressure stall information
        stalled = parse_stalled(_text(proc / "pressure" / "memory"))
    return Pressure(
        total_bytes=memory["MemTotal"],
        available_bytes=memory["MemAvailable"],
        swap_used_bytes=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        stalled_percent=stalled,
        cgroup=read_cgroup(pid, proc, cgroups),
        address_limit_bytes=read_address_limit(pid),
    )


def read_cgroup(pid: int, proc: Path = PROC, cgroups: Path = CGROUPS) -> Cgroup | None:
    """The limit on the process that has the least left; nothing where there is none, or no cgroups."""
    return min(read_cgroups(pid, proc, cgroups), key=lambda one: one.left_bytes, default=None)


def read_cgroups(pid: int, proc: Path = PROC, cgroups: Path = CGROUPS) -> list[Cgroup]:
    """Every limit on the process: of its cgroup, and of those around it."""
    try:
        paths = parse_cgroup_paths((proc / str(pid) / "cgroup").read_text())
    except OSError:
        return []
    mounts = {1: cgroups / "memory", 2: cgroups}
    return [
        one
        for version, path in paths.items()
        for folder in _folders(mounts[version], path)
        if (one := _read_one(folder, version)) is not None
    ]


def read_address_limit(pid: int) -> int | None:
    """What process `pid` may map at most; nothing where that has no limit."""
    if sys.platform != "linux":
        return None
    try:
        found = [resource.prlimit(pid, kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    except OSError:  # it has ended
        return None
    return min((one for one in found if one != resource.RLIM_INFINITY), default=None)


def read_sysctl(names: Sequence[str]) -> dict[str, str]:
    """What macOS says under these names; those that it does not know are left out."""
    command = ["/usr/sbin/sysctl", *names]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SYSCTL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_sysctl(said.stdout)


def parse_sysctl(text: str) -> dict[str, str]:
    """Values by name, of `name: value` lines."""
    lines = (line.partition(": ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, separator, value in lines if separator}


def parse_swap_used(text: str) -> int:
    """Bytes in use, of the value of `vm.swapusage`; 0 where it says nothing."""
    found = SWAP_USED.search(text)
    return int(float(found[1].replace(",", ".")) * UNITS[found[2]]) if found else 0


def parse_level(text: str) -> Level:
    """The value of `kern.memorystatus_vm_pressure_level`; normal where it is no known one."""
    try:
        return Level(int(text))
    except ValueError:
        return Level.NORMAL


def parse_wired_limit(text: str) -> int | None:
    """Bytes, of the value of `iogpu.wired_limit_mb`; nothing for 0, which leaves it to the system."""
    try:
        return int(text) * MIB or None
    except ValueError:
        return None


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of `/proc/meminfo`; what is no amount of memory is left out."""
    lines = (line.split() for line in text.splitlines())
    return {
        words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"
    }


def parse_stalled(text: str) -> float:
    """Percent of the last ten seconds in which everything waited, of `/proc/pressure/memory`."""
    found = re.search(r"^full avg10=([\d.]+)", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def parse_cgroup_paths(text: str) -> dict[int, str]:
    """The paths by version of cgroup that limit memory, of `/proc/<pid>/cgroup`."""
    paths = {}
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            paths[1] = path
        elif number == "0" and not controllers:
            paths[2] = path
    return paths


def parse_cached_files(text: str) -> int:
    """Bytes of files that are only cached, of `memory.stat`, with those of cgroups below.

    All of them can be dropped when memory is needed, those in use too: weights that were read once.
    """
    values = {words[0]: int(words[1]) for line in text.splitlines() if len(words := line.split()) == 2}
    return sum(values.get(f"total_{name}", values.get(name, 0)) for name in ("inactive_file", "active_file"))


def _read_darwin(said: dict[str, str]) -> Pressure:
    memory = psutil.virtual_memory()
    return Pressure(
        total_bytes=memory.total,
        available_bytes=memory.available,
        swap_used_bytes=parse_swap_used(said.get("vm.swapusage", "")),
        level=parse_level(said.get("kern.memorystatus_vm_pressure_level", "")),
    )


def _folders(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup's folder and all around it; the mount alone where a container hides the path."""
    parts = PurePosixPath(path).parts[1:]
    if ".." in parts or not mount.joinpath(*parts).is_dir():
        parts = ()
    for count in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:count])


def _read_one(folder: Path, version: int) -> Cgroup | None:
    names = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if version == 1
        else ("memory.max", "memory.current")
    )
    try:
        limit, used = (int(_text(folder / name)) for name in names)
        cached = parse_cached_files(_text(folder / "memory.stat"))
    except (OSError, ValueError):  # the root has no limit, and `max` is none
        return None
    return Cgroup(limit, max(0, used - cached)) if limit < UNLIMITED_BYTES else None


def _text(path: Path) -> str:
    return path.read_text().strip()
