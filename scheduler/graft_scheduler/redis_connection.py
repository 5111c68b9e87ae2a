"""Connections to Redis, with the time-outs that keep a half-open one from hanging anybody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from graft_scheduler.errors import GraftError, InvalidInput, Unreachable
from graft_scheduler.settings import hide_password

T = TypeVar("T")

OUTAGE_SECONDS = 120.0
"""How long one who follows a job or a study waits for Redis to come back."""
SOCKET_SECONDS = 15.0
"""Longest wait for one reply; blocking commands wait less than this."""


def connect(url: str, socket_seconds: float = SOCKET_SECONDS, *, retries: int = 1) -> Redis:
    """A client that connects at its first command.

    Without `retries` a command fails at the latest after `socket_seconds` to connect and as much for
    the answer; with them a connection that Redis closed meanwhile is made anew.

    Raises:
        InvalidInput: the URL has no scheme that Redis knows.
    """
    try:
        return Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=socket_seconds,
            socket_connect_timeout=min(5.0, socket_seconds),
            socket_keepalive=True,
            health_check_interval=10 if retries else 0,
            retry=Retry(NoBackoff(), retries),
        )
    except ValueError as error:
        raise InvalidInput(f"`redis_url` is {hide_password(url)!r}: {error}") from error


def patiently(ask: Callable[[], T]) -> T:
    """The answer, asked again for a while where Redis has gone away.

    Raises:
        Unreachable: it has not come back within `OUTAGE_SECONDS`.
    """
    deadline = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            return ask()
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turns the client's errors into ours, with the address and the remedy."""
    try:
        yield
    except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
        raise Unreachable(_unreachable(url, error)) from error
    except exceptions.ResponseError as error:
        raise GraftError(f"Redis at {hide_password(url)} refused: {error}") from error


def _unreachable(url: str, error: exceptions.RedisError) -> str:
    text = str(error).rstrip(".")
    remedy = "start it with `graft up`, or name another with --redis-url or GRAFT_REDIS_URL"
    if "65" in text and "No route to host" in text:
        # macOS refuses the local network to background programs until it is allowed (Apple TN3179).
        remedy = "allow this program the local network in System Settings, Privacy & Security"
    return f"Redis at {hide_password(url)} does not answer ({text}); {remedy}"
