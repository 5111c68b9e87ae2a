"""The memory trial: the dearest micro-batch and evaluation of a job, computed once before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import mlx.core as mx

from graft_worker.engine.activations import frugal_activations
from graft_worker.engine.batches import Arrays, MicroBatch, build
from graft_worker.engine.below import BELOW, Below
from graft_worker.engine.device import is_gpu, is_out_of_memory, peak_of
from graft_worker.engine.dropout import micro_batch_key
from graft_worker.engine.evaluation import Evaluator
from graft_worker.engine.fitting import Fitted, correct
from graft_worker.engine.gradients import GradientOfSum
from graft_worker.engine.loop import Loop, Task
from graft_worker.engine.loss import TokenLoss, loss_and_gradient
from graft_worker.engine.recompute import recomputed
from graft_worker.engine.reports import Reporter
from graft_worker.engine.resident import Resident

GPU_TRIES = 3
"""How often the dearest micro-batch is tried on a GPU, which lags behind a little more or less each time:
single peaks of one micro-batch lay up to 10% apart on an H100."""


def tried(loop: Loop, loss: TokenLoss, fitted: Fitted, reporter: Reporter, resident: Resident) -> Fitted:
    """`fitted` in the light of what the dearest micro-batch and evaluation take; nothing is learned.

    A job that holds and computes arrays of the same shapes as one before it is not tried again.
    """
    task = loop.task
    longest = sorted(range(len(task.train_rows)), key=lambda row: task.train_rows[row].width)
    batches = task.cutter.cut(longest[-task.spec.batch_rows :])
    dearest = max(batches, key=lambda one: (one.height * one.width, one.width))
    question = (
        "tried",
        *task.adapted.kind,
        *sorted(task.adapted.shapes.items()),
        bool(task.adapted.dropouts),
        task.spec.optimizer.name,
        loss.kernel,
        dearest,
        task.recomputes,
        task.cutter.budget,
        len(task.valid_rows),
    )
    held = resident.kept.held_bytes  # counted by itself

    def measure() -> tuple[int, int]:
        in_training, in_evaluation = _peaks(loop, loss, dearest, reporter)
        return in_training - held, in_evaluation - held

    in_training, in_evaluation = resident.once(question, measure)
    return correct(fitted, in_training, in_evaluation, dearest.height, dearest.width, min(2, len(batches)))


@contextmanager
def computing(task: Task) -> Iterator[None]:
    """The model as it is while gradients are taken."""
    blocks = task.adapted.blocks if task.recomputes else ()
    with recomputed(blocks), frugal_activations(task.adapted.model):
        yield


def try_below(loop: Loop, loss: TokenLoss, below: Below, sample: Arrays) -> float | None:
    """Bytes a token that the blocks `below` make; nothing where loss or gradient differ in any bit without
    them.
    """
    adapted, parameters = loop.task.adapted, loop.parameters
    try:
        hidden = below.outputs(lambda: loss.evaluation(sample))
        if hidden is None:
            return None
        expected = loss_and_gradient(loss.training, adapted, parameters, sample)
        found = loss_and_gradient(loss.training, adapted, parameters, {**sample, BELOW: hidden})
    except Exception as error:  # a model's own code, called in another way than it was written for
        if is_out_of_memory(error):
            raise
        return None
    is_same = all(mx.array_equal(one, other).item() for one, other in zip(expected, found, strict=True))
    return hidden.nbytes / sample["inputs"].size if is_same else None


def _peaks(loop: Loop, loss: TokenLoss, dearest: MicroBatch, reporter: Reporter) -> tuple[int, int]:
    """Bytes that MLX's arrays take at most in a gradient and in an evaluation, with all that is held."""
    task = loop.task
    batch = build(task.train_rows, dearest)
    reporter.check_stop()
    with computing(task):
        gradient = GradientOfSum(task.adapted, loss.training, loop.layout)
        key = micro_batch_key(task.spec.seed, 0, 0)
        compute = partial(_compute, gradient, loop, batch.arrays, key)
        if is_gpu():
            compute()  # the first time kernels are made, and nothing runs ahead
        in_training = max(peak_of(compute) for _ in range(GPU_TRIES if is_gpu() else 1))
    task.adapted.put(loop.parameters)
    reporter.check_stop()
    evaluator = Evaluator(task.adapted.model, loss.evaluation, task.valid_rows, task.cutter.budget)
    return in_training, peak_of(evaluator.dearest)


def _compute(gradient: GradientOfSum, loop: Loop, arrays: Arrays, key: mx.array) -> None:
    mx.eval(gradient(loop.kept, arrays, key))
