"""The training that a study is for: the best settings, for as long as they are worth."""

from __future__ import annotations

from collections.abc import Mapping

from graft_scheduler.jobs import TrainJob
from graft_scheduler.studies.space import Value, with_values
from graft_scheduler.studies.spec import StudySpec


def final_job(spec: StudySpec, name: str, values: Mapping[str, Value]) -> TrainJob:
    """The base job with these settings and the length of `spec.final`."""
    job, final = with_values(spec.base, values), spec.final
    length = {"epochs": job.epochs, "steps": job.steps}
    if final is not None and (final.epochs is not None or final.steps is not None):
        length = {"epochs": final.epochs, "steps": final.steps}
    labels = {**job.labels, "study": name, "final": "true"}
    return job.model_copy(
        update={**length, "name": f"{name}/final", "labels": labels, "submitter": spec.submitter}
    )
