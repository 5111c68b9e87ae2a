"""A thread for each tracker and the queue to it; the job waits for it only at its end, and not long.

One thread for all would be simpler, but a server that does not answer would keep the figures from
the trackers that work.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module

from graft_scheduler.hyperparameters import Tracker
from graft_worker.tracking.figures import End, Point, TrackedJob
from graft_worker.tracking.trackers import Kind, explain

QUEUE_POINTS = 2048
"""Points that wait for a slow tracker: more than eight minutes of reports."""
CLOSE_SECONDS = 10.0
"""How long the end of a job waits for its trackers; an upload of some points takes one or two."""
IMPORTS = threading.Lock()
"""One at a time: trackers share packages, and two threads that import in a circle see halves of them."""
NETWORK_REMEDY = "check the network of the host"


class Feed:
    """Feeds one job's points to one tracker, from a thread that dies with the process."""

    def __init__(self, tracker: Tracker, kind: Kind, job: TrackedJob) -> None:
        self._tracker = tracker
        self._kind = kind
        self._job = job
        self._queue: queue.Queue[Point | End] = queue.Queue(QUEUE_POINTS)
        self._warnings: deque[str] = deque()
        self._has_dropped = False
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracking {tracker}", daemon=True)
        self._thread.start()

    def put(self, item: Point | End) -> None:
        """Queue `item`; when there is no room, the oldest goes."""
        while self._thread.is_alive():
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                self._drop_oldest()
            else:
                return

    def wait(self, seconds: float) -> None:
        """Give the tracker `seconds` to send what it has; afterwards it does nothing more."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._abandoned.set()
            self._warnings.append(
                f"tracking: {self._tracker} did not finish within {CLOSE_SECONDS:g} seconds; "
                f"the job goes on, and its last figures may be missing; {NETWORK_REMEDY}"
            )

    def warnings(self) -> Iterator[str]:
        """What went wrong since the last call."""
        while self._warnings:
            yield self._warnings.popleft()

    def _drop_oldest(self) -> None:
        try:
            self._queue.get_nowait()
        except queue.Empty:  # the thread was faster
            return
        if not self._has_dropped:
            self._has_dropped = True
            self._warnings.append(
                f"tracking: {self._tracker} is slower than the job; some figures are left out; "
                f"{NETWORK_REMEDY}"
            )

    def _work(self) -> None:
        """Serve the tracker to the end; whatever it raises ends this thread and nothing else."""
        try:
            self._serve()
        except BaseException as error:  # a library may even exit
            self._warnings.append(explain(self._tracker, self._kind, error))

    def _serve(self) -> None:
        if self._kind.module:
            with IMPORTS:
                import_module(self._kind.module)
        exporter = self._kind.open(self._job)
        end = None
        while end is None and not self._abandoned.is_set():
            points, end = self._take()
            exporter.log(points)
        if end is not None and not self._abandoned.is_set():
            exporter.finish(end)

    def _take(self) -> tuple[list[Point], End | None]:
        """Everything that is queued, at least one."""
        points: list[Point] = []
        item = self._queue.get()
        while isinstance(item, Point):
            points.append(item)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return points, None
        return points, item


def close(feeds: Sequence[Feed], end: End) -> None:
    """Give every tracker the end, and all of them together `CLOSE_SECONDS`."""
    for feed in feeds:
        feed.put(end)
    deadline = time.monotonic() + CLOSE_SECONDS
    for feed in feeds:
        feed.wait(max(0.0, deadline - time.monotonic()))
