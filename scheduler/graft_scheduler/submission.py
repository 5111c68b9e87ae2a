"""From what a person wrote to what will run: everything checked, stored and written out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graft_scheduler import datasets
from graft_scheduler.basemodels import BaseModel, local_folder, read_base_model
from graft_scheduler.hub import fetch_hub_config
from graft_scheduler.jobs import CountJob, DataRef, ModelRef, TrainJob
from graft_scheduler.memory import estimate_peak
from graft_scheduler.store import Store


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that can be run from its record alone."""

    spec: TrainJob | CountJob
    estimate_bytes: int | None
    """Absent when nothing about the base can be known here: a hub id, and no hub."""


def check(job: TrainJob | CountJob) -> Submission:
    """The job with its defaults written out and its size estimated; nothing is stored.

    Raises:
        InvalidInput: the model or the data can never work; says which file, line or field.
        NotAllowed: the hub refuses the model.
    """
    if isinstance(job, CountJob):
        return Submission(job, job.limits.memory_bytes or job.memory_bytes)
    model, base = _locate(job.model)
    spec = job.model_copy(
        update={
            "model": model,
            "data": _locate_data(job.data),
            "epochs": 1.0 if job.epochs is None and job.steps is None else job.epochs,
        }
    )
    estimate = None if base is None else estimate_peak(base, spec).total_bytes
    return Submission(spec, job.limits.memory_bytes or estimate)


def prepare(job: TrainJob | CountJob, store: Store) -> Submission:
    """As `check`; and the model folder and the data set are in the store, named by digest."""
    checked = check(job)
    spec = checked.spec
    if isinstance(spec, TrainJob):
        stored = {"model": _store_model(spec.model, store), "data": _store_data(spec.data, store)}
        spec = spec.model_copy(update=stored)
    return Submission(spec, checked.estimate_bytes)


def _locate(model: ModelRef) -> tuple[ModelRef, BaseModel | None]:
    """The model as any host will find it, and what is known of it."""
    folder = local_folder(model.source)
    if folder is not None:
        absolute = folder.absolute()
        return model.model_copy(update={"source": str(absolute)}), read_base_model(absolute)
    found = fetch_hub_config(model.source, model.revision)
    if found is None:
        return model, None
    return model.model_copy(update={"revision": found.commit}), found.base


def _locate_data(data: DataRef) -> DataRef:
    path = Path(data.source).expanduser().absolute()
    summary = datasets.check(path, data.format)
    return data.model_copy(update={"source": str(path), "format": summary.format})


def _store_model(model: ModelRef, store: Store) -> ModelRef:
    folder = local_folder(model.source)
    return model if folder is None else model.model_copy(update={"digest": store.put_folder(folder)})


def _store_data(data: DataRef, store: Store) -> DataRef:
    files = datasets.find_files(Path(data.source))
    named = {"train.jsonl": files.train}
    if files.valid is not None:
        named["valid.jsonl"] = files.valid
    return data.model_copy(update={"digest": store.put_files(named)})
