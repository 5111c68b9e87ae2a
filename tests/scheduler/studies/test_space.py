"""Search spaces as people write them, and what is said of those that cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from graft_scheduler.errors import InvalidInput
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.studies.space import Choices, Range, Space, default_space, read_space, with_values


def base(**settings: Any) -> TrainJob:
    return build_train_job({"model": "base", "data": "rows.jsonl", **settings})


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("learning_rate=log:1e-5..1e-3", "optimizer.learning_rate", Range(low=1e-5, high=1e-3, log=True)),
        ("dropout=0..0.2/0.05", "adapter.dropout", Range(low=0, high=0.2, step=0.05)),
        ("dropout=0.05..0.1", "adapter.dropout", Range(low=0.05, high=0.1)),
        ("rank=4..64", "adapter.rank", Range(low=4, high=64, whole=True)),
        ("rank=8,16,32", "adapter.rank", Choices(values=(8, 16, 32))),
        ("rank = auto, 16", "adapter.rank", Choices(values=("auto", 16))),
        ("method=lora,dora", "method", Choices(values=("lora", "dora"))),
        ("optimizer.name=adamw,lion", "optimizer.name", Choices(values=("adamw", "lion"))),
        ("alpha=null,16", "adapter.alpha", Choices(values=(None, 16))),
        (
            'targets=[null, ["self_attn.q_proj", "self_attn.v_proj"]]',
            "adapter.targets",
            Choices(values=(None, ("self_attn.q_proj", "self_attn.v_proj"))),
        ),
    ],
)
def test_a_search_is_read(text: str, name: str, expected: Range | Choices) -> None:
    assert read_space([text], base()).parameters == {name: expected}


def test_a_mapping_says_the_same_as_texts() -> None:
    written = read_space(["lr=log:1e-5..1e-3", "rank=8,16", "dropout=0..0.2"], base())
    mapped = read_space(
        {
            "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            "adapter.rank": [8, 16],
            "dropout": "0..0.2",
        },
        base(),
    )

    assert mapped == written


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (["learning_rate=1e-3..1e-5"], "range 0.001..1e-05 is empty"),
        (["dropout=log:0..0.2"], "begins at or below 0"),
        (["learning_rate=log:1e-5..1e-3/1e-5"], "not both"),
        (["learning_rate=log:1e-5"], "no number"),
        (["learning_rate=one..two"], "'one' is no number; give a range"),
        (["learning_rate=1e-5..inf"], "'inf' is no number"),
        (["dropout=0..1.5"], "it must be below 1"),
        (["rank=8,16,8"], "the value 8 is there twice"),
        (["rank=4.5..8"], "has 4.5; it takes whole numbers"),
        (["rank=0..8"], "`adapter.rank` is 0"),
        (["rank=8,many"], '"many"'),
        (["bits=4..8"], "`bits` is no number: give its values"),
        (["method=0..1"], "`method` is no number: give its values"),
        (["rnak=8,16"], "`rnak` is not a setting; did you mean `rank`"),
        (["adapter=8"], "`adapter` is a group of settings; name one"),
        (["adapter.rank.x=8,16"], "is not a setting"),
        (["seed=1,2"], "`seed` cannot be searched: it decides the order"),
        (["data.mask_prompt=true,false"], "a study is of one data set"),
        (["priority=1,2"], "it is not about the training"),
        (["evaluation.every=5,10"], "compared by the same evaluations"),
        (["rank"], "'rank' is no part of a search space"),
        (["rank="], "is no part of a search space"),
        (["rank=8", "rank=16"], "in the search space twice"),
        (["rank=8", "adapter.rank=16"], "in the search space twice"),
        ([], "the search space is empty"),
        ({"rank": {"low": 8}}, "`high` is missing"),
        ({"rank": {"low": 8, "high": 16, "loq": True}}, "`loq` is not a setting"),
        ({"rank": []}, "`values`"),
    ],
)
def test_what_cannot_work_is_refused_in_words(search: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_space(search, base())


def test_a_value_that_the_method_has_not_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the method full has no adapters"):
        read_space(["dropout=0,0.1"], base(method="full"))


def test_a_job_takes_values() -> None:
    job = with_values(
        base(steps=10),
        {"adapter.rank": 16, "optimizer.learning_rate": 1e-3, "quantization.bits": 8, "method": "qlora"},
    )

    assert (job.adapter.rank, job.learning_rate, job.steps) == (16, 1e-3, 10)
    assert job.quantization is not None
    assert job.quantization.bits == 8


@pytest.mark.parametrize("settings", [{}, {"method": "full"}, {"rank": "auto"}, {"method": "dora"}], ids=str)
def test_the_default_space_fits_its_job(settings: dict[str, Any]) -> None:
    job = base(**settings)
    space = default_space(job)

    assert read_space({name: _written(one) for name, one in space.parameters.items()}, job) == space
    rate = space.parameters["optimizer.learning_rate"]
    assert isinstance(rate, Range)
    assert rate.low < job.learning_rate < rate.high


def _written(parameter: Range | Choices) -> Any:
    if isinstance(parameter, Choices):
        return list(parameter.values)
    return parameter.model_dump(exclude={"whole"})


def test_a_space_survives_json() -> None:
    space = read_space(["rank=8,16,auto", "lr=log:1e-5..1e-3", 'targets=[null,["a"]]'], base())

    assert Space.model_validate_json(space.model_dump_json()) == space


def test_yaml_writes_some_numbers_as_texts_and_pairs_of_numbers_are_values_too() -> None:
    space = read_space({"learning_rate": ["1e-5", "1e-4"], "betas": [[0.9, 0.95], [0.9, 0.999]]}, base())
    assert space.parameters["optimizer.learning_rate"] == Choices(values=(1e-5, 1e-4))
    again = Space.model_validate_json(space.model_dump_json())
    assert again == space
    assert again.parameters["optimizer.betas"] == Choices(values=((0.9, 0.95), (0.9, 0.999)))


@pytest.mark.parametrize("high", [float("inf"), float("nan")])
def test_a_range_ends_at_numbers(high: float) -> None:
    with pytest.raises(InvalidInput, match="no number"):
        read_space({"rank": {"low": 2, "high": high}}, base())
