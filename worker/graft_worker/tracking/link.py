"""A link that also tells a job's trackers what goes over it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from graft_scheduler.hyperparameters import Tracker
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Log, Planned, RunnerMessage, Start, TrainResult
from graft_scheduler.states import StopReason
from graft_worker.link import Link
from graft_worker.tracking.feed import Feed, close
from graft_worker.tracking.figures import End, Outcome, completed, describe, point_of
from graft_worker.tracking.trackers import TRACKERS, Kind

OUTCOMES = {
    StopReason.CANCEL: Outcome.CANCELLED,
    StopReason.YIELD: Outcome.INTERRUPTED,
    StopReason.SHRINK: Outcome.INTERRUPTED,
    StopReason.PAUSE: Outcome.INTERRUPTED,
    StopReason.PRUNE: Outcome.CANCELLED,
}


class TrackedLink:
    """Passes every message on to `inner`, and its figures to the trackers the job names.

    Nothing is opened before the job's `Planned`; nothing ever for a job that names no tracker.
    """

    def __init__(self, start: Start, inner: Link, kinds: Mapping[Tracker, Kind] = TRACKERS) -> None:
        self._start = start
        self._inner = inner
        self._kinds = _chosen(start, kinds)
        self._feeds: list[Feed] = []

    def report(self, message: RunnerMessage) -> None:
        self._inner.report(message)
        if isinstance(message, Planned):
            self._open(message)
        elif (point := point_of(message)) is not None:
            for feed in self._feeds:
                feed.put(point)
        self._warn()

    def stop_reason(self) -> StopReason | None:
        return self._inner.stop_reason()

    def shrink_requested(self) -> bool:
        return self._inner.shrink_requested()

    def finish(self, result: TrainResult) -> None:
        """The job is trained: give the trackers its result and wait, not for long, until they have it."""
        self._close(completed(result))

    def close(self) -> None:
        """The same for a job that was stopped or has failed; nothing after `finish`."""
        reason = self._inner.stop_reason()
        self._close(End(Outcome.FAILED if reason is None else OUTCOMES[reason]))

    def _open(self, planned: Planned) -> None:
        spec = self._start.spec
        if isinstance(spec, TrainJob):
            job = describe(self._start, spec, planned)
            self._feeds += [Feed(tracker, kind, job) for tracker, kind in self._kinds.items()]
            self._kinds = {}

    def _close(self, end: End) -> None:
        close(self._feeds, end)
        self._warn()
        self._feeds, self._kinds = [], {}

    def _warn(self) -> None:
        """Tell what failed, in the job's own thread: a link need not bear two."""
        for feed in self._feeds:
            for text in feed.warnings():
                self._inner.report(
                    Log(job=self._start.job, token=self._start.token, level="warning", text=text)
                )


@contextmanager
def tracked(start: Start, link: Link, kinds: Mapping[Tracker, Kind] = TRACKERS) -> Iterator[TrackedLink]:
    """The link to report on while the job runs; its trackers are closed at the end, whatever happens."""
    tracked_link = TrackedLink(start, link, kinds)
    try:
        yield tracked_link
    finally:
        tracked_link.close()


def _chosen(start: Start, kinds: Mapping[Tracker, Kind]) -> dict[Tracker, Kind]:
    """The trackers that the job names, each once."""
    named = start.spec.tracking.to if isinstance(start.spec, TrainJob) else ()
    return {tracker: kind for tracker, kind in kinds.items() if tracker in named}
