"""From a study's spec to Optuna's terms, and proposals that a restart does not change.

Each trial is sampled with a seed of its own, that of the study with its number: whoever goes on with a
study, in whichever process, proposes what the one before would have proposed from the same results.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from graft_scheduler.errors import InvalidInput
from graft_scheduler.studies.space import Parameter, Range, Space, Value
from graft_scheduler.studies.spec import SamplerName, StudySpec

OURS = "graft"
"""User attribute of the trials that the driver made or took: only those are its own to train and to tell."""
FIXED = "fixed_params"
"""Optuna's system attribute of settings that were enqueued."""
RUNG_LOSSES = "rung_losses"
"""User attribute: validation losses at the rungs that the trial has come to, the lowest first."""


START, AGAIN = "start", "again_of"
"""User attributes of settings that the driver enqueued: their place among those that are tried first, or
the number of the trial that lost its hosts with them."""


def is_ours(trial: FrozenTrial) -> bool:
    """Whether the driver is to train and to tell the trial: not one that waits, or is somebody else's."""
    if trial.state is TrialState.WAITING:
        return False
    # Whoever dies between taking an enqueued trial and saying so leaves it to the next.
    return OURS in trial.user_attrs or START in trial.user_attrs or AGAIN in trial.user_attrs


def begin_trial(study: Study) -> int:
    """The id of a new trial, which lacks its settings yet; one that somebody has enqueued comes first."""
    storage = study._storage
    for waiting in storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.WAITING,)):
        if storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING):
            storage.set_trial_user_attr(waiting._trial_id, OURS, True)
            return waiting._trial_id
    template = create_trial(state=TrialState.RUNNING, user_attrs={OURS: True})
    return storage.create_new_trial(study._study_id, template_trial=template)


def propose(study: Study, spec: StudySpec) -> Trial:
    """A new trial with all its settings.

    If this process dies within, the trial lacks some of them; `complete` gives it the same.

    Raises:
        InvalidInput: somebody enqueued settings that cannot be.
    """
    return complete(study, spec, begin_trial(study))


def enqueue(study: Study, spec: StudySpec, values: Mapping[str, Value], **marks: int) -> None:
    """Let these settings be tried next, under user attributes; in one write."""
    fixed = {name: _encoded(value, spec.space.parameters[name]) for name, value in values.items()}
    template = create_trial(state=TrialState.WAITING, system_attrs={FIXED: fixed}, user_attrs=dict(marks))
    study._storage.create_new_trial(study._study_id, template_trial=template)


def complete(study: Study, spec: StudySpec, trial_id: int) -> Trial:
    """The trial of this id, with the settings that it still lacks.

    Raises:
        InvalidInput: somebody enqueued settings that cannot be.
    """
    storage = study._storage
    found = storage.get_trial(trial_id)
    fixed = _fixed(found, spec)
    if fixed != found.system_attrs.get(FIXED, {}):
        storage.set_trial_system_attr(trial_id, FIXED, fixed)
    if set(fixed) < set(spec.space.parameters):
        sampler = make_sampler(spec, found.number)
    else:  # nothing is drawn, and no point of a grid is used up
        sampler = RandomSampler(seed=found.number)
    seen = Study(study.study_name, _AsSampled(storage), sampler)  # type: ignore[arg-type]
    trial = optuna.Trial(seen, trial_id)
    _ = trial.relative_params  # what is drawn together is drawn first, and kept
    for name, distribution in distributions_of(spec.space).items():
        if name not in fixed:
            seen.sampler = make_sampler(spec, found.number, name)  # it does not depend on the others
        trial._suggest(name, distribution)
    return trial


