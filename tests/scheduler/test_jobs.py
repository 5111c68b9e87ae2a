"""What a job may say, and how it is told what it may not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.errors import InvalidInput
from graft_scheduler.job_settings import build_train_job, nest
from graft_scheduler.jobs import CountJob, TrainJob, dump_job, parse_job

PLAIN: dict[str, Any] = {"model": "base", "data": "rows.jsonl"}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"rank": 0}, "`adapter.rank` is 0; it must be at least 1"),
        ({"method": "lorra"}, "`method` is 'lorra'; it must be 'lora'"),
        ({"learning_rat": 1}, "`learning_rat` is not a setting; did you mean `learning_rate`?"),
        ({"optimizer.nam": "sgd"}, "`optimizer.nam` is not a setting; did you mean `optimizer.name`?"),
        (
            {"optimizer.name": "adan"},
            "`optimizer.name` is 'adan'; it must be 'adamw', 'adam', 'adafactor', 'muon', 'sgd' or 'lion'",
        ),
        ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"),
        ({"dropout": 1}, "`adapter.dropout` is 1; it must be below 1"),
        ({"lr": 0}, "`optimizer.learning_rate` is 0; it must be above 0"),
        ({"priority": 11}, "`priority` is 11; it must be at most 9"),
        ({"epochs": 1, "steps": 5}, "`epochs` is 1 and `steps` is 5; give one of them"),
        ({"targets": []}, "`adapter.targets` is []"),
        ({"adapter.keep_uncut": True}, "`keep_uncut` is set, and `rank` is 8: only rank auto is cut"),
        ({"evaluation.min_delta": 0.1}, "`min_delta` is 0.1 without `patience`"),
        ({"method": "full", "rank": "auto"}, "`adapter.rank` is auto, and the method full cannot be cut"),
        ({"quantization": {"bits": 8}}, "`quantization` is set, and the method lora does not quantise"),
        ({"rank": "many"}, "`adapter.rank` is 'many'"),
        ({"zzzzzz": 1}, "`zzzzzz` is not a setting"),
        ({"adapter": 3, "adapter.rank": 4}, "`adapter.rank` is set, but `adapter` is 3"),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        build_train_job({**PLAIN, **values})

    assert complaint in str(refused.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidInput, match="`data` is missing"):
        build_train_job({"model": "base"})


def test_short_dotted_and_nested_names_mean_the_same() -> None:
    short = build_train_job({**PLAIN, "rank": 4, "lr": 1e-3})
    dotted = build_train_job({**PLAIN, "adapter.rank": 4, "optimizer.learning_rate": 1e-3})
    nested = build_train_job({**PLAIN, "adapter": {"rank": 4}, "optimizer": {"learning_rate": 1e-3}})

    assert short == dotted == nested


def test_a_model_given_as_text_can_have_further_settings_in_any_order() -> None:
    assert nest({"model": "a/b", "model.revision": "main"}) == {
        "model": {"source": "a/b", "revision": "main"}
    }
    assert nest({"model.revision": "main", "model": "a/b"}) == {
        "model": {"revision": "main", "source": "a/b"}
    }


def test_alpha_divides_by_the_rank_and_scale_does_not() -> None:
    assert build_train_job({**PLAIN, "alpha": 16, "rank": 8}).adapter.multiplier == 2
    assert build_train_job({**PLAIN, "scale": 10, "rank": 8}).adapter.multiplier == 10


@pytest.mark.parametrize(
    "text", ['{"kind": "serve"}', '{"kind": "count", "version": 2}', '{"kind": "count", "more": 1}', "[]"]
)
def test_an_unknown_kind_version_or_field_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_job(text)


@given(
    st.builds(
        CountJob,
        steps=st.integers(1, 1000),
        priority=st.integers(0, 9),
        name=st.none() | st.text(max_size=20),
        labels=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    )
)
def test_a_count_job_survives_being_written(job: CountJob) -> None:
    assert parse_job(dump_job(job)) == job


def test_a_train_job_survives_being_written_with_every_default() -> None:
    job = TrainJob(model={"source": "a/b"}, data={"source": "x.jsonl"})  # type: ignore[arg-type]  # as people write it

    assert parse_job(dump_job(job)) == job
    assert '"rank":8' in dump_job(job)
