"""Optuna's pruners that stop running trials."""

from __future__ import annotations

from optuna.pruners import BasePruner, MedianPruner, PatientPruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from graft_scheduler.studies.spec import PrunerName

MEDIAN_STARTUP = 4
"""So many whole trials come before any is compared with them."""
PATIENCE = 2
"""Evaluations without a better loss, for the patient pruner."""


def is_weak(study: Study, trial: FrozenTrial, name: PrunerName) -> bool:
    """Whether the median pruner, or the patient one, gives the trial up; the others wait for rungs."""
    pruner = _pruner(name)
    return pruner is not None and trial.last_step is not None and pruner.prune(study, trial)


def _pruner(name: PrunerName) -> BasePruner | None:
    median = MedianPruner(n_startup_trials=MEDIAN_STARTUP)
    match name:
        case PrunerName.MEDIAN:
            return median
        case PrunerName.PATIENT:
            return PatientPruner(median, patience=PATIENCE)
        case _:
            return None
