"""The trackers there are, and what to tell a person when one does not work."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graft_scheduler.hyperparameters import Tracker
from graft_worker.tracking.csv_file import CsvExporter
from graft_worker.tracking.figures import Exporter, TrackedJob
from graft_worker.tracking.mlflow_server import MlflowExporter
from graft_worker.tracking.tensorboard_events import TensorBoardExporter
from graft_worker.tracking.trackio_run import TrackioExporter
from graft_worker.tracking.wandb_run import WandbExporter

REASON_LENGTH = 300
"""Longest part of an error that is told."""
USERINFO = re.compile(r"(?<=://)[^/\s]\S*@")


@dataclass(frozen=True, slots=True)
class Kind:
    """How one tracker is opened, and what it needs."""

    open: Callable[[TrackedJob], Exporter]
    remedy: str
    module: str = ""
    """What it imports."""
    package: str = ""
    """What brings that module."""


TRACKERS: Mapping[Tracker, Kind] = {
    Tracker.CSV: Kind(CsvExporter, "see whether the host's disk is full"),
    Tracker.TENSORBOARD: Kind(
        TensorBoardExporter, "see whether the host's disk is full", "tensorboardX", "tensorboardX"
    ),
    Tracker.MLFLOW: Kind(
        MlflowExporter,
        "check `tracking.uri`, and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the host",
        "mlflow",
        "mlflow-skinny",
    ),
    Tracker.WANDB: Kind(
        WandbExporter,
        "set WANDB_API_KEY on the host or run `wandb login` there, or set WANDB_MODE=offline",
        "wandb",
        "wandb",
    ),
    Tracker.TRACKIO: Kind(
        TrackioExporter, "check TRACKIO_DIR, TRACKIO_SPACE_ID and HF_TOKEN on the host", "trackio", "trackio"
    ),
}


def explain(tracker: Tracker, kind: Kind, error: BaseException) -> str:
    """The warning for a tracker that has failed: the reason and the remedy, without credentials."""
    remedy = kind.remedy
    if isinstance(error, ImportError):
        missing = (error.name or kind.module).partition(".")[0]
        remedy = f"run `pip install {kind.package if missing == kind.module else missing}` on the host"
    return f"tracking: {tracker} gets no more of this job's figures: {_reason(error)}; {remedy}"


def _reason(error: BaseException) -> str:
    text = USERINFO.sub("", " ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= REASON_LENGTH else f"{text[:REASON_LENGTH]}..."
