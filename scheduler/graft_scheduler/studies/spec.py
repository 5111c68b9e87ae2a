"""What a study is: a base job, what is searched, how, and for how long. Pure; without Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from importlib.util import find_spec
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from graft_scheduler.complaints import explain
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import Spec
from graft_scheduler.jobs import TrainJob, current_user
from graft_scheduler.studies.space import Choices, Space, Value

MOST_GRID = 10_000
"""Points of a grid; more is a mistake."""


class SamplerName(StrEnum):
    """Who proposes settings; Optuna's samplers."""

    TPE = "tpe"
    """Tree-structured Parzen estimators, multivariate (Bergstra et al., NeurIPS 2011)."""
    RANDOM = "random"
    GRID = "grid"
    """Every combination once."""
    QMC = "qmc"
    """Quasi-Monte Carlo, a Sobol sequence (Bergstra and Bengio, JMLR 2012)."""
    GP = "gp"
    """A Gaussian process with log expected improvement."""
    CMAES = "cmaes"
    """Covariance matrix adaptation (Hansen, arXiv 1604.00772); of numbers only."""


class PrunerName(StrEnum):
    """Who stops weak trials early."""

    HALVING = "halving"
    """Asynchronous successive halving with promotion (Li et al., arXiv 1810.05934)."""
    HYPERBAND = "hyperband"
    """Several of these that begin to prune earlier or later (Li et al., JMLR 2018)."""
    MEDIAN = "median"
    """A trial worse than the median of those that came as far."""
    PATIENT = "patient"
    """The median, of trials that have not improved for a while."""
    NONE = "none"


class Objective(StrEnum):
    """What is made small."""

    LOSS = "validation_loss"
    PEAK_MEMORY = "peak_memory"
    SECONDS = "seconds"


_NEEDS: dict[SamplerName, tuple[str, ...]] = {
    SamplerName.GP: ("torch", "scipy"),
    SamplerName.CMAES: ("cmaes",),
}


class Constraints(Spec):
    """What a trial may take; one that takes more is infeasible, and not the best whatever its loss."""

    peak_memory_bytes: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)


class FinalTraining(Spec):
    """The best settings once more, for longer. Without a length the best trial's adapter is the result."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"`epochs` is {self.epochs:g} and `steps` is {self.steps}; give one of them")
        return self


class StudySpec(Spec):
    """A search for the best settings of one fine-tune."""

    version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=150)
    base: TrainJob
    space: Space
    trials: int = Field(ge=1, le=100_000)
    """How many are told in the end, pruned and failed ones too."""
    parallel: int = Field(default=4, ge=1, le=1000)
    """Trials that run or wait for a host at once."""
    seconds: float | None = Field(default=None, gt=0)
    """After this no trial begins."""
    sampler: SamplerName = SamplerName.TPE
    pruner: PrunerName = PrunerName.HALVING
    objectives: tuple[Objective, ...] = Field(default=(Objective.LOSS,), min_length=1)
    constraints: Constraints = Constraints()
    first: tuple[dict[str, Value], ...] = ()
    """Settings that are tried first, in this order."""
    final: FinalTraining | None = None
    """What is trained with the best settings in the end."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    submitter: str = Field(default_factory=lambda: current_user(), min_length=1, max_length=200)

    @model_validator(mode="after")
    def _fits_objectives(self) -> Self:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"`objectives` is {', '.join(self.objectives)}; each may be there once")
        if len(self.objectives) > 1 and self.pruner is not PrunerName.NONE:
            raise ValueError(
                f"`pruner` is {self.pruner.value}, and there are {len(self.objectives)} objectives: Optuna "
                "prunes by one only; set `pruner` to none"
            )
        if len(self.objectives) > 1 and self.final is not None:
            raise ValueError(
                f"`final` is set, and there are {len(self.objectives)} objectives: of a Pareto front none is "
                "the best; leave it out, and train the one you choose with `graft train`"
            )
        if self.pruner is not PrunerName.NONE and self.objectives[0] is not Objective.LOSS:
            raise ValueError(
                f"`pruner` is {self.pruner.value}, and a trial's {self.objectives[0].value} is known at its "
                "end only; set `pruner` to none"
            )
        return self

    @model_validator(mode="after")
    def _fits_sampler(self) -> Self:
        if self.sampler is SamplerName.GRID:
            points = self.grid_points
            if points > MOST_GRID:
                raise ValueError(f"the grid has {points} points, and at most {MOST_GRID} may be")
            if self.trials > points:
                raise ValueError(
                    f"`trials` is {self.trials}, and the grid has {points} points; give at most that"
                )
        if self.sampler is SamplerName.GP and self.pruner in {PrunerName.HALVING, PrunerName.HYPERBAND}:
            raise ValueError(
                f"`sampler` is gp, which learns from whole trials only, and `pruner` is {self.pruner.value}, "
                "which leaves few; set `pruner` to median or none"
            )
        if self.sampler is SamplerName.CMAES:
            names = [name for name, one in self.space.parameters.items() if isinstance(one, Choices)]
            if names:
                raise ValueError(
                    f"`sampler` is cmaes, which knows ranges only, and `{names[0]}` has values; use tpe"
                )
        return self

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        """Rungs and evaluations are to be at the same share of the same rows."""
        if "batch_size" in self.space.parameters and self.base.steps is not None:
            raise ValueError(
                f"`batch_size` is searched, and the job has {self.base.steps} steps: trials would see "
                "different numbers of rows; give `epochs` in the place of `steps`"
            )
        if "batch_size" in self.space.parameters and self.pruner in {PrunerName.MEDIAN, PrunerName.PATIENT}:
            raise ValueError(
                f"`batch_size` is searched, and `pruner` is {self.pruner.value}, which compares trials at "
                "the same step; use halving, hyperband or none"
            )
        return self

    @model_validator(mode="after")
    def _is_evaluated(self) -> Self:
        every, steps = self.base.evaluation.every, self.base.steps
        if self.pruner is not PrunerName.NONE and every is not None and steps is not None and every >= steps:
            raise ValueError(
                f"`pruner` is {self.pruner.value}, and the job evaluates every {every} of {steps} steps: "
                "nothing is known before its end; lower `evaluation.every`, or set `pruner` to none"
            )
        return self

    @property
    def grid_points(self) -> int:
        """How many combinations a grid has.

        Raises:
            ValueError: a range has no steps.
        """
        counts = []
        for name, one in self.space.parameters.items():
            if isinstance(one, Choices):
                counts.append(len(one.values))
            elif one.spacing is None:
                raise ValueError(
                    f"`sampler` is grid, and `{name}` is a range without steps; write "
                    f"`{one.low:g}..{one.high:g}/STEP` or its values"
                )
            else:
                counts.append(one.count)
        return math.prod(counts)


def read_study(settings: Mapping[str, Any]) -> StudySpec:
    """A study from its settings.

    Raises:
        InvalidInput: names the setting, the value and what would be right.
    """
    try:
        return StudySpec.model_validate(settings)
    except ValidationError as error:
        raise InvalidInput(explain(error, tuple(StudySpec.model_fields))) from error


def check_packages(sampler: SamplerName) -> None:
    """Whether the sampler can be had in this Python.

    Raises:
        InvalidInput: it needs packages that are not installed; names them.
    """
    missing = [name for name in _NEEDS.get(sampler, ()) if find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"the sampler {sampler.value} needs {' and '.join(missing)}, which the scheduler's Python does "
            f"not have: `pip install {' '.join(missing)}` there, or use tpe"
        )
