"""What an ended job says of its trial, in Optuna's terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import TrainResult
from graft_scheduler.records import JobRecord
from graft_scheduler.states import FailureClass, JobState
from graft_scheduler.studies.spec import Objective, StudySpec

JOB = "job"
WHY = "why"
"""User attribute: why a trial was pruned, failed or is infeasible."""
PRUNED = "pruned"
"""User attribute: the driver has decided that the trial ends here."""
DUPLICATE_OF = "duplicate_of"
"""User attribute: number of an earlier trial with the same settings, whose results these are."""
FAILURE = "failure"
"""User attribute: the failure class of a failed trial."""
_MEMORY = "memory"
"""Constraint: above 0 where no host had the memory."""


def tell_ended(study: Study, trial: FrozenTrial, job: JobRecord, spec: StudySpec) -> None:
    """Tell the trial of a job that has ended: with its values, as pruned, infeasible or failed."""
    _note_job(study, trial, job)
    match job.state:
        case JobState.COMPLETED if job.result is not None:
            _tell_complete(study, trial, job.result, job.spec, spec)
        case JobState.FAILED if job.failure is not None and job.failure.failure is FailureClass.MEMORY:
            tell_infeasible(study, trial, job.failure.text)
        case JobState.FAILED if job.failure is not None:
            tell_failed(study, trial, job.failure.text, job.failure.failure)
        case JobState.CANCELLED if trial.user_attrs.get(PRUNED):
            study.tell(trial.number, state=TrialState.PRUNED)
        case _:
            tell_failed(study, trial, "its job was cancelled")


def tell_failed(study: Study, trial: FrozenTrial, why: str, failure: FailureClass | None = None) -> None:
    """Tell a trial as failed, for that reason."""
    note(study, trial, **{WHY: why, **({FAILURE: failure.value} if failure else {})})
    study.tell(trial.number, state=TrialState.FAIL)


def tell_infeasible(study: Study, trial: FrozenTrial, why: str) -> None:
    """Tell a trial that no host had the memory for: its settings are to be avoided, and it has no value."""
    note(study, trial, **{WHY: why})
    _live(study, trial).set_constraint(_MEMORY, 1.0)
    study.tell(trial.number, state=TrialState.PRUNED)


def tell_as(study: Study, trial: FrozenTrial, twin: FrozenTrial) -> None:
    """Tell a trial the results of an earlier one with the same settings."""
    for step, loss in twin.intermediate_values.items():
        report(study, trial, step, loss)
    copied = {name: value for name, value in twin.user_attrs.items() if name in _COPIED}
    note(study, trial, **copied, **{DUPLICATE_OF: twin.number})
    for name, value in twin.constraints.items():
        if name not in trial.constraints:
            _live(study, trial).set_constraint(name, value)
    study.tell(trial.number, twin.values if twin.state is TrialState.COMPLETE else None, twin.state)


def report(study: Study, trial: FrozenTrial, step: int, loss: float) -> None:
    """Write the validation loss after a step, once; not where there are several objectives."""
    if len(study.directions) == 1 and step not in trial.intermediate_values:
        study._storage.set_trial_intermediate_value(trial._trial_id, step, loss)


def note(study: Study, trial: FrozenTrial, **attributes: Any) -> None:
    """Write user attributes that are not there yet as they are."""
    for name, value in attributes.items():
        if name not in trial.user_attrs or trial.user_attrs[name] != value:
            study._storage.set_trial_user_attr(trial._trial_id, name, value)


def constrain(study: Study, trial: FrozenTrial, result: TrainResult, spec: StudySpec) -> str:
    """Note by how much limits are exceeded, where they are; which ones, in words."""
    limits = spec.constraints
    over: dict[str, float] = {}
    if limits.peak_memory_bytes is not None and result.peak_memory_bytes is not None:
        over[Objective.PEAK_MEMORY] = float(result.peak_memory_bytes - limits.peak_memory_bytes)
    if limits.seconds is not None:
        over[Objective.SECONDS] = result.training_seconds - limits.seconds
    exceeded = {name: excess for name, excess in over.items() if excess > 0}
    for name, excess in exceeded.items():
        if name not in trial.constraints:
            _live(study, trial).set_constraint(name, excess)
    why = " and ".join(f"{name} is above the limit" for name in exceeded)
    if why:
        note(study, trial, **{WHY: why})
    return why


def saved_loss(result: TrainResult, spec: TrainJob) -> float | None:
    """Validation loss of the adapter that the job left, in nats."""
    if spec.adapter.rank == "auto" and result.perplexity is not None:
        return math.log(result.perplexity)  # it was cut after the last evaluation
    is_best = result.saved_step is not None and result.saved_step == result.best_step
    return result.best_loss if is_best else result.final_loss


def _tell_complete(study: Study, trial: FrozenTrial, result: TrainResult, job: Any, spec: StudySpec) -> None:
    loss = saved_loss(result, job)
    found = {
        Objective.LOSS: loss,
        Objective.PEAK_MEMORY: result.peak_memory_bytes,
        Objective.SECONDS: result.training_seconds,
    }
    if loss is not None:
        report(study, trial, result.steps, loss)
    values: Sequence[float | None] = [found[one] for one in spec.objectives]
    known = [float(one) for one in values if one is not None]
    if len(known) < len(values):
        tell_failed(study, trial, f"the job did not say its {spec.objectives[values.index(None)].value}")
        return
    if trial.user_attrs.get(PRUNED):  # it came to its end before it heard
        note(study, trial, **{PRUNED: False, WHY: ""})
    constrain(study, trial, result, spec)
    study.tell(trial.number, known)


def _note_job(study: Study, trial: FrozenTrial, job: JobRecord) -> None:
    facts: dict[str, Any] = {JOB: job.id}
    if job.host_name is not None:
        facts["host"] = job.host_name
    if (result := job.result) is not None:
        facts["seconds"] = result.training_seconds
        figures = {
            "peak_memory_bytes": result.peak_memory_bytes,
            "tokens_per_second": result.tokens_per_second,
        }
        facts |= {name: value for name, value in figures.items() if value is not None}
    note(study, trial, **facts)


def _live(study: Study, trial: FrozenTrial) -> optuna.Trial:
    return optuna.Trial(study, trial._trial_id)


_COPIED = frozenset({"host", "seconds", "peak_memory_bytes", "tokens_per_second", WHY, JOB, FAILURE})
