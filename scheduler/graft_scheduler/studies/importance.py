"""Which settings matter, from trials that can be compared."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

FEWEST_TRIALS = 10
"""That can be compared; what fewer say is chance."""
FEWEST_GOOD = 5
"""Trials that PED-ANOVA compares with all; Optuna's manual asks for as many."""
GOOD_SHARE = 0.1
"""Of the trials, that count as good where there are many; Optuna's default."""


@dataclass(frozen=True, slots=True)
class Importance:
    """What each setting decided."""

    shares: dict[str, float]
    """Of 1 by setting, the largest first."""
    trials: int
    """How many were compared."""
    step: int | None
    """By what they had reported there; absent: by what they came to."""


def importances(study: Study) -> Importance | str:
    """Which settings decided whether a trial was among the best; or in words why that is not known.

    Optuna's PED-ANOVA (Watanabe et al., IJCAI 2023): how far the settings of the good trials lie from
    those of all. Of several goals, good is what lies on the Pareto front or nearest to it. Where most
    trials are pruned, they are compared by what they reported at the step that most of them came to.
    """
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    usable = [one for one in completed if all(math.isfinite(value) for value in one.values)]
    step = None
    if len(usable) < FEWEST_TRIALS and len(study.directions) == 1:
        compared, at = _at_one_step(study)
        found = compared.get_trials(deepcopy=False)
        if len(found) > len(usable):
            study, usable, step = compared, found, at
    if len(usable) < FEWEST_TRIALS:
        return (
            f"it takes {FEWEST_TRIALS} trials that can be compared to tell which settings matter, "
            f"and there are {len(usable)}"
        )
    if all(one.values == usable[0].values for one in usable):
        return "all trials came to the same value, so no setting can be told to matter"
    shares = _shares(study, usable)
    if not shares:
        return "the good trials have the same settings as all others, so none can be told to matter"
    return Importance(shares, len(usable), step)


def _shares(study: Study, usable: Sequence[FrozenTrial]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings(
            "ignore", message="Some regimes for parameter"
        )  # a setting that few trials have
        evaluator = PedAnovaImportanceEvaluator(target_quantile=max(GOOD_SHARE, FEWEST_GOOD / len(usable)))
        found = get_param_importances(study, evaluator=evaluator, normalize=False)
    total = math.fsum(found.values())
    if not total > 0:
        return {}
    return {name: value / total for name, value in sorted(found.items(), key=lambda one: -one[1])}


def _at_one_step(study: Study) -> tuple[Study, int | None]:
    """The ended trials as if they had ended at one step: the last of those that most came to."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    counts = Counter(
        step for one in trials for step, value in one.intermediate_values.items() if math.isfinite(value)
    )
    compared = optuna.create_study(directions=study.directions)
    if not counts:
        return compared, None
    most = max(counts.values())
    # Of steps that equally many came to the last tells most.
    step = max(one for one, count in counts.items() if count == most)
    for one in trials:
        if math.isfinite(one.intermediate_values.get(step, math.inf)):
            value = one.intermediate_values[step]
            compared.add_trial(create_trial(value=value, params=one.params, distributions=one.distributions))
    return compared, step
