"""The whole service on this machine: Redis, scheduler, workers and Flower as children of this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from graft_cli import data_folder, processes, redis_server
from graft_cli.children import Child, Children, Service

if TYPE_CHECKING:
    from graft_scheduler.client import Client
    from graft_scheduler.records import HostRecord
    from graft_scheduler.settings import Settings

WORKER_GRACE_SECONDS = 30.0
"""A worker gives its jobs back with a checkpoint before it leaves."""
SCHEDULER_GRACE_SECONDS = 5.0
FLOWER_GRACE_SECONDS = 3.0
GATEWAY_GRACE_SECONDS = 6.0
"""An upload that is on its way gets five; what it has brought is gone on from."""
REDIS_SECONDS = 60.0
"""Loading a large append-only file takes a while."""
SCHEDULER_SECONDS = 30.0
WORKER_SECONDS = 120.0
"""The first import of MLX on a cold disk is slow."""


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What to start."""

    settings: Settings
    own_redis: bool = True
    """Start one; otherwise `settings.redis_url` is there already."""
    ephemeral: bool = False
    workers: int = 1
    with_flower: bool = True
    with_gateway: bool = True
    """Serve the store to other machines, if it is a folder on this one."""


class LocalService:
    """Started on entering the context, stopped on leaving it: Flower, workers, scheduler, Redis."""

    def __init__(self, options: LocalOptions, on_news: Callable[[str], None]) -> None:
        self.settings = options.settings
        self.redis_kind = "yours"
        self.flower_password: str | None = None
        self.gateway_url: str | None = None
        self._options, self._on_news = options, on_news
        self._lock: int | None = None
        self._children: Children | None = None

    @property
    def children(self) -> Children:
        assert self._children is not None, "the service is not started"
        return self._children

    @property
    def log_dir(self) -> Path:
        return self.settings.data_dir / "logs"

    def __enter__(self) -> Self:
        self._lock = data_folder.lock(self.settings.data_dir, self._on_news)
        self._children = Children(self.log_dir, self._lock, self._on_news)
        stop_on_signals(self._children.interrupt)
        self._children.__enter__()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def client(self) -> Client:
        """A client of this service."""
        from graft_scheduler.client import Client

        return Client(self.settings)

    def hosts(self) -> list[HostRecord]:
        """The workers that are alive."""
        with self.client() as client:
            return [host for host in client.hosts() if host.is_alive]

    def _start(self) -> None:
        self._start_redis()
        self._settle_store()
        self._publish()
        if self._options.with_gateway and self.settings.store_url == self.settings.own_store_url:
            self._start_gateway()
        self._start_scheduler()
        for number in range(1, self._options.workers + 1):
            self._start_worker(number)
        if self._options.with_flower:
            self._start_flower()
        self._wait_until_ready()

    def _start_redis(self) -> None:
        if not self._options.own_redis:
            with self.client() as client:
                client.ping()
            return
        find = redis_server.ephemeral_redis if self._options.ephemeral else redis_server.durable_redis
        redis = find(self.settings.data_dir)
        self.children.start(redis.service)
        self.children.wait_until(
            lambda: redis_server.answers(redis.port), "Redis did not answer", REDIS_SECONDS
        )
        self.redis_kind = redis.kind
        self.settings = replace(self.settings, redis_url=redis.url)

    def _settle_store(self) -> None:
        """With a Redis of others their store; else a folder here, unless another is set."""
        from graft_scheduler.redis_connection import connect
        from graft_scheduler.store.finding import where_store_is

        url, token = self.settings.store_url or self.settings.own_store_url, self.settings.store_token
        if not self._options.own_redis:
            with connect(self.settings.redis_url) as redis:
                url, token = where_store_is(self.settings, redis)
        self.settings = replace(self.settings, store_url=url, store_token=token)

    def _publish(self) -> None:
        data_folder.publish(self.settings.data_dir, self._addresses())

    def _addresses(self) -> dict[str, str]:
        """What the children and other terminals of this user need to know."""
        found = {
            "redis_url": self.settings.redis_url,
            "store_url": self.settings.store_url,
            "store_token": self.settings.store_token,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _start_gateway(self) -> None:
        from graft_scheduler.addresses import http_url

        port = redis_server.free_port(self.settings.gateway_port)
        self.gateway_url = http_url(self.settings.gateway_address, port)
        flags = {"gateway_port": port, "gateway_folder": self.settings.own_store}
        self._start_python("gateway", processes.GATEWAY, flags, GATEWAY_GRACE_SECONDS)

    def _start_scheduler(self) -> None:
        self._start_python("scheduler", processes.SCHEDULER, {}, SCHEDULER_GRACE_SECONDS)

    def _start_worker(self, number: int) -> None:
        """Several of them, for trying, are told apart by their names."""
        settings, suffix = self.settings, f"-{number}" if self._options.workers > 1 else ""
        name = settings.host_name or os.uname().nodename.partition(".")[0]
        flags = {
            "host_name": name + suffix,
            "slots": settings.slots,
            "memory_bytes": settings.memory_bytes,
        }
        self._start_python(f"worker{suffix}", processes.WORKER, flags, WORKER_GRACE_SECONDS)

    def _start_flower(self) -> None:
        port = redis_server.free_port(self.settings.flower_port)
        self.settings = replace(self.settings, flower_port=port)
        self.flower_password = processes.flower_password(self.settings)
        flags = {
            "flower_address": self.settings.flower_address,
            "flower_port": port,
            "flower_user": self.settings.flower_user,
            "flower_password": self.flower_password,
        }
        self._start_python("flower", processes.FLOWER, flags, FLOWER_GRACE_SECONDS)

    def _start_python(
        self, name: str, command: tuple[str, ...], flags: dict[str, object], grace_seconds: float
    ) -> Child:
        shared = {**self._addresses(), "data_dir": self.settings.data_dir}
        service = Service(
            name,
            (sys.executable, *command),
            processes.environment({**shared, **flags}),
            grace_seconds=grace_seconds,
        )
        return self.children.start(service)

    def _wait_until_ready(self) -> None:
        with self.client() as client:
            self.children.wait_until(
                lambda: client.leader() is not None, "no scheduler took the lead", SCHEDULER_SECONDS
            )
            self.children.wait_until(
                lambda: sum(host.is_alive for host in client.hosts()) >= self._options.workers,
                "the worker did not register",
                WORKER_SECONDS,
            )

    def _stop(self) -> None:
        if self._children is not None:
            self._children.stop()
        data_folder.withdraw(self.settings.data_dir)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def stop_on_signals(note: Callable[[], None]) -> None:
    """SIGTERM and a closed terminal end this process the way Ctrl-C does.

    Python drops an exception that a handler raises within a finaliser: `note` is called first, for whoever
    waits to look at.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        note()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
