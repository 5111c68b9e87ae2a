"""A training job from its first line to its adapter, as a list of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graft_scheduler.hyperparameters import Batching, Method, Output, QuantizationConfig
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import auto_batch_rows
from graft_scheduler.memory import format_bytes
from graft_scheduler.messages import Done, Start, TrainResult
from graft_scheduler.recovery import MemoryLimit
from graft_scheduler.states import FailureClass, Phase, StopReason
from graft_worker.engine.adapters import Adapted, adapter_config, attach
from graft_worker.engine.batches import Arrays, build_alone, plan_order
from graft_worker.engine.below import LEAST_SHARE, TRAINING, VALIDATION, Below, Reuse
from graft_worker.engine.cards import CardMaker
from graft_worker.engine.checkpoints import CheckpointFolder, read_checkpoint
from graft_worker.engine.compilation import CompilePlan
from graft_worker.engine.cutting import exact_cutter, plan_cutter
from graft_worker.engine.dataset import Dataset, check_and_tell, tokenised
from graft_worker.engine.device import (
    budget_here,
    device_name,
    forget,
    hold_to,
    is_gpu,
    peak_bytes,
    prepared,
    versions,
)
from graft_worker.engine.evaluation import Evaluator, perplexity
from graft_worker.engine.fitting import Allowance, Fitted, describe, fit, refit
from graft_worker.engine.gradients import GradientOfSum
from graft_worker.engine.loading import Base, load_base
from graft_worker.engine.loop import Loop, Task
from graft_worker.engine.loss import Ending, TokenLoss, find_ending, token_loss
from graft_worker.engine.packing import PACKING_TOLERANCES, difference
from graft_worker.engine.ranks import check_can_cut, cut_ranks
from graft_worker.engine.reports import Reporter, Stopped
from graft_worker.engine.resident import Resident
from graft_worker.engine.rows import TokenRow, digest
from graft_worker.engine.saving import Result, Saved, save_adapter
from graft_worker.engine.trying import computing, tried, try_below
from graft_worker.link import JobError, Link
from graft_worker.probe import read_device
from graft_worker.tracking.link import TrackedLink, tracked

CHECKPOINTS = "checkpoints"
"""A folder of the attempt's own."""
SAMPLE_TOKENS = 64
"""The loss's kernels are compared on the beginning of one row, this long,"""
SAMPLE_ROWS = 64
"""and the row is one of the first, this many."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What a job trains, on what, and whom it tells."""

    spec: TrainJob
    base: Base
    dataset: Dataset
    adapted: Adapted
    reporter: Reporter
    resident: Resident


def train(start: Start, link: Link, resident: Resident | None = None) -> Done:
    """Do the training job in `start`; what it makes lies in `start.work_dir`.

    It finds in `resident` what jobs before it left there, and leaves what the next one may need.

    Raises:
        JobError: with the class that decides what follows.
    """
    spec = start.spec
    if not isinstance(spec, TrainJob):
        raise JobError(FailureClass.INTERNAL, f"a job of kind {spec.kind} is no training job")
    resident = resident or Resident()
    with (
        prepared(start.budget_bytes, start.wired_bytes),
        tracked(start, link) as tracking,
        resident.lent() as began,
    ):
        try:
            return _train(start, spec, tracking, Reporter(start, tracking, began), resident)
        except Stopped as stopped:
            return Done(job=start.job, token=start.token, stopped=stopped.reason)


