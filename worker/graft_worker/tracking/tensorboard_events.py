"""TensorBoard event files in the attempt's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graft_worker.tracking.figures import End, Point, TrackedJob

FOLDER = "tensorboard"
FLUSH_SECONDS = 5
"""How far behind TensorBoard may show a running job."""


class TensorBoardExporter:
    """Hides what an earlier attempt wrote into the same folder after the step it is resumed from."""

    def __init__(self, job: TrackedJob) -> None:
        from tensorboardX import SummaryWriter

        purge = job.first_step + 1 if job.first_step else None
        self._writer = SummaryWriter(
            str(job.folder / FOLDER),
            purge_step=purge,
            flush_secs=FLUSH_SECONDS,
            filename_suffix=f".{job.first_step}",  # else it would overwrite a file of the same second
        )
        self._writer.add_text("settings", _table(job.settings), job.first_step)
        self._writer.add_text("tags", _table(job.tags), job.first_step)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._scalars(point)

    def finish(self, end: End) -> None:
        self._scalars(Point(end.step, end.summary))
        self._writer.close()

    def _scalars(self, point: Point) -> None:
        for name, value in point.values.items():
            self._writer.add_scalar(name, value, point.step, walltime=point.at)


def _table(values: Mapping[str, object]) -> str:
    """A table in Markdown, which TensorBoard shows as one."""
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join(("| name | value |", "| --- | --- |", *rows))
