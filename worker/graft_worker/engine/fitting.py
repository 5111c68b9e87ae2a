"""How steps are cut on this host: planned from the estimate, tried, and planned again if it was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graft_scheduler import lengths
from graft_scheduler.basemodels import read_base_model
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import estimate_micro_batch, format_bytes
from graft_scheduler.planning import CutPlan, Question, StepCut, fastest_cut, smallest_cut, with_cut
from graft_worker.engine.device import backend
from graft_worker.engine.loading import Base
from graft_worker.engine.rows import TokenRow

UNKNOWN_TOKENS = 2048
"""Computed at once where a model's files do not tell what it is."""
AMPLE_SHARE = 0.25
"""A job that is expected to take no more of its budget is not tried first; it would take seconds from
small jobs, and no estimate of a known model is wrong by that much."""
CLOSE = 1.02
"""A measured peak within this factor of the budget's is taken to fit: it is measured, not guessed."""

DOUBT = 1.1
"""Peaks of jobs that were not tried are within a tenth of the estimate."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What the dearest micro-batch took, measured before the first step."""

    measured_bytes: int
    estimated_bytes: int
    """For that very micro-batch."""
    corrected_bytes: int
    """The peak of the whole job, in the light of it."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A cut, and what it is expected to take."""

    cut: StepCut
    plan: CutPlan | None
    """Absent where nothing could be estimated."""
    question: Question | None
    budget_bytes: int
    probed: Probed | None = None

    @property
    def predicted_bytes(self) -> int | None:
        """The peak of MLX's arrays as estimated, before any correction."""
        return None if self.plan is None else self.plan.estimate.peak_bytes

    @property
    def probed_bytes(self) -> int:
        """What was measured; 0 without."""
        return 0 if self.probed is None else self.probed.measured_bytes

    @property
    def probe_factor(self) -> float:
        """Measured over estimated; 1 without a measurement."""
        return (
            1.0 if self.probed is None else self.probed.measured_bytes / max(1, self.probed.estimated_bytes)
        )

    @property
    def is_ample(self) -> bool:
        """There is several times what is expected: nothing needs to be tried."""
        return self.plan is not None and self.plan.peak_bytes <= self.budget_bytes * AMPLE_SHARE

    @property
    def is_tight(self) -> bool:
        """Even the smallest cut is expected to take more than there is."""
        return self.plan is not None and self.plan.peak_bytes > self.budget_bytes

    @property
    def spare_bytes(self) -> int:
        """What the job is not expected to need of its budget: with less certainty if it was not tried."""
        if self.plan is None:
            return 0
        needed = self.plan.peak_bytes * DOUBT
        if self.probed is not None:
            needed = max(self.plan.peak_bytes, self.probed.corrected_bytes)
        return max(0, self.budget_bytes - round(needed))

    def facts(self) -> dict[str, object]:
        """For the record of the job."""
        found: dict[str, object] = {
            "budget_bytes": self.budget_bytes,
        }
        if self.plan is not None:
            found["predicted_parts"] = dict(self.plan.estimate.parts)
            found["predicted_moment"] = self.plan.estimate.moment
            found["doubt"] = self.plan.estimate.doubt
        if self.probed is not None:
            found["probed_peak_bytes"] = self.probed.measured_bytes
            found["corrected_peak_bytes"] = self.probed.corrected_bytes
        return found


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a job may take here, and what is known of ones like it."""

    budget_bytes: int
    factor: float = 1.0
    most_tokens: int | None = None
    must_recompute: bool = False


def fit(spec: TrainJob, base: Base, rows: Sequence[TokenRow], allowance: Allowance) -> Fitted:
    """The fastest cut that is expected to fit; the smallest where none is."""
    try:
        model = read_base_model(base.folder)
    except InvalidInput:
        cut = StepCut(spec.micro_batch_tokens or UNKNOWN_TOKENS, bool(spec.gradient_checkpointing))
        return Fitted(cut, None, None, allowance.budget_bytes)
    found = replace(lengths.of_rows((row.width + 1 for row in rows), spec.max_length), is_exact=True)
    question = Question(
        model, spec, found, backend(), allowance.factor, allowance.most_tokens, allowance.must_recompute
    )
    return _answer(question, allowance.budget_bytes)


def correct(
    fitted: Fitted, gradient_bytes: int, evaluation_bytes: int, rows: int, width: int, held: int
) -> Fitted:
    """What a micro-batch of this shape and an evaluation took, beside what was expected of them.

    `held` is how many gradients lie in memory in the middle of a step: the probe itself had one.
    """
    if fitted.plan is None or fitted.question is None:
        return fitted
    model, here = fitted.question.model, fitted.question.backend
    job = with_cut(fitted.question.job, fitted.cut)
    expected = estimate_micro_batch(model, job, here, rows, width)
    factor = gradient_bytes / max(1, expected)
    in_step = round(estimate_micro_batch(model, job, here, rows, width, held) * factor)
    others = max(evaluation_bytes, fitted.plan.estimate.untried_bytes)
    return replace(fitted, probed=Probed(gradient_bytes, expected, max(in_step, others)))


def refit(fitted: Fitted) -> Fitted | None:
    """The cut to take instead, now that one was tried; none if the first one holds."""
    probed, question = fitted.probed, fitted.question
    if probed is None or question is None:
        return None
    if probed.corrected_bytes <= fitted.budget_bytes * CLOSE:
        return None
    factor = question.factor * max(fitted.probe_factor, 1.0)
    again = _answer(replace(question, factor=factor), fitted.budget_bytes)
    return None if again.cut == fitted.cut else again


def describe(fitted: Fitted) -> str:
    """What was chosen, for the job's log."""
    cut, budget = fitted.cut, format_bytes(fitted.budget_bytes)
    recomputes = "with" if cut.gradient_checkpointing else "without"
    text = (
        f"at most {cut.micro_batch_tokens} tokens are computed at once, {recomputes} gradient checkpointing"
    )
    if fitted.plan is None:
        return f"{text}; how much memory that takes is not known for this model"
    needed = format_bytes(fitted.plan.peak_bytes)
    doubt = f" ({fitted.plan.estimate.doubt})" if fitted.plan.estimate.doubt else ""
    if fitted.is_tight:
        return f"{text}: about {needed} are needed, and only {budget} are there; no cut is smaller{doubt}"
    return f"{text}: about {needed} of {budget}{doubt}"


def _answer(question: Question, budget_bytes: int) -> Fitted:
    plan = fastest_cut(question, budget_bytes) or smallest_cut(question)
    return Fitted(plan.cut, plan, question, budget_bytes)
