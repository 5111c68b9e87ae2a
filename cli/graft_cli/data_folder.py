"""The data folder while `graft up` runs on it: one at a time, and its addresses for other terminals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

LOCK_FILE = "up.lock"
STOPPING_SECONDS = 60.0
"""A killed `up` leaves guards that stop its services one by one; the worker may take half a minute."""


def lock(data_dir: Path, on_wait: Callable[[str], None]) -> int:
    """The descriptor of the folder's lock; closing it, or our end, lets it go.

    Raises:
        Conflict: another `graft up` runs on the folder, or something it left behind.
    """
    from graft_scheduler.errors import Conflict

    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    if _try_lock(descriptor):
        return descriptor
    if holder := _running(data_dir):
        raise Conflict(
            f"`graft up` already runs on {data_dir} (process {holder}); `--data-dir` names another folder"
        )
    on_wait("an earlier `graft up` on this folder is still stopping; waiting for it")
    deadline = time.monotonic() + STOPPING_SECONDS
    while time.monotonic() < deadline:
        if _try_lock(descriptor):
            return descriptor
        time.sleep(0.2)
    raise Conflict(f"something that an earlier `graft up` started still uses {data_dir}{_leftover(data_dir)}")


def publish(data_dir: Path, addresses: Mapping[str, str]) -> None:
    """Tell other terminals where the services are; only this user may read it."""
    from graft_scheduler.settings import UP_FILE

    temporary = data_dir / f"{UP_FILE}.new"
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"pid": os.getpid(), **addresses}, file)
    temporary.replace(data_dir / UP_FILE)


def withdraw(data_dir: Path) -> None:
    """Take the addresses back."""
    from graft_scheduler.settings import UP_FILE

    (data_dir / UP_FILE).unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _running(data_dir: Path) -> int | None:
    """The process of the `up` that published its addresses, if it lives."""
    from graft_scheduler.settings import UP_FILE

    with contextlib.suppress(OSError, ValueError, KeyError):
        process = int(json.loads((data_dir / UP_FILE).read_text())["pid"])
        os.kill(process, 0)
        return process
    return None


def _leftover(data_dir: Path) -> str:
    with contextlib.suppress(OSError):
        process = (data_dir / "redis" / "redis.pid").read_text().strip()
        return f"; if it is its Redis, `kill {process}` stops that cleanly"
    return ""
