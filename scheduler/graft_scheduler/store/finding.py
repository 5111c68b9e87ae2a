"""Which store a fleet uses: the one that is set, else the gateway that Redis names, else a folder here.

A gateway that has been there stays named while it is away: jobs wait for it rather than part from their data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis import Redis

from graft_scheduler import keys
from graft_scheduler.addresses import http_url
from graft_scheduler.redis_connection import reachable
from graft_scheduler.settings import Settings
from graft_scheduler.store.artifacts import Store
from graft_scheduler.store.opening import open_store

BROUGHT = "brought"
"""In the data folder: what commands bring here. A worker's cache is another, and clears itself."""


@dataclass(frozen=True, slots=True)
class Announced:
    """A gateway as Redis names it."""

    port: int
    host: str | None = None
    """Absent: at the address by which one reaches Redis, as both are on one machine."""
    token: str | None = None

    def url(self, redis_url: str) -> str:
        """For somebody who reaches Redis by `redis_url`."""
        return http_url(self.host or urlsplit(redis_url).hostname or "127.0.0.1", self.port)


def announce(redis: Redis, gateway: Announced) -> None:
    """Name the gateway to all who use this Redis; whoever can read that may use the store."""
    fields: dict[Any, Any] = {"port": gateway.port, "host": gateway.host or "", "token": gateway.token or ""}
    redis.hset(keys.GATEWAY, mapping=fields)


def announced(redis: Redis) -> Announced | None:
    """The gateway that Redis names."""
    fields: Any = redis.hgetall(keys.GATEWAY)
    if not fields.get("port", "").isdigit():
        return None
    return Announced(int(fields["port"]), fields.get("host") or None, fields.get("token") or None)


def where_store_is(settings: Settings, redis: Redis) -> tuple[str, str | None]:
    """The store's URL, and the token that it asks for.

    Raises:
        Unreachable: no store is set, and Redis does not answer.
    """
    if settings.store_url is not None:
        return settings.store_url, settings.store_token
    with reachable(settings.redis_url):
        gateway = announced(redis)
    if gateway is None:
        return settings.own_store_url, None
    return gateway.url(settings.redis_url), settings.store_token or gateway.token


def find_store(settings: Settings, redis: Redis) -> Store:
    """The store, open.

    Raises:
        Unreachable: Redis, where it is asked, or the store does not answer.
        NotAllowed: the gateway refuses the token.
    """
    return open_store(*where_store_is(settings, redis), settings.data_dir / BROUGHT)
