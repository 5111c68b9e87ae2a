"""Reads what came of a study from Optuna, whoever made it; public names of Optuna only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from graft_scheduler.studies.outcomes import Goal, Outcome, Setting, StudyResults, TrialResult, words
from graft_scheduler.studies.space import Value

_OUTCOMES = {
    TrialState.COMPLETE: Outcome.COMPLETED,
    TrialState.PRUNED: Outcome.PRUNED,
    TrialState.FAIL: Outcome.FAILED,
    TrialState.RUNNING: Outcome.RUNNING,
    TrialState.WAITING: Outcome.WAITING,
}


def read_results(study: Study, goals: Sequence[str] = ()) -> StudyResults:
    """The study as it is now; `goals` names its objectives, else its metric names do."""
    trials = study.get_trials(deepcopy=False)
    settings = _settings(trials)
    named = {setting.name: setting for setting in settings}
    results = tuple(_result(trial, named) for trial in trials)
    found = _goals(study, goals)
    return StudyResults(study.study_name, found, settings, results, _best(study, found, results))


def _goals(study: Study, names: Sequence[str]) -> tuple[Goal, ...]:
    count = len(study.directions)
    known = list(names) or list(study.metric_names or ())
    if len(known) != count:
        known = ["objective"] if count == 1 else [f"objective {place + 1}" for place in range(count)]
    return tuple(
        Goal(name, direction is StudyDirection.MAXIMIZE)
        for name, direction in zip(known, study.directions, strict=True)
    )


def _best(study: Study, goals: Sequence[Goal], results: Sequence[TrialResult]) -> tuple[int, ...]:
    rivals = [one for one in results if one.outcome is Outcome.COMPLETED and one.is_finite]
    if not rivals:
        return ()
    if len(goals) > 1:
        front = {trial.number for trial in study.best_trials}
        return tuple(one.number for one in rivals if one.number in front)
    sign = -1.0 if goals[0].is_maximized else 1.0
    return (min(rivals, key=lambda one: sign * one.values[0]).number,)


def _settings(trials: Sequence[FrozenTrial]) -> tuple[Setting, ...]:
    """In the order in which they first appear; a setting whose range was changed has the widest."""
    seen: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            known = seen.setdefault(name, [])
            if distribution not in known:
                known.append(distribution)
    return tuple(_setting(name, distributions) for name, distributions in seen.items())


def _setting(name: str, distributions: Sequence[BaseDistribution]) -> Setting:
    if any(isinstance(one, CategoricalDistribution) for one in distributions):
        choices: dict[str, None] = {}
        for one in distributions:
            ends = one.choices if isinstance(one, CategoricalDistribution) else ()
            choices.update((words(_decoded(choice)), None) for choice in ends)
        return Setting(name, 0.0, max(1.0, len(choices) - 1.0), choices=tuple(choices))
    ranges: list[Any] = list(distributions)  # Optuna has no common class of ints and floats
    return Setting(
        name,
        low=float(min(one.low for one in ranges)),
        high=float(max(one.high for one in ranges)),
        is_log=all(one.log for one in ranges),
        is_whole=all(isinstance(one, IntDistribution) for one in ranges),
    )


def _result(trial: FrozenTrial, settings: Mapping[str, Setting]) -> TrialResult:
    attributes = trial.user_attrs
    peak, twin = _number(attributes.get("peak_memory_bytes")), _number(attributes.get("duplicate_of"))
    decoded = {
        name: _decoded(value) if isinstance(trial.distributions[name], CategoricalDistribution) else value
        for name, value in trial.params.items()
    }
    return TrialResult(
        number=trial.number,
        outcome=_outcome(trial),
        values=_values(trial),
        settings=decoded,
        places=_places(decoded, settings),
        curve=tuple(sorted(trial.intermediate_values.items())),
        constraints=dict(trial.constraints),
        job=_text(attributes.get("job")),
        host=_text(attributes.get("host")),
        seconds=_number(attributes.get("seconds")),
        peak_memory_bytes=None if peak is None else int(peak),
        tokens_per_second=_number(attributes.get("tokens_per_second")),
        why=_text(attributes.get("why")),
        duplicate_of=None if twin is None else int(twin),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
    )


def _values(trial: FrozenTrial) -> tuple[float, ...]:
    if trial.values is not None:
        return tuple(trial.values)
    if trial.state is TrialState.PRUNED and trial.last_step is not None:
        return (trial.intermediate_values[trial.last_step],)
    return ()


def _outcome(trial: FrozenTrial) -> Outcome:
    if trial.state.is_finished() and any(value > 0 for value in trial.constraints.values()):
        return Outcome.INFEASIBLE
    return _OUTCOMES[trial.state]


def _places(values: Mapping[str, Value], settings: Mapping[str, Setting]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        choices = settings[name].choices
        if choices and words(value) in choices:
            found[name] = float(choices.index(words(value)))
        elif not choices and isinstance(value, (int, float)):
            found[name] = float(value)
    return found


def _decoded(choice: object) -> Value:
    """A choice as the setting has it; ours are kept as JSON, those of a foreign study may be anything."""
    value: Any = choice
    if isinstance(choice, str):
        try:
            value = json.loads(choice)
        except ValueError:
            return choice
    if isinstance(value, list):
        return tuple(one if isinstance(one, str) else json.dumps(one, default=str) for one in value)
    return value if value is None or isinstance(value, (int, float, str)) else json.dumps(value, default=str)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]  # `known` says that it is one
