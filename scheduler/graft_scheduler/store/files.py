"""What a file server must do to hold blobs, and how it is asked: patiently, for several things at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from graft_scheduler.errors import Unreachable

CONNECT_PATIENCE_SECONDS, PATIENCE_SECONDS = 3.0, 30.0
"""How long a server may fail to answer before it counts as away: at first, and in the midst of work."""
PAUSE_SECONDS = 0.25
"""Between the first two tries; each next one waits twice as long."""
LANES = 4
"""Requests on their way at once for one blob: one alone waits for the network most of its time."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is there."""

    name: str
    """Its path from the root."""
    size: int
    modified_at: float
    """Seconds since 1970, by the server's clock."""


class Files(Protocol):
    """Files below one root on a server. Safe to use from several threads.

    Everything here raises `Unreachable` when no answer came, so that the call may be made again, `NotAllowed`
    when the server refuses who asks, and `StoreError` when it answers that it cannot; `FileNotFoundError`
    where a file is expected and not there.
    """

    @property
    def place(self) -> str:
        """The root, as a person names it; no secret in it."""
        ...

    @property
    def address(self) -> str:
        """The root as the same text for all who reach it by the same name."""
        ...

    def locate(self, name: str) -> str:
        """Where a person finds the file."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of the file; `None` when it is not there."""
        ...

    def modified_at(self, name: str) -> float | None:
        """Seconds since 1970, by the server's clock, exact to the second; `None` when it is not there."""
        ...

    def get(self, name: str) -> bytes:
        """The whole of a file that is small enough to be held in memory."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a file; it appears whole, in the place of an older one."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """As `put`, but one that is there already stays as it is."""
        ...

    def page(self, folder: str, after: str = "") -> list[Entry]:
        """The first files below a folder, at any depth, of those whose names come after `after`, in the order
        of their names; none when there are no more.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; not there is no error."""
        ...

    def renew(self, name: str) -> None:
        """The file counts as modified now."""
        ...

    def leftovers(self) -> list[Entry]:
        """Half-written files that no name leads to."""
        ...


def patiently(call: Callable[[], T], stopped: threading.Event | None = None) -> T:
    """The call's answer; where none comes it is made again, for long, unless nobody wants it any more.

    Raises:
        Unreachable: the last try's.
    """
    return _patiently(call, PATIENCE_SECONDS, stopped or threading.Event())


def at_first(call: Callable[[], T]) -> T:
    """As `patiently`, but a server that never answered is not waited for long."""
    return _patiently(call, CONNECT_PATIENCE_SECONDS, threading.Event())


def _patiently(call: Callable[[], T], patience_seconds: float, stopped: threading.Event) -> T:
    failing_since: float | None = None
    pause = PAUSE_SECONDS
    while True:
        try:
            return call()
        except Unreachable:
            now = time.monotonic()
            failing_since = failing_since if failing_since is not None else now
            if now + pause - failing_since > patience_seconds or stopped.wait(pause):
                raise
            pause *= 2


class Lanes:
    """Threads for the requests of one depot, always the same: memory that one has freed is used again."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(LANES, thread_name_prefix="lane")

    def each(self, work: Callable[[T, threading.Event], R], items: Iterable[T]) -> Iterator[R]:
        """The results in the order of the items, of which so many are worked on at once as there are lanes.

        Whoever ends early, by an error or because no more is wanted, sets the event that `work` is given.
        """
        stopped = threading.Event()
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(work, item, stopped))
                if len(waiting) == LANES:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stopped.set()
            for future in waiting:
                future.cancel()
