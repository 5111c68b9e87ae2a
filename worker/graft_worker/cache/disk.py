"""How much of a disk may be used."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from graft_scheduler.settings import Settings

MIN_FREE_BYTES = 10 << 30
"""Left free where the owner says nothing; on small disks this share of them."""
MIN_FREE_SHARE = 0.05
SIGNIFICANT_BITS = 4
FULL = {errno.ENOSPC, errno.EDQUOT}


def spare_bytes(folder: Path, settings: Settings) -> int:
    """What jobs may still write there, below zero where too little is free already.

    Raises:
        OSError: the disk cannot be asked.
    """
    usage = shutil.disk_usage(_existing(folder))
    least = settings.min_free_disk_bytes
    return usage.free - (min(MIN_FREE_BYTES, int(usage.total * MIN_FREE_SHARE)) if least is None else least)


def device_of(folder: Path) -> int:
    """Which disk the folder is on, or would be.

    Raises:
        OSError: that cannot be asked.
    """
    return os.stat(_existing(folder)).st_dev


def told_disk(free: int) -> int:
    """As it is told to the fleet: rounded down to an eighth or less, so that hosts are alike to placement and
    told anew only when something changed.
    """
    step = 1 << max(0, free.bit_length() - SIGNIFICANT_BITS)
    return free // step * step


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the cause of an error is that a disk, or a person's share of it, is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def _existing(folder: Path) -> Path:
    for path in (folder, *folder.parents):
        if path.exists():
            return path
    return folder
