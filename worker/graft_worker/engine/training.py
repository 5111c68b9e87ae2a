"""A training job from its first line to its adapter, as a list of steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Done, Start, TrainResult
from graft_scheduler.states import FailureClass, Phase, StopReason
from graft_worker.engine.adapters import Adapted, adapter_config, attach, write_adapter
from graft_worker.engine.batches import plan_order
from graft_worker.engine.checkpoints import CheckpointFolder, read_checkpoint
from graft_worker.engine.dataset import Dataset, load_dataset
from graft_worker.engine.device import device_name, peak_bytes, prepared, versions
from graft_worker.engine.evaluation import perplexity
from graft_worker.engine.folders import write_whole
from graft_worker.engine.loading import Base, load_base
from graft_worker.engine.loop import Loop, Task
from graft_worker.engine.recompute import recomputed
from graft_worker.engine.reports import Reporter, Stopped
from graft_worker.engine.rows import digest
from graft_worker.link import JobError, Link

CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
"""Folders of the attempt's own folder."""


def train(start: Start, link: Link) -> Done:
    """Do the training job in `start`; what it makes lies in `start.work_dir`.

    Raises:
        JobError: with the class that decides what follows.
    """
    spec = start.spec
    if not isinstance(spec, TrainJob):
        raise JobError(FailureClass.INTERNAL, f"a job of kind {spec.kind} is no training job")
    reporter = Reporter(start, link)
    with prepared(start.budget_bytes):
        try:
            return _train(start, spec, reporter)
        except Stopped as stopped:
            return Done(job=start.job, token=start.token, stopped=stopped.reason)


def _train(start: Start, spec: TrainJob, reporter: Reporter) -> Done:
    reporter.phase(Phase.PREPARING)
    base = load_base(spec.model, Path(start.model_dir) if start.model_dir else None, spec.precision)
    dataset = load_dataset(spec, Path(start.data_dir or spec.data.source), base, reporter)
    adapted = attach(base.model, spec.adapter, spec.seed)
    task = _plan(spec, adapted, dataset)
    checkpoints = _checkpoint_folder(start, task, base)
    loop = Loop(task, checkpoints, reporter, start.trained_seconds)
    _resume(start, loop, checkpoints.agreement)
    facts = _facts(base, task, dataset)
    _announce(loop, facts, reporter)
    stopped = _run(loop, reporter)
    result = _result(loop, facts)
    if stopped is not None:
        return Done(job=start.job, token=start.token, stopped=stopped, result=result)
    reporter.phase(Phase.SAVING)
    output = _save_adapter(start, loop)
    return Done(job=start.job, token=start.token, result=result, output_dir=str(output))


def _plan(spec: TrainJob, adapted: Adapted, dataset: Dataset) -> Task:
    train_rows, valid_rows = dataset.train.rows, dataset.valid.rows
    order = plan_order(len(train_rows), spec.batch_size, spec.epochs, spec.steps, spec.seed)
    return Task(spec, adapted, train_rows, valid_rows[: spec.evaluation.rows], order)


def _checkpoint_folder(start: Start, task: Task, base: Base) -> CheckpointFolder:
    return CheckpointFolder(
        Path(start.work_dir) / CHECKPOINTS,
        task.spec.checkpoint.keep,
        _agreement(task, base),
        adapter_config(task.adapted, task.spec.adapter, task.spec.model),
    )


def _agreement(task: Task, base: Base) -> dict[str, Any]:
    """What has to be the same for a checkpoint to be gone on from; micro-batches need not be."""
    spec = task.spec
    settings = spec.model_dump(mode="json", include={"method", "optimizer", "schedule", "batch_size", "seed"})
    return {
        **settings,
        "adapter.rank": spec.adapter.rank,
        "adapter.scale": spec.adapter.multiplier,
        "adapter.dropout": spec.adapter.dropout,
        "adapter.layers": len(task.adapted.blocks),
        "adapter.targets": list(task.adapted.modules),
        "precision": str(base.dtype),
        "steps": task.order.steps,
        "rows to train": task.order.total_rows,
        "training rows of digest": digest(task.train_rows),
        "a base of digest": spec.model.digest or base.fingerprint,
    }


def _resume(start: Start, loop: Loop, agreement: Mapping[str, Any]) -> None:
    if start.resume_dir is None:
        return
    folder = Path(start.resume_dir)
    snapshot = read_checkpoint(folder, agreement)
    try:
        loop.restore(snapshot)
    except ValueError as error:
        raise JobError(FailureClass.CONFIG, f"the checkpoint {folder} does not fit: {error}") from error


def _facts(base: Base, task: Task, dataset: Dataset) -> dict[str, Any]:
    """Counts and choices worth keeping with the result."""
    return {
        "dtype": base.dtype,
        "device": device_name(),
        "versions": versions(),
        "trainable_parameters": sum(array.size for array in task.adapted.parameters().values()),
        "adapted_modules": list(task.adapted.modules),
        "adapted_layers": len(task.adapted.blocks),
        "data_format": dataset.format.value,
        "rows": dataset.counts(),
    }


def _announce(loop: Loop, facts: dict[str, Any], reporter: Reporter) -> None:
    reporter.ready()
    reporter.log(
        f"{facts['trainable_parameters']:,} trainable parameters on {facts['adapted_layers']} layers; "
        f"the base computes in {facts['dtype']} on {facts['device']}"
    )
    rows = len(loop.task.train_rows), len(loop.task.valid_rows)
    steps = loop.task.order.steps
    reporter.planned(first_step=loop.state.step, steps=steps, rows=rows, facts=facts)


def _run(loop: Loop, reporter: Reporter) -> StopReason | None:
    """Train; when told to stop, save what is there and say why."""
    blocks = loop.task.adapted.blocks if loop.task.spec.gradient_checkpointing else ()
    try:
        with recomputed(blocks):
            loop.run()
    except Stopped as stopped:
        loop.save()
        return stopped.reason
    return None


def _result(loop: Loop, facts: dict[str, Any]) -> TrainResult:
    state = loop.state
    return TrainResult(
        steps=state.step,
        initial_loss=state.initial_loss,
        final_loss=state.last_loss,
        best_loss=state.best_loss,
        best_step=state.best_step,
        perplexity=None if state.last_loss is None else perplexity(state.last_loss),
        training_seconds=loop.trained_seconds(),
        tokens=state.tokens,
        tokens_per_second=loop.step_tokens / loop.step_seconds if loop.step_seconds else None,
        peak_memory_bytes=peak_bytes(),
        first_step_seconds=loop.first_step_seconds,
        facts=facts,
    )


def _save_adapter(start: Start, loop: Loop) -> Path:
    """The adapter of the last step."""
    spec = loop.task.spec
    config = adapter_config(loop.task.adapted, spec.adapter, spec.model)
    folder = Path(start.work_dir) / ADAPTER
    write_whole(folder, lambda aside: write_adapter(aside, loop.parameters, config))
    return folder
