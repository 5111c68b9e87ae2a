"""Trackio: a run named by title and id, in the host's Trackio folder or where its settings say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from graft_worker.tracking.figures import End, Point, TrackedJob


class TrackioExporter:
    """Trackio knows runs by name only, so the name holds the job's id."""

    def __init__(self, job: TrackedJob) -> None:
        import trackio

        _keep_stdout_clean()
        self._run = trackio.init(
            project=job.project,
            name=job.job if job.title == job.job else f"{job.title}-{job.job}",
            config={**job.settings, **job.tags},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def finish(self, end: End) -> None:
        if end.summary:
            self._run.log(dict(end.summary), step=end.step)
        self._run.finish()


def _keep_stdout_clean() -> None:
    """Trackio prints and cannot be told not to; stdout is for the job's caller.

    Redirecting stdout itself would catch what other threads print.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio":
            vars(module)["print"] = partial(print, file=sys.stderr)
