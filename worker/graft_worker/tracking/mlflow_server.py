"""MLflow: an experiment named by the project, a run for each job, found again by its tag."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from graft_worker.tracking.figures import End, Outcome, Point, TrackedJob

HOST_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""MLflow itself waits 120 seconds and tries 7 times; by then the queue would be full."""
BATCH_METRICS = 1000
BATCH_PARAMS = 100
BATCH_TAGS = 100
VALUE_LENGTH = 5000
"""What a server takes at once."""
STATUS = {
    Outcome.COMPLETED: "FINISHED",
    Outcome.INTERRUPTED: "SCHEDULED",
    Outcome.CANCELLED: "KILLED",
    Outcome.FAILED: "FAILED",
}


class MlflowExporter:
    """Talks through a client of its own: never through MLflow's active run."""

    def __init__(self, job: TrackedJob) -> None:
        for name, value in HOST_DEFAULTS.items():
            os.environ.setdefault(name, value)
        if job.uri is None and "MLFLOW_TRACKING_URI" not in os.environ:
            raise ValueError("`tracking.uri` is absent and the host sets no MLFLOW_TRACKING_URI")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=job.uri)
        experiment = _find_experiment(self._client, job.project)
        self._run = self._find_run(experiment, job) or self._create_run(experiment, job)

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(point.at * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for first in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(self._run, metrics=metrics[first : first + BATCH_METRICS])

    def finish(self, end: End) -> None:
        if end.summary:
            self.log([Point(end.step, end.summary)])
        if end.outcome is Outcome.INTERRUPTED:
            self._client.update_run(self._run, status=STATUS[end.outcome])
        else:
            self._client.set_terminated(self._run, status=STATUS[end.outcome])

    def _find_run(self, experiment: str, job: TrackedJob) -> str | None:
        """The run of an earlier attempt, running again."""
        found = self._client.search_runs([experiment], f"tags.`graft.job` = '{job.job}'", max_results=1)
        if not found:
            return None
        run: str = found[0].info.run_id
        self._client.update_run(run, status="RUNNING")
        return run

    def _create_run(self, experiment: str, job: TrackedJob) -> str:
        from mlflow.entities import Param

        tags = dict(list(_named(job.tags).items())[:BATCH_TAGS])
        created = self._client.create_run(experiment, run_name=job.title, tags=tags)
        run: str = created.info.run_id
        params = [Param(name, value) for name, value in _named(job.settings).items()]
        for first in range(0, len(params), BATCH_PARAMS):
            self._client.log_batch(run, params=params[first : first + BATCH_PARAMS])
        return run


def _find_experiment(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another job may have created it in between
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return str(found.experiment_id)


def _named(values: Mapping[str, object]) -> dict[str, str]:
    """`values` with names and lengths that MLflow takes."""
    return {re.sub(r"[^\w\-. /]", "_", name): str(value)[:VALUE_LENGTH] for name, value in values.items()}
