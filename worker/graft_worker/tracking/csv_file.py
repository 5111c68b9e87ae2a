"""`metrics.csv` in the attempt's folder: a row for every report, there as soon as it is written."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from graft_worker.tracking.figures import METRICS, End, Point, TrackedJob

FILE = "metrics.csv"


class CsvExporter:
    """Goes on with the file of an earlier attempt, if it has the same folder."""

    def __init__(self, job: TrackedJob) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        path = job.folder / FILE
        if path.exists():
            _keep_until(path, job.first_step)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, ("step", *METRICS))
        if self._file.tell() == 0:
            self._rows.writeheader()
            self._file.flush()

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._rows.writerow({"step": point.step, **point.values})
            self._file.flush()

    def finish(self, end: End) -> None:
        self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Take out what a killed attempt wrote after the checkpoint, and a line it did not finish."""
    lines = path.read_bytes().decode().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if not (first := line.partition(",")[0]).isdigit() or int(first) <= step]
    path.write_bytes("".join(kept).encode())