def _train(
    start: Start, spec: TrainJob, tracking: TrackedLink, reporter: Reporter, resident: Resident
) -> Done:
    reporter.phase(Phase.PREPARING)
    data = Path(start.data_dir or spec.data.source)
    base = resident.base(spec, lambda: _load(start, spec))
    dataset = resident.dataset(spec, lambda: tokenised(spec, data, base, reporter))
    check_and_tell(dataset, spec, base, reporter)
    if spec.batch_size == "auto":
        rows = auto_batch_rows(dataset.train_bytes, spec.method, spec.max_length)
        spec = spec.model_copy(update={"batch_size": rows})
    adapted = attach(base.model, spec, base.compute_dtype)
    if spec.adapter.rank == "auto":
        check_can_cut(adapted.masters)
    fitted = fit(spec, base, dataset.train.rows, _allowance(start))
    job = _Job(spec, base, dataset, adapted, reporter, resident)
    task = _plan(job, fitted)
    cards = CardMaker(start, spec, base, dataset, adapted.size)
    checkpoints = _checkpoint_folder(start, task, job, cards)
    loop = Loop(task, checkpoints, reporter, start.trained_seconds, start.pause_step)
    _resume(start, loop, checkpoints)
    loop.settle()
    below = Below(adapted.frozen_blocks)
    ending = _ending(loop, resident)
    with below.passed(), token_loss(adapted, ending, below) as loss:
        facts = _facts(base, task, dataset, loss, fitted)
        if start.memory_limit is not None:
            facts["memory_limit"] = start.memory_limit.model_dump(mode="json")
        _announce(loop, loss, facts, reporter)  # if the trial kills the runner, its cut is known
        if fitted.plan is not None:
            hold_to(min(fitted.plan.estimate.peak_bytes, fitted.budget_bytes))
        if not fitted.is_ample:
            fitted = tried(loop, loss, fitted, reporter, resident)
            facts["memory"] = fitted.facts()
        if (again := refit(fitted)) is not None:
            reporter.log(f"{describe(fitted)}; it took {format_bytes(fitted.probed_bytes)}", "warning")
            task = _plan(job, again)
            loop.task = task
            hold_to(again.budget_bytes)
            facts["memory"] = again.facts() | {"probe_factor": fitted.probe_factor}
            fitted = again
            reporter.shrunk(loop.state.step, task.cut)
        reporter.log(describe(fitted), "warning" if fitted.is_tight else "info")
        loop.reuse = _reuse(job, loop, loss, below, fitted)
        evaluator = Evaluator(
            base.model,
            loss.evaluation,
            task.valid_rows,
            task.cutter.budget,
            lambda question, answer: resident.once((loss.kernel, *question), answer),
            loop.reuse,
        )
        stopped = _run(loop, loss, evaluator, reporter)
        saved = _choose(loop, checkpoints)
        cut = None
        if stopped is None and spec.adapter.rank == "auto":
            cut = cut_ranks(task, saved.parameters, loss, evaluator, reporter)
            facts |= {"rank": cut.rank, "kept_ranks": cut.kept, "uncut_loss": cut.full_loss}
    facts["below"] = {"blocks": len(below.blocks), "kept_bytes": resident.kept.held_bytes}
    facts["cut"] = loop.task.cut.model_dump(mode="json")  # it may have been shrunk
    result = _result(loop, saved.loss if cut is None else cut.loss, saved.step, facts, fitted)
    if stopped is not None:
        return Done(job=start.job, token=start.token, stopped=stopped, result=result)
    reporter.phase(Phase.SAVING)
    tracking.finish(result)
    made = Result(saved, cut, cards.of_adapter(result, saved.loss if cut is None else cut.loss))
    output = save_adapter(Path(start.work_dir), task, made, base, reporter)
    return Done(job=start.job, token=start.token, result=result, output_dir=str(output))


def _load(start: Start, spec: TrainJob) -> Base:
    folder = Path(start.model_dir) if start.model_dir else None
    if spec.method is Method.QLORA:
        return load_base(spec.model, folder, spec.precision, spec.quantization or QuantizationConfig())
    return load_base(spec.model, folder, spec.precision, must_be_whole=spec.method is Method.FULL)


def _allowance(start: Start) -> Allowance:
    """What is there, and what earlier jobs and attempts have taught."""
    learned = start.memory_limit or MemoryLimit()
    return Allowance(
        start.budget_bytes or read_device().budget_bytes,
        start.memory_factor,
        learned.micro_batch_tokens,
        learned.gradient_checkpointing,
    )


def _plan(job: _Job, fitted: Fitted) -> Task:
    spec, train_rows, valid_rows = job.spec, job.dataset.train.rows, job.dataset.valid.rows
    widths = [row.width for row in train_rows]
    order = plan_order(widths, spec.batch_rows, spec.epochs, spec.steps, spec.seed, spec.length_window)
    budget = budget_here(fitted.cut.micro_batch_tokens)
    batching = spec.compute.batching
    if batching is Batching.PACKED:
        packed = exact_cutter(train_rows, budget, batching)
        batching = _packed_or_not(job, packed.packed_width)
    compiled = spec.compute.compile and is_gpu()
    cutter = plan_cutter(train_rows, order, budget, batching, compiled=compiled)
    valid_rows = valid_rows[: spec.evaluation.rows]
    return Task(spec, job.adapted, train_rows, valid_rows, order, cutter, fitted.cut.gradient_checkpointing)


