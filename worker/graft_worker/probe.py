"""Reads the device in a process of its own (`python -m graft_worker probe`), so that the worker
never imports MLX; on import errors it says what is missing.

The budget is what jobs may use: on Apple silicon the recommended working set less a reserve,
with CUDA the card's memory, otherwise the machine's memory or its cgroup's limit.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import psutil

from graft_scheduler.memory import Backend

GIB = 1 << 30
RESERVE_BYTES = 1 * GIB
"""Left to the system on a GPU's working set: buffers that MLX does not count."""
HOST_RESERVE_SHARE = 0.15
"""Left to the system where jobs live in the machine's own memory."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
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


def probe() -> Device:
    """The device of this machine, read by a child that imports MLX.

    A child that fails gives the machine's memory and the reason.
    """
    command = [sys.executable, "-m", "graft_worker", "probe"]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        return Device(**json.loads(child.stdout))
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired) as error:
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
        return _device(
            str(info.get("device_name", "Apple GPU")), Backend.METAL, working_set, working_set - RESERVE_BYTES
        )
    if mx.default_device() == mx.Device(mx.gpu):
        info = mx.device_info()
        total = int(info["total_memory"])
        return _device(str(info.get("device_name", "CUDA GPU")), Backend.CUDA, total, total - RESERVE_BYTES)
    return _of_machine(None)


def machine_memory_bytes() -> int:
    """The machine's memory, or less where a cgroup allows less."""
    limits = [psutil.virtual_memory().total]
    for path in CGROUP_LIMITS:
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


def _of_machine(error: str | None) -> Device:
    memory = machine_memory_bytes()
    return _device(_processor(), Backend.CPU, memory, int(memory * (1 - HOST_RESERVE_SHARE)), error)


def _device(name: str, kind: Backend, memory: int, budget: int, error: str | None = None) -> Device:
    return Device(name, kind, memory, max(budget, 1), _versions(), error)


def _processor() -> str:
    return f"{platform.processor() or platform.machine()} CPU, {psutil.cpu_count()} cores"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("mlx-graft", "mlx", "mlx-lm", "celery"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
