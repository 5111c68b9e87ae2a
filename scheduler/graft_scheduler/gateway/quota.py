"""How much a gateway's folder may hold: what is there, what is on its way, and what the disk has left."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft_scheduler.errors import StoreError

SPARE_BYTES = 1 << 30
"""Left on the disk for others."""


class NoRoom(StoreError):
    """It would not fit."""


class Quota:
    """Safe to use from several threads."""

    def __init__(self, folder: Path, used_bytes: int, limit_bytes: int | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._coming_bytes = 0
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes

    def check(self, size: int) -> None:
        """Whether so many more bytes would fit.

        Raises:
            NoRoom: they would not; says what there is.
        """
        free = shutil.disk_usage(self._folder).free - SPARE_BYTES
        if size > free - self._coming_bytes:
            raise NoRoom(
                f"{size} bytes do not fit: the gateway's disk has {max(0, free)} left; "
                "remove what nobody needs"
            )
        if self.limit_bytes is not None and self.used_bytes + self._coming_bytes + size > self.limit_bytes:
            raise NoRoom(
                f"{size} bytes do not fit: {self.used_bytes} of the quota's {self.limit_bytes} are in use; "
                "remove what nobody needs, or raise the quota (`graft gateway --quota`)"
            )

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Keep room for bytes that are on their way.

        Raises:
            NoRoom: they would not fit.
        """
        with self._lock:
            self.check(size)
            self._coming_bytes += size
        try:
            yield
        finally:
            with self._lock:
                self._coming_bytes -= size

    def add(self, size: int) -> None:
        """So many bytes are there now."""
        with self._lock:
            self.used_bytes += size
