"""Proposals do not depend on who makes them: a restart goes on as if nothing had happened."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.study import Study
from optuna.trial import TrialState

from graft_scheduler.job_settings import build_train_job
from graft_scheduler.studies.proposals import complete, propose, values_of
from graft_scheduler.studies.space import read_space, with_values
from graft_scheduler.studies.spec import StudySpec

SEARCH = ("lr=log:1e-5..1e-3", "rank=4..64", "dropout=0..0.2/0.1", 'targets=[null,["self_attn.q_proj"]]')
GRID = ("rank=8,16,auto", "dropout=0..0.2/0.1", "layers=2..4")
SAMPLERS = ["tpe", "random", "qmc", "grid"]

optuna.logging.set_verbosity(optuna.logging.WARNING)


def make_spec(sampler: str, **settings: Any) -> StudySpec:
    base = build_train_job({"model": "base", "data": "rows.jsonl"})
    space = read_space(GRID if sampler == "grid" else SEARCH, base)
    values = {"name": "s", "base": base, "space": space, "trials": 16, "sampler": sampler, **settings}
    return StudySpec.model_validate(values)


def told(study: Study, spec: StudySpec, count: int) -> list[dict[str, Any]]:
    """The settings of so many trials, told one after another."""
    found = []
    for _ in range(count):
        trial = propose(study, spec)
        found.append(dict(trial.params))
        study.tell(trial, sum(len(str(value)) for value in trial.params.values()) / 10)
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_is_opened_anew_for_every_trial_proposes_the_same(sampler: str) -> None:
    spec = make_spec(sampler)
    undisturbed = told(optuna.create_study(), spec, 16)

    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="s")
    again = [told(optuna.load_study(study_name="s", storage=storage), spec, 1)[0] for _ in range(16)]

    assert again == undisturbed
    assert len({str(sorted(one.items())) for one in undisturbed}) > 8


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("had", [0, 1, 2])
def test_a_trial_that_was_cut_off_gets_what_it_lacks(sampler: str, had: int) -> None:
    spec = make_spec(sampler)
    whole = optuna.create_study()
    told(whole, spec, 12)
    expected = dict(propose(whole, spec).params)

    study = optuna.create_study()
    told(study, spec, 12)
    cut_off = study._storage.create_new_trial(study._study_id)
    for name in list(expected)[:had]:
        distribution = whole.trials[-1].distributions[name]
        inside = distribution.to_internal_repr(expected[name])
        study._storage.set_trial_param(cut_off, name, inside, distribution)

    assert complete(study, spec, cut_off).params == expected
    assert [trial.state for trial in study.trials].count(TrialState.RUNNING) == 1


def test_another_seed_proposes_otherwise() -> None:
    one, other = (told(optuna.create_study(), make_spec("random", seed=seed), 4) for seed in (0, 1))

    assert one != other


def test_a_grid_is_walked_through_once() -> None:
    spec = make_spec("grid", trials=27)

    found = told(optuna.create_study(), spec, 27)

    assert len({str(sorted(one.items())) for one in found}) == 27


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_proposed_fits_the_job(sampler: str) -> None:
    spec = make_spec(sampler)

    for params in told(optuna.create_study(), spec, 16):
        job = with_values(spec.base, values_of(params, spec.space))
        assert job.adapter.dropout in {0.0, 0.1, 0.2}
        assert job.adapter.rank == "auto" or isinstance(job.adapter.rank, int)
