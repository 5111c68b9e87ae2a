"""Which trial of a study is the best."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The whole trial with the smallest first objective that is within the limits."""
    whole = [one for one in trials if one.state is TrialState.COMPLETE and is_feasible(one)]
    return min(whole, key=lambda one: (one.values[0], one.number), default=None)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether the trial is within the limits."""
    return all(excess <= 0 for excess in trial.constraints.values())
