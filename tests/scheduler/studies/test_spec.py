"""What a study refuses before it begins."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from graft_scheduler.complaints import explain
from graft_scheduler.errors import InvalidInput
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.studies.space import read_space
from graft_scheduler.studies.spec import SamplerName, StudySpec, check_packages

RATES, RANKS = "lr=log:1e-5..1e-3", "rank=8,16,32"


def spec(*search: str, job: dict[str, Any] | None = None, **settings: Any) -> StudySpec:
    base = build_train_job({"model": "base", "data": "rows.jsonl", **(job or {})})
    space = read_space(search or (RATES, RANKS), base)
    return StudySpec.model_validate({"name": "s", "base": base, "space": space, "trials": 6, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trials": 0}, "greater than or equal to 1"),
        ({"parallel": 0}, "greater than or equal to 1"),
        ({"sampler": "best"}, "'tpe', 'random', 'grid'"),
        ({"objectives": ["validation_loss", "seconds"]}, "Optuna prunes by one only; set `pruner` to none"),
        ({"objectives": ["seconds"]}, "known at its end only; set `pruner` to none"),
        ({"objectives": ["seconds", "seconds"], "pruner": "none"}, "each may be there once"),
        ({"sampler": "grid"}, "is a range without steps; write `1e-05..0.001/STEP`"),
        ({"sampler": "cmaes"}, "`adapter.rank` has values; use tpe"),
        ({"job": {"steps": 20, "evaluation.every": 20}}, "nothing is known before its end"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_in_words(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(**settings)


def test_a_grid_has_at_least_as_many_points_as_trials() -> None:
    assert spec(RANKS, "dropout=0..0.2/0.1", sampler="grid").grid_points == 9
    assert spec("rank=4..9", sampler="grid").grid_points == 6

    with pytest.raises(ValidationError, match="the grid has 3 points; give at most that"):
        spec(RANKS, sampler="grid")
    with pytest.raises(ValidationError, match="has 100001 points, and at most"):
        spec("dropout=0..0.1/0.000001", sampler="grid")


def test_several_objectives_are_studied_without_pruning() -> None:
    found = spec(objectives=["validation_loss", "peak_memory", "seconds"], pruner="none")

    assert len(found.objectives) == 3


def test_a_sampler_without_its_packages_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft_scheduler.studies.spec.find_spec", lambda name: None)

    check_packages(SamplerName.TPE)
    with pytest.raises(InvalidInput, match=r"needs torch and scipy.*pip install torch scipy.*use tpe"):
        check_packages(SamplerName.GP)


def test_a_spec_survives_json() -> None:
    one = spec(RATES, RANKS, first=[{"adapter.rank": 8}], seconds=60)

    assert StudySpec.model_validate_json(one.model_dump_json()) == one


def test_an_unknown_objective_is_told_in_one_sentence() -> None:
    with pytest.raises(ValidationError) as caught:
        spec(objectives=["foo"])
    told = explain(caught.value, ())
    assert told == "`objectives.0` is 'foo'; it must be 'validation_loss', 'peak_memory' or 'seconds'"


def test_a_pareto_front_has_no_final_training() -> None:
    with pytest.raises(ValidationError, match="Pareto front none is the best"):
        spec(objectives=["validation_loss", "seconds"], pruner="none", final={"epochs": 2})