def _packed_or_not(job: _Job, width: int) -> Batching:
    """Packed, unless the model sees through the walls between rows in lines of `width`."""
    base = job.base
    apart = job.resident.once(
        ("apart", *job.adapted.kind, width), lambda: difference(base.model, base.vocabulary or 1, width)
    )
    if apart <= PACKING_TOLERANCES[base.compute_dtype]:
        return Batching.PACKED
    text = f"rows are not packed: packing would change what {base.config.get('model_type')} makes of them"
    job.reporter.log(f"{text} (by {apart:.1e}); they are computed in buckets of like length", "warning")
    return Batching.BUCKETED


def _sample(rows: Sequence[TokenRow]) -> Arrays:
    """The beginning of one of the first rows, all of it to be learned."""
    tokens = max((row.tokens[:SAMPLE_TOKENS] for row in rows[:SAMPLE_ROWS]), key=len)
    return build_alone(TokenRow(tokens, np.ones(len(tokens), dtype=np.bool_))).arrays


def _ending(loop: Loop, resident: Resident) -> Ending:
    """How the loss is computed; found out once for adapters of this kind."""
    task = loop.task
    asked = task.spec.compute.loss
    return resident.once(
        ("ending", *task.adapted.kind, asked),
        lambda: find_ending(task.adapted, loop.parameters, asked, _sample(task.train_rows)),
    )


def _reuse(job: _Job, loop: Loop, loss: TokenLoss, below: Below, fitted: Fitted) -> Reuse | None:
    """Keeps what the blocks `below` make of micro-batches, if that is worth its memory and some is left."""
    adapted, resident = job.adapted, job.resident
    spare_bytes = fitted.spare_bytes
    resident.kept.limit(spare_bytes)
    is_worth_it = len(below.blocks) >= LEAST_SHARE * len(adapted.model.layers)
    if not is_worth_it or not spare_bytes:
        return None
    sample = _sample(loop.task.train_rows)
    question = ("below", *adapted.kind, loss.kernel)
    token_bytes = resident.once(question, lambda: try_below(loop, loss, below, sample))
    if token_bytes is None:
        return None
    if fitted.plan is not None:
        hold_to(min(fitted.plan.estimate.peak_bytes + spare_bytes, fitted.budget_bytes))
    # A job alone sees its validation rows again and again, but each micro-batch of training only once.
    rows = {TRAINING, VALIDATION} if resident.is_shared else {VALIDATION}
    return Reuse(below, resident.kept, loss.evaluation, token_bytes, rows)


def _checkpoint_folder(start: Start, task: Task, job: _Job, cards: CardMaker) -> CheckpointFolder:
    return CheckpointFolder(
        Path(start.work_dir) / CHECKPOINTS,
        task.spec.checkpoint.keep,
        _agreement(task, job.base, job.resident),
        adapter_config(task.adapted, task.spec, job.base.quantization),
        keeps_best=task.spec.output is Output.BEST,
        describe=cards.of_checkpoint,
    )


def _agreement(task: Task, base: Base, resident: Resident) -> dict[str, Any]:
    """What has to be the same for a checkpoint to be gone on from; micro-batches need not be."""
    spec, valid = task.spec, task.valid_rows
    same = {"method", "quantization", "optimizer", "schedule", "batch_size", "length_window", "seed"}
    return {
        **spec.model_dump(mode="json", include=same),
        "learning_rate": spec.learning_rate,
        "adapter.rank": spec.adapter.trained_rank,
        "adapter.scale": spec.adapter.multiplier,
        "adapter.dropout": spec.adapter.dropout,
        "adapter.layers": len(task.adapted.blocks),
        "adapter.targets": list(task.adapted.modules),
        "output": spec.output,
        "precision": base.dtype,
        "steps": task.order.steps,
        "rows to train": task.order.total_rows,
        "training rows of digest": resident.once("training rows", lambda: digest(task.train_rows)),
        "validation rows of digest": resident.once(("validation rows", len(valid)), lambda: digest(valid)),
        "a base of digest": spec.model.digest or resident.once("base", lambda: base.fingerprint),
    }


