"""The host as it is now: what heartbeats tell, read again as budget, memory and caches change.

What is cheap is read in this process at every heartbeat. Only another process may import MLX; it
reads the device again when a cheap sign of a change was seen, or after an hour in which nothing ran.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from graft_scheduler.memory import Backend
from graft_scheduler.records import HostInfo
from graft_scheduler.settings import Settings
from graft_worker.access import Access
from graft_worker.cache.disk import told_disk
from graft_worker.cache.host_cache import HostCache
from graft_worker.cached_models import cached_models, hub_cache
from graft_worker.footprint import runners_bytes
from graft_worker.host import HostFolder, budget_bytes, machine_bytes
from graft_worker.pressure import Pressure, parse_wired_limit, read_pressure, read_sysctl
from graft_worker.probe import Device, machine_budget_bytes, machine_memory_bytes, probe

logger = logging.getLogger(__name__)

PROBE_AGAIN_SECONDS = 3600.0
LEFT_SHARE = 0.05
"""Of the machine's memory: jobs are not given the last of what is available."""
STEP_BYTES = 64 << 20
"""What is available is told in whole steps of this, rounded down: it changes all the time."""
WIRED_LIMIT = "iogpu.wired_limit_mb"


class LiveDevice:
    """The device, read again when it may have changed."""

    def __init__(
        self,
        device: Device,
        *,
        read_again: Callable[[], Device] = probe,
        read_sign: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._read_again, self._clock = read_again, clock
        self._read_sign = read_sign or (wired_limit if device.kind is Backend.METAL else lambda: None)
        self._sign = self._read_sign()
        self._read_at = clock()
        self._reading: threading.Thread | None = None

    def now(self, *, is_idle: bool) -> Device:
        """The device as far as it is known; another reading takes seconds, and is told the next time."""
        if self._device.kind is Backend.CPU:
            self._device = with_memory(self._device, machine_memory_bytes())
        elif self._reading is None or not self._reading.is_alive():
            self._read_if_due(is_idle)
        return self._device

    def _read_if_due(self, is_idle: bool) -> None:
        sign = self._read_sign()
        is_old = is_idle and self._clock() - self._read_at >= PROBE_AGAIN_SECONDS
        if sign == self._sign and not is_old:
            return
        self._sign, self._read_at = sign, self._clock()
        self._reading = threading.Thread(target=self._read, name="probe", daemon=True)
        self._reading.start()

    def _read(self) -> None:
        device = self._read_again()
        if device.error is not None or device.kind is not self._device.kind:
            logger.warning("the device was not read again: %s", device.error or f"it is {device.kind} now")
            return
        if device.budget_bytes != self._device.budget_bytes:
            logger.info("the device's budget is %d bytes now", device.budget_bytes)
        self._device = device


class LiveHost:
    """What the worker tells of itself at each heartbeat."""

    def __init__(
        self, settings: Settings, folder: HostFolder, device: LiveDevice, cache: HostCache, access: Access
    ) -> None:
        self._settings, self._folder, self._device = settings, folder, device
        self._cache, self._access = cache, access

    def now(self, before: HostInfo) -> HostInfo:
        """The host; what cannot be read is as it was `before`."""
        try:
            return self._read(before)
        except Exception as error:  # a host that cannot be read is still alive, and has to say so
            logger.warning("the host is told as it was: %s: %s", type(error).__name__, error)
            return before

    def _read(self, before: HostInfo) -> HostInfo:
        held = runners_bytes()
        device = self._device.now(is_idle=held == 0)
        budget = budget_bytes(self._settings, device)
        return before.model_copy(
            update={
                "budget_bytes": budget,
                "machine_bytes": machine_bytes(self._settings, device),
                "available_bytes": available_bytes(device, budget, read_pressure(os.getpid()), held),
                "cached": cached_models(self._folder.cache, hub_cache()),
                "free_disk_bytes": told_disk(self._cache.free_bytes()),
                "no_access": self._access.refused(),
            }
        )


def available_bytes(device: Device, budget: int, pressure: Pressure, held_bytes: int) -> int | None:
    """What other processes leave to jobs, of which runners hold `held_bytes`; never above `budget`.

    A card's memory is known as it was when nothing ran.
    """
    if device.kind is Backend.CUDA:
        left = device.free_bytes
    else:
        left = pressure.available_bytes + held_bytes - int(pressure.total_bytes * LEFT_SHARE)
        if pressure.cgroup is not None:
            left = min(left, pressure.cgroup.left_bytes + held_bytes)
    if left is None:
        return None
    return budget if left >= budget else max(0, left) // STEP_BYTES * STEP_BYTES


def with_memory(device: Device, memory_bytes: int) -> Device:
    """A device without memory of its own, where the machine's is so much now."""
    if memory_bytes == device.memory_bytes:
        return device
    return replace(device, memory_bytes=memory_bytes, budget_bytes=machine_budget_bytes(memory_bytes))


def wired_limit() -> int | None:
    """What the owner lets a Mac's GPU keep wired; MLX's working set follows it."""
    return parse_wired_limit(read_sysctl([WIRED_LIMIT]).get(WIRED_LIMIT, ""))
