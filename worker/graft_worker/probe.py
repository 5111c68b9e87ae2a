"""Reads the device in a process of its own (`python -m graft_worker probe`), so that the worker
never imports MLX; on import errors it says what is missing.

The budget is what jobs may use: on Apple silicon the recommended working set less a reserve,
with CUDA the card's memory, otherwise the machine's memory or its cgroup's limit.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import psutil

from graft_scheduler.memory import Backend
from graft_worker.pressure import read_cgroups, read_sysctl

GIB = 1 << 30
RESERVE_BYTES = 1 * GIB
"""Left to the system on a GPU's working set: buffers that MLX does not count."""
HOST_RESERVE_SHARE = 0.15
"""Left to the system where jobs live in the machine's own memory."""
BRAND = "machdep.cpu.brand_string"
"""What macOS calls the name of its chip."""
PROBE_SECONDS = 120.0
"""A first import of MLX on a cold disk takes a while."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a host computes with."""

    device: str
    kind: Backend
    memory_bytes: int
    budget_bytes: int
    versions: dict[str, str]
    error: str | None = None
    """Why MLX cannot be used; everything else is of the machine."""
    chip: str = ""
    """The GPU's name; without one the processor's model."""
    free_bytes: int | None = None
    """Of a card's own memory, what nobody used when it was read."""


def probe() -> Device:
    """The device of this machine, read by a child that imports MLX.

    A child that fails gives the machine's memory and the reason.
    """
    command = [sys.executable, "-m", "graft_worker", "probe"]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        said = json.loads(child.stdout)
        return Device(**{**said, "kind": Backend(said["kind"])})
    except (OSError, ValueError, TypeError, KeyError, subprocess.TimeoutExpired) as error:
        return _of_machine(f"the probe of the device failed: {error}")


def print_device() -> int:
    """The child's part: the device as JSON on stdout."""
    sys.stdout.write(json.dumps(asdict(read_device())) + "\n")
    return 0


def read_device() -> Device:
    """The device that MLX uses here. Imports MLX."""
    try:
        import mlx.core as mx
    except ImportError as error:
        return _of_machine(f"MLX cannot be imported ({error}); `pip install '.[worker]'` in Graft's folder")
    if mx.metal.is_available():
        info = mx.device_info()
        working_set = int(info["max_recommended_working_set_size"])
        name = str(info.get("device_name", "Apple GPU"))
        return _device(name, Backend.METAL, working_set, working_set - RESERVE_BYTES)
    if mx.default_device() == mx.Device(mx.gpu):
        info = mx.device_info()
        total, free = int(info["total_memory"]), info.get("free_memory")
        card = _device(str(info.get("device_name", "CUDA GPU")), Backend.CUDA, total, total - RESERVE_BYTES)
        return replace(card, free_bytes=None if free is None else int(free))
    return _of_machine(None)


def machine_memory_bytes() -> int:
    """The machine's memory, or less where a cgroup of this process allows less."""
    limits = [group.limit_bytes for group in read_cgroups(os.getpid())]
    return min([psutil.virtual_memory().total, *limits])


def machine_budget_bytes(memory_bytes: int) -> int:
    """What jobs may use of so much memory where they live in the machine's own."""
    return max(1, int(memory_bytes * (1 - HOST_RESERVE_SHARE)))


def parse_processor(text: str) -> str | None:
    """The processor's model in `/proc/cpuinfo`; some processors do not tell it."""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return " ".join(found[1].split()) if found else None


def _of_machine(error: str | None) -> Device:
    memory = machine_memory_bytes()
    device = _device(_processor(), Backend.CPU, memory, machine_budget_bytes(memory), error)
    return replace(device, chip=_processor_model())


def _device(name: str, kind: Backend, memory: int, budget: int, error: str | None = None) -> Device:
    return Device(name, kind, memory, max(budget, 1), _versions(), error, chip=name)


def _processor() -> str:
    return f"{platform.processor() or platform.machine()} CPU, {psutil.cpu_count()} cores"


def _processor_model() -> str:
    if sys.platform == "darwin":
        return read_sysctl([BRAND]).get(BRAND) or platform.machine()
    with suppress(OSError):
        return parse_processor(Path("/proc/cpuinfo").read_text()) or platform.machine()
    return platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("mlx-graft", "mlx", "mlx-lm", "celery"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