def _fixed(trial: FrozenTrial, spec: StudySpec) -> dict[str, Any]:
    """The enqueued settings of a trial, as the space has them: people write choices as they are."""
    distributions = distributions_of(spec.space)
    found: dict[str, Any] = {}
    for name, value in trial.system_attrs.get(FIXED, {}).items():
        distribution = distributions.get(name)
        if distribution is None:
            raise InvalidInput(f"`{name}` was enqueued, and is not in the search space")
        text = json.dumps(value)
        is_new = isinstance(distribution, CategoricalDistribution) and value not in distribution.choices
        found[name] = text if is_new else value
        if not _contains(distribution, found[name]):
            raise InvalidInput(f"`{name}` was enqueued as {text}, which the search space has not")
    if found and len(found) < len(distributions) and spec.sampler is SamplerName.GRID:
        raise InvalidInput("settings enqueued for a grid must be all of the space's")
    return found


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and distribution._contains(distribution.to_internal_repr(value))


def values_of(params: Mapping[str, Any], space: Space) -> dict[str, Value]:
    """Settings of a job from a trial's parameters."""
    found: dict[str, Value] = {}
    for name, value in params.items():
        is_text = not isinstance(space.parameters[name], Range)
        found[name] = _decoded(value) if is_text else value
    return found


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """What each setting is drawn from; choices as JSON, which Optuna can keep whatever they are."""
    return {name: _distribution(one) for name, one in space.parameters.items()}


def make_sampler(spec: StudySpec, number: int, setting: str = "") -> BaseSampler:
    """The sampler of the trial with this number, or of one of its settings."""
    seed = int.from_bytes(hashlib.sha256(f"{spec.seed}:{number}:{setting}".encode()).digest()[:4], "big") >> 1
    match spec.sampler:
        case SamplerName.RANDOM:
            return RandomSampler(seed=seed)
        case SamplerName.GRID:
            return _Grid(_grid(spec.space), seed=spec.seed)
        case SamplerName.QMC:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return _Sobol(distributions_of(spec.space), spec.seed)
        case SamplerName.GP:
            return GPSampler(seed=seed, n_startup_trials=_startup(spec))
        case SamplerName.CMAES:
            return CmaEsSampler(seed=seed, n_startup_trials=_startup(spec), consider_pruned_trials=True)
        case SamplerName.TPE:
            return TPESampler(seed=seed, n_startup_trials=_startup(spec))


class _AsSampled:
    """A storage in which trials on the way to another rung look pruned at the last: their losses teach."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = [_at_its_rung(one) for one in self._storage.get_all_trials(study_id, deepcopy)]
        return [one for one in trials if states is None or one.state in states]


def _at_its_rung(trial: FrozenTrial) -> FrozenTrial:
    losses = trial.user_attrs.get(RUNG_LOSSES)
    if trial.state is not TrialState.RUNNING or not losses:
        return trial
    seen = copy.copy(trial)
    seen.state, seen.value = TrialState.PRUNED, losses[-1]
    return seen


def _startup(spec: StudySpec) -> int:
    """Trials at random before there is anything to learn from: a quarter, at most ten."""
    return max(1, min(10, spec.trials // 4))


class _Grid(GridSampler):
    """A grid that leaves it to the study when to end: Optuna's own stops a loop that there is not."""

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Do nothing."""


class _Sobol(QMCSampler):
    """A scrambled Sobol sequence whose points are told by a trial's number, the first one too."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int) -> None:
        super().__init__(scramble=True, seed=seed, warn_asynchronous_seeding=False)
        self._space = space
        self._number = 0

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._number = trial.number
        return self._space

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


def _distribution(parameter: Parameter) -> BaseDistribution:
    if not isinstance(parameter, Range):
        return CategoricalDistribution([json.dumps(value) for value in parameter.values])
    if parameter.whole:
        step = 1 if parameter.step is None else int(parameter.step)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _grid(space: Space) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, one in space.parameters.items():
        if not isinstance(one, Range):
            found[name] = [json.dumps(value) for value in one.values]
            continue
        assert one.spacing is not None  # `StudySpec` refuses others
        numbers = [one.low + one.spacing * place for place in range(one.count)]
        found[name] = [int(number) for number in numbers] if one.whole else numbers
    return found


def _encoded(value: Value, parameter: Parameter) -> Any:
    return value if isinstance(parameter, Range) else json.dumps(value)


def _decoded(text: str) -> Value:
    value = json.loads(text)
    return tuple(value) if isinstance(value, list) else value
