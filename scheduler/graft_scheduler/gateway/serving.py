"""Starting the gateway: who may ask, which folder it serves, and how the fleet learns of it."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError

from graft_scheduler import keys
from graft_scheduler.addresses import is_loopback
from graft_scheduler.errors import Conflict, NotAllowed
from graft_scheduler.settings import Settings

logger = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 5.0
"""Between two looks whether Redis names a gateway."""
CONNECT_SECONDS = 3.0
SAME_AS_REDIS = "redis"


def served_folder(settings: Settings) -> Path:
    """What it serves: what is named, else the store in the data folder."""
    return (settings.gateway_folder or settings.own_store).expanduser().absolute()


def check_tokens(settings: Settings) -> list[str]:
    """The tokens in force.

    Raises:
        NotAllowed: others could reach the address, and there is no token.
    """
    tokens = [token.strip() for token in (settings.store_token or "").split(",") if token.strip()]
    if not tokens and not is_loopback(settings.gateway_address):
        raise NotAllowed(
            f"`gateway_address` is {settings.gateway_address}, which others can reach; "
            "set GRAFT_STORE_TOKEN first"
        )
    return tokens


def serve(settings: Settings, tokens: Sequence[str]) -> None:
    """Run the service in this process.

    Raises:
        Unreachable: the folder cannot be made or read.
        Conflict: another program listens on the port.
    """
    import uvicorn

    from graft_scheduler.gateway.app import build_app
    from graft_scheduler.gateway.quota import Quota
    from graft_scheduler.store.folder import FolderDepot

    folder = served_folder(settings)
    depot = FolderDepot.open(folder)
    quota = Quota(folder, depot.used_bytes(), settings.gateway_quota_bytes)
    config = uvicorn.Config(
        build_app(depot, tokens, quota), log_level="warning", timeout_graceful_shutdown=5, server_header=False
    )
    with _listen(settings.gateway_address, settings.gateway_port) as listener:
        announcer = threading.Thread(target=_announce, args=(settings, tokens), name="announcer", daemon=True)
        announcer.start()
        uvicorn.Server(config).run(sockets=[listener])


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=2048)
    except OSError as error:
        raise Conflict(
            f"the gateway cannot listen on {address}, port {port} ({error.strerror}); "
            "choose another with --port"
        ) from error


def _announce(settings: Settings, tokens: Sequence[str]) -> None:
    """Name this gateway in Redis as soon as that answers, and again if it forgets; other than that the newest
    gateway stays the one that is named.
    """
    from graft_scheduler.redis_connection import connect
    from graft_scheduler.store.finding import Announced, announce

    is_named = False
    with connect(settings.redis_url) as redis:
        while True:
            try:
                if not is_named or not redis.exists(keys.GATEWAY):
                    host = _host_for_others(settings, redis)
                    announce(redis, Announced(settings.gateway_port, host, tokens[0] if tokens else None))
                    is_named = True
            except _NotReachable as error:
                logger.warning("%s", error)
                return
            except (RedisError, OSError):
                pass  # it may not be up yet
            time.sleep(ANNOUNCE_SECONDS)


class _NotReachable(Exception):
    """Others could not come here."""


def _host_for_others(settings: Settings, redis: Redis) -> str | None:
    """As `Announced.host`: what is set, else where this machine is seen from Redis."""
    if settings.gateway_host is not None:
        return None if settings.gateway_host == SAME_AS_REDIS else settings.gateway_host
    redis.ping()
    parts = urlsplit(settings.redis_url)
    if parts.scheme == "unix" or is_loopback(parts.hostname or "localhost"):
        return None
    if is_loopback(settings.gateway_address):
        raise _NotReachable(
            "the gateway listens on this machine only and Redis is on another: the fleet is not told of it; "
            "set GRAFT_GATEWAY_ADDRESS and GRAFT_STORE_TOKEN, or GRAFT_STORE_URL on all machines"
        )
    with socket.create_connection((parts.hostname or "", parts.port or 6379), CONNECT_SECONDS) as probe:
        own, other = probe.getsockname()[0], probe.getpeername()[0]
    return None if own == other else str(own)  # Redis is on this machine, by its address in the network