def _resume(start: Start, loop: Loop, checkpoints: CheckpointFolder) -> None:
    if start.resume_dir is None:
        return
    folder = Path(start.resume_dir)
    snapshot = read_checkpoint(folder, checkpoints.agreement)
    try:
        loop.restore(snapshot)
    except ValueError as error:
        raise JobError(FailureClass.CONFIG, f"the checkpoint {folder} does not fit: {error}") from error
    if snapshot.best_file is not None:
        checkpoints.take_best(snapshot.best_file)


def _facts(base: Base, task: Task, dataset: Dataset, loss: TokenLoss, fitted: Fitted) -> dict[str, Any]:
    """Counts and choices worth keeping with the result."""
    adapted = task.adapted
    branches = {str(dtype).rpartition(".")[2] for name, dtype in adapted.dtypes.items() if "lora_" in name}
    return {
        "dtype": base.dtype,
        "adapter_dtype": branches.pop() if branches else None,
        "quantization": base.quantization,
        "loss_kernel": loss.kernel.value,
        "batching": task.cutter.batching.value,
        "cut": task.cut.model_dump(mode="json"),
        "device": device_name(),
        "versions": versions(),
        "trainable_parameters": adapted.size,
        "adapted_modules": list(adapted.modules),
        "adapted_layers": len(adapted.blocks),
        "data_format": dataset.format.value,
        "rows": dataset.counts(),
        "memory": fitted.facts(),
    }


def _announce(loop: Loop, loss: TokenLoss, facts: dict[str, Any], reporter: Reporter) -> None:
    reporter.ready()
    reporter.log(
        f"{facts['trainable_parameters']:,} trainable parameters on {facts['adapted_layers']} layers; "
        f"the base computes in {facts['dtype']} on {facts['device']}"
    )
    if loss.problem is not None:
        reporter.log(f"the loss is computed from all logits at once: {loss.problem}", "warning")
    rows = len(loop.task.train_rows), len(loop.task.valid_rows)
    steps = loop.task.order.steps
    reporter.planned(first_step=loop.state.step, steps=steps, rows=rows, facts=facts)


def _run(loop: Loop, loss: TokenLoss, evaluator: Evaluator, reporter: Reporter) -> StopReason | None:
    """Train; when told to stop, save what is there and say why."""
    spec, adapted = loop.task.spec, loop.task.adapted
    steps_left = loop.task.order.steps - loop.state.step
    plan = CompilePlan(steps_left) if spec.compute.compile else None
    gradient = GradientOfSum(adapted, loss.training, loop.layout, plan)
    forget()  # the gradient that was tried holds a copy of all that learns
    try:
        with computing(loop.task):
            loop.run(gradient, evaluator)
    except Stopped as stopped:
        loop.save()
        return stopped.reason
    if loop.state.stopped_early:
        patience = f"no better validation loss in {spec.evaluation.patience} evaluations"
        reporter.log(f"stopped early, after step {loop.state.step} of {loop.task.order.steps}: {patience}")
    return None


def _choose(loop: Loop, checkpoints: CheckpointFolder) -> Saved:
    """The last state, or that of the best validation loss where the job asks for it."""
    state = loop.state
    if loop.task.spec.output is Output.LAST or state.best_step in {None, state.step}:
        return Saved(state.step, loop.parameters, state.last_loss)
    assert state.best_step is not None
    best = checkpoints.best()
    return Saved(state.best_step, {name: best[name] for name in loop.parameters}, state.best_loss)


def _result(loop: Loop, loss: float | None, step: int, facts: dict[str, Any], fitted: Fitted) -> TrainResult:
    """`loss` is that of the adapter, whose state is that of `step`."""
    state, predicted = loop.state, fitted.predicted_bytes
    return TrainResult(
        steps=state.step,
        initial_loss=state.initial_loss,
        final_loss=state.last_loss,
        best_loss=state.best_loss,
        best_step=state.best_step,
        saved_step=step,
        perplexity=None if loss is None else perplexity(loss),
        stopped_early=state.stopped_early,
        skipped_steps=state.skipped_steps,
        training_seconds=loop.trained_seconds(),
        tokens=state.tokens,
        tokens_per_second=loop.work.tokens_per_second,
        padding_share=loop.work.padding_share,
        peak_memory_bytes=peak_bytes(),
        predicted_peak_bytes=None if predicted is None else predicted + facts["below"]["kept_bytes"],
        first_step_seconds=loop.first_step_seconds,
        facts=facts,
    )
