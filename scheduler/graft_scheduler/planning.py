"""How a job's steps are cut into micro-batches: as fast as a budget of memory allows.

The batch is what the optimizer sees, and never changes. How many of its tokens are computed at
once, and whether activations are computed twice, changes time and memory only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.hyperparameters import Method
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import Lengths
from graft_scheduler.memory import Backend, MemoryEstimate, estimate_peak
from graft_scheduler.memory.cuts import HEIGHTS, OVERHEAD_TOKENS, padded

CPU_TOKENS = 256
"""Computed at once on the CPU, where more is no faster: a small model needs a second for them, and a
stop must wait as long."""
MAX_TOKENS = 16_384
"""More at once make no GPU faster."""
RECOMPUTE_COST = 1.5
"""With gradient checkpointing the forward pass is made twice, of what were a forward and a backward
pass through frozen weights;"""
RECOMPUTE_COST_FULL = 4 / 3
"""or of three passes' worth, where weights have gradients too."""


@dataclass(frozen=True, slots=True)
class StepCut:
    """How a step is computed."""

    micro_batch_tokens: int
    """Most padded tokens at once; a longer row is computed alone."""
    gradient_checkpointing: bool


@dataclass(frozen=True, slots=True)
class CutPlan:
    """A cut with what it takes."""

    cut: StepCut
    estimate: MemoryEstimate
    peak_bytes: int
    """The estimate as corrected by what was measured before."""
    relative_time: float
    """Of a step, in tokens through both passes; comparable between cuts of one job on one backend."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be cut, and for what."""

    model: BaseModel
    job: TrainJob
    lengths: Lengths
    backend: Backend
    factor: float = 1.0
    """Measured over predicted peaks of jobs like this one."""
    most_tokens: int | None = None
    """No cut may compute more at once: learned from a failure."""
    must_recompute: bool = False


def fastest_cut(question: Question, budget_bytes: int | None = None) -> CutPlan | None:
    """The fastest cut whose peak fits into the budget; none where not even the smallest does.

    Without a budget, the fastest of all.
    """
    fitting: list[CutPlan] = []
    for recomputes in _recompute_options(question):
        sizes = _token_options(question)
        plan = _largest_fitting(question, sizes, recomputes, budget_bytes)
        if plan is not None:
            fitting.append(plan)
            if not recomputes and plan.cut.micro_batch_tokens == sizes[-1]:
                break
    return min(fitting, key=lambda plan: (plan.relative_time, plan.peak_bytes), default=None)


def smallest_cut(question: Question) -> CutPlan:
    """The cut with the lowest peak: a row at a time, with gradient checkpointing where that is left to us.

    A whole step at once may take less, as there is no sum of gradients beside its own; that is known
    where the rows are.
    """
    sizes, recomputes = _token_options(question), _recompute_options(question)[-1]
    tried = {sizes[0], sizes[-1]} if question.lengths.is_exact else {sizes[0]}
    plans = [_plan(question, StepCut(size, recomputes)) for size in sorted(tried)]
    return min(plans, key=lambda plan: plan.peak_bytes)


def _recompute_options(question: Question) -> Sequence[bool]:
    asked = question.job.gradient_checkpointing
    if question.must_recompute:  # whatever the job says: it ran out of memory without
        return (True,)
    return (False, True) if asked is None else (asked,)


def _token_options(question: Question) -> list[int]:
    """Micro-batches to choose from, in rising order."""
    job, longest = question.job, padded(question.lengths.longest, question.backend)
    most = question.most_tokens
    if job.micro_batch_tokens is not None:
        asked = job.micro_batch_tokens if most is None else min(job.micro_batch_tokens, most)
        return [asked]
    limit = CPU_TOKENS if question.backend is Backend.CPU else MAX_TOKENS
    limit = max(longest, min(limit, longest * job.batch_rows, most or limit))
    sizes = {longest * rows for rows in HEIGHTS if longest * rows <= limit}
    if question.backend is Backend.CPU:
        sizes.add(limit)
    return sorted(sizes)


def _largest_fitting(
    question: Question, sizes: Sequence[int], recomputes: bool, budget_bytes: int | None
) -> CutPlan | None:
    """By bisection: a peak never falls when more is at once, but for a whole step, tried first."""
    largest = _plan(question, StepCut(sizes[-1], recomputes))
    if budget_bytes is None or largest.peak_bytes <= budget_bytes:
        return largest
    plans: dict[int, CutPlan] = {}

    def peak(size: int) -> int:
        plans[size] = _plan(question, StepCut(size, recomputes))
        return plans[size].peak_bytes

    fitting = bisect_right(sizes, budget_bytes, hi=len(sizes) - 1, key=peak)
    return plans[sizes[fitting - 1]] if fitting else None


def _plan(question: Question, cut: StepCut) -> CutPlan:
    job = with_cut(question.job, cut)
    found = question.lengths
    estimate = estimate_peak(question.model, job, found.longest, question.backend, found.shortest)
    return CutPlan(
        cut, estimate, round(estimate.total_bytes * question.factor), _relative_time(question, cut)
    )


def with_cut(job: TrainJob, cut: StepCut) -> TrainJob:
    """The job, cut in this way."""
    return job.model_copy(
        update={
            "micro_batch_tokens": cut.micro_batch_tokens,
            "gradient_checkpointing": cut.gradient_checkpointing,
        }
    )


def _relative_time(question: Question, cut: StepCut) -> float:
    job, mean = question.job, question.lengths.mean
    tokens = job.batch_rows * mean
    batches = max(1, ceil(tokens / max(cut.micro_batch_tokens, mean)))
    factor = 1.0
    if cut.gradient_checkpointing:
        factor = RECOMPUTE_COST_FULL if job.method is Method.FULL else RECOMPUTE_COST
    return tokens * factor + batches * OVERHEAD_TOKENS[question.backend]
