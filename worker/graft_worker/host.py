"""What makes this worker one host of the fleet: its folder, its id, its lock, what it tells of itself."""

from __future__ import annotations

import fcntl
import hashlib
import platform
import re
import secrets
import shutil
import socket
import subprocess
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from graft_scheduler.errors import Conflict, InvalidInput
from graft_scheduler.memory import format_bytes
from graft_scheduler.records import HostInfo
from graft_scheduler.settings import Settings
from graft_scheduler.states import HostId, JobId, Token
from graft_worker.probe import Device

ATTEMPT_DAYS = 7
"""How long an attempt's folder stays after its last write; an ended one holds little but its log."""


@dataclass(frozen=True, slots=True)
class HostFolder:
    """The worker's files: `<data>/workers/<name>/`, and the cache it shares with its machine's others."""

    root: Path
    cache: Path
    lock: IO[str]
    """Held for as long as the worker lives: one worker per folder."""

    def attempt_dir(self, job: JobId, token: Token) -> Path:
        """Everything that one attempt writes."""
        return self.root / "jobs" / job / str(token)

    def earlier_attempts(self, job: JobId, token: Token) -> list[Path]:
        """Folders of this job's earlier attempts on this host, newest first."""
        folders = [path for path in (self.root / "jobs" / job).glob("*") if path.name.isdigit()]
        older = [path for path in folders if int(path.name) < token]
        return sorted(older, key=lambda path: int(path.name), reverse=True)

    def forget_old_attempts(self) -> None:
        """Remove the folders of jobs that nothing has been written to for a week."""
        oldest = time.time() - ATTEMPT_DAYS * 86_400
        for folder in (self.root / "jobs").glob("*"):
            with suppress(OSError):  # it may be removed, or written to, at the same time
                if max((path.stat().st_mtime for path in folder.rglob("*")), default=0.0) < oldest:
                    shutil.rmtree(folder)

    def host_id(self) -> HostId:
        """The id that this worker keeps for life; a folder copied to another machine gets a new one."""
        path = self.root / "id"
        known = path.read_text().split() if path.exists() else []
        if len(known) != 2 or known[1] != machine_id():
            known = [secrets.token_hex(6), machine_id()]
            path.write_text(" ".join(known) + "\n")
        return HostId(known[0])


def open_folder(settings: Settings) -> HostFolder:
    """The worker's folder, locked.

    Raises:
        Conflict: another worker of that name runs on it.
    """
    name = host_name(settings)
    root = settings.data_dir / "workers" / name
    root.mkdir(parents=True, exist_ok=True)
    lock = (root / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Conflict(
            f"a worker named {name} runs on {settings.data_dir} already; give this one another --name"
        ) from error
    return HostFolder(root=root, cache=settings.data_dir / "cache", lock=lock)


def host_name(settings: Settings) -> str:
    """The worker's name: as set, else the machine's.

    Raises:
        InvalidInput: a name that could not be a folder's.
    """
    name = settings.host_name or socket.gethostname().removesuffix(".local")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise InvalidInput(f"`host_name` is {name!r}; use letters, digits, dots and dashes, 63 at most")
    return name


def describe(folder: HostFolder, settings: Settings, device: Device, store_id: str) -> HostInfo:
    """What this worker tells the fleet of itself.

    Raises:
        InvalidInput: the owner leaves nothing to jobs.
    """
    machine = machine_bytes(settings, device)
    return HostInfo(
        id=folder.host_id(),
        name=host_name(settings),
        machine_id=machine_id(),
        boot=secrets.token_hex(8),
        store_id=store_id,
        budget_bytes=budget_bytes(settings, device),
        machine_bytes=machine,
        slots=settings.slots,
        backend=device.kind,
        device=device.device,
        chip=device.chip,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=device.versions,
        allow_remote_code=settings.allow_remote_code,
    )


def budget_bytes(settings: Settings, device: Device) -> int:
    """What this worker's jobs may use together: all that jobs may use, or less if its owner says so.

    Raises:
        InvalidInput: as `machine_bytes`.
    """
    machine = machine_bytes(settings, device)
    return min(settings.memory_bytes or machine, machine)


def machine_bytes(settings: Settings, device: Device) -> int:
    """What the jobs of all workers of this machine may use together.

    Raises:
        InvalidInput: the owner's reserve leaves nothing.
    """
    if settings.reserve_bytes is None:
        return device.budget_bytes
    if settings.reserve_bytes >= device.memory_bytes:
        reserve, memory = format_bytes(settings.reserve_bytes), format_bytes(device.memory_bytes)
        raise InvalidInput(
            f"`reserve_bytes` is {reserve} and {device.device} may use {memory}; reserve less than that"
        )
    return device.memory_bytes - settings.reserve_bytes


def machine_id() -> str:
    """The same for every worker of one machine; a digest, so that it tells nothing else."""
    return hashlib.sha256(_machine_secret().encode()).hexdigest()[:16]


def _machine_secret() -> str:
    if platform.system() == "Darwin":
        command = ["ioreg", "-rd1", "-c", "IOPlatformExpertDevice"]
        listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if found := re.search(r'"IOPlatformUUID" = "([^"]+)"', listing):
            return found[1]
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        if path.exists() and (text := path.read_text().strip()):
            return text
    return str(uuid.getnode())
