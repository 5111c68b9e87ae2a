"""Which settings matter, from the trials that were completed."""

from __future__ import annotations

import math
import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import TrialState

FEWEST_TRIALS = 10
"""Completed ones; what fewer say is chance."""
FEWEST_GOOD = 5
"""Trials that PED-ANOVA compares with all; Optuna's manual asks for as many."""
GOOD_SHARE = 0.1
"""Of the trials, that count as good where there are many; Optuna's default."""


def importances(study: Study) -> dict[str, float] | str:
    """Shares of 1 by setting, the largest first; or in words why there are none.

    Optuna's PED-ANOVA (Watanabe et al., IJCAI 2023): how far the settings of the good trials lie from
    those of all. Of several goals, good is what lies on the Pareto front or nearest to it.
    """
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    usable = [one.values for one in completed if all(math.isfinite(value) for value in one.values)]
    if len(usable) < FEWEST_TRIALS:
        return (
            f"it takes {FEWEST_TRIALS} completed trials to tell which settings matter, "
            f"and there are {len(usable)}"
        )
    if all(one == usable[0] for one in usable):
        return "all completed trials came to the same value, so no setting can be told to matter"
    share = max(GOOD_SHARE, FEWEST_GOOD / len(usable))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings(
            "ignore", message="Some regimes for parameter"
        )  # a setting that few trials have
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        found = get_param_importances(study, evaluator=evaluator, normalize=False)
    total = math.fsum(found.values())
    if not total > 0:
        return "the good trials have the same settings as all others, so none can be told to matter"
    return {name: value / total for name, value in sorted(found.items(), key=lambda one: -one[1])}
