"""Variants as people write them, the jobs they become, and what is refused before anything is queued."""

from __future__ import annotations

from typing import Any

import pytest

from graft_scheduler.basemodels import Quantization
from graft_scheduler.comparison.variant_jobs import (
    VariantJob,
    build_variant,
    build_variants,
    default_variants,
    differing,
    refuse_same,
)
from graft_scheduler.comparison.variants import Variant, read_variant, read_variants
from graft_scheduler.errors import InvalidInput
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob


def base(**settings: Any) -> TrainJob:
    return build_train_job({"model": "base", "data": "rows.jsonl", **settings})


def built(text: str, **settings: Any) -> VariantJob:
    return build_variant(base(**settings), read_variant(text), 8)


@pytest.mark.parametrize(
    ("text", "name", "overrides"),
    [
        ("qlora", "qlora", {"method": "qlora"}),
        ("dora,rank=16", "dora,rank=16", {"method": "dora", "rank": 16}),
        ("dora, rank = 16", "dora,rank = 16", {"method": "dora", "rank": 16}),
        ("rank=4", "rank=4", {"rank": 4}),
        ("small: lora,rank=8,lr=1e-4", "small", {"method": "lora", "rank": 8, "lr": 1e-4}),
        ("lion: optimizer.name=lion", "lion", {"optimizer.name": "lion"}),
        ('two: targets=["a","b"],rank=2', "two", {"targets": ["a", "b"], "rank": 2}),
        ('lora,targets=["a:b"]', 'lora,targets=["a:b"]', {"method": "lora", "targets": ["a:b"]}),
    ],
)
def test_a_variant_is_read(text: str, name: str, overrides: dict[str, Any]) -> None:
    assert read_variant(text) == Variant(name, overrides)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("dorra", "`dorra` is no method; did you mean `dora`?"),
        ("", "a method or a setting is missing"),
        ("small:", "a method or a setting is missing"),
        ("lora,rank", "`rank` is no setting"),
        ("lora,=3", "`=3` is no setting"),
        ("lora\x07: qlora", "letters that can be printed"),
    ],
)
def test_a_variant_that_cannot_be_read_is_told_with_the_grammar(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_variants([text])

    assert complaint in str(refused.value)


def test_two_variants_need_two_names() -> None:
    with pytest.raises(InvalidInput, match="two variants are named `lora`"):
        read_variants(["lora", "lora: qlora"])


def test_a_variant_has_its_own_settings_and_all_others_of_the_job() -> None:
    job = built("dora,rank=16", steps=7, lr=1e-3, labels={"team.io/x": "search"}, patience=3).job

    assert (job.method, job.adapter.rank, job.batch_size) == ("dora", 16, 8)
    assert (job.steps, job.learning_rate, job.evaluation.patience) == (7, 1e-3, 3)
    assert job.labels == {"team.io/x": "search"}


def test_a_variant_in_groups_means_the_same_as_one_in_dotted_names() -> None:
    grouped = Variant("a", {"method": "lora", "adapter": {"rank": 4}})

    assert build_variant(base(), grouped, 8).job == built("a: lora,adapter.rank=4").job


def test_a_scale_takes_back_the_alpha_of_the_job() -> None:
    assert built("lora,scale=3", alpha=16).job.adapter.multiplier == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lora,steps=5", "`steps` is the same for all variants, as it is part of the budget"),
        ("lora,epochs=5", "part of the budget"),
        ("lora,batch_size=2", "part of the budget"),
        ("lora,seed=1", "it decides the order of the rows"),
        ("lora,data.valid_fraction=0.5", "losses are compared on the same rows"),
        ("lora,data=others.jsonl", "losses are compared on the same rows"),
        ("lora,evaluation.rows=5", "at the same steps, on the same rows"),
        ("lora,patience=5", "at the same steps, on the same rows"),
        ("lora,model=other", "a comparison is of one base"),
        ("lora,limits.seconds=5", "`limits.seconds` is the same for all variants"),
        ("lora,ran=3", "`ran` is not a setting; did you mean `rank`?"),
        ("lora,rank=0", "`adapter.rank` is 0; it must be at least 1"),
        ("full,rank=4", "`adapter.rank` is set, and the method full has no adapters"),
        ("full,lora_plus=4", "`optimizer.lora_plus` is set, and the method full has no adapters"),
        ("lora,bits=4", "`quantization` is set, and the method lora does not quantise"),
        ("dora,rank=auto", "`adapter.rank` is auto, and the method dora cannot be cut"),
    ],
)
def test_what_would_not_be_comparable_or_possible_is_refused_with_the_variant(
    text: str, complaint: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        built(text)

    assert str(refused.value).startswith(f"variant `{text}`: ")
    assert complaint in str(refused.value)


def test_settings_that_a_method_has_not_are_left_out_and_said_so() -> None:
    settings = {"rank": "auto", "max_rank": 16, "dropout": 0.1, "layers": 2}

    full, dora, lora, own = (built(text, **settings) for text in ("full", "dora", "lora", "dora,rank=4"))

    assert (
        full.job.adapter
        == TrainJob.model_validate(
            {"model": "m", "data": "d", "method": "full", "adapter": {"layers": 2}}
        ).adapter
    )
    assert "without `adapter.rank`, `adapter.max_rank`, `adapter.dropout` of the job" in full.notes[0]
    assert (dora.job.adapter.rank, dora.job.adapter.dropout) == (8, 0.1)
    assert "dora cannot find its rank; it has rank 8" in dora.notes[0]
    assert own.job.adapter.rank == 4
    assert own.notes == ("dora,rank=4: without `adapter.max_rank` of the job, as dora cannot find its rank",)
    assert lora.job.adapter.rank == "auto"
    assert lora.notes == ()


def test_the_quantisation_of_the_job_is_that_of_its_qlora_variants_only() -> None:
    lora, qlora = (built(text, method="qlora", bits=8) for text in ("lora", "qlora,rank=4"))

    assert lora.job.quantization is None
    assert "lora quantises nothing" in lora.notes[0]
    assert qlora.job.quantization is not None
    assert qlora.job.quantization.bits == 8


def test_a_full_fine_tune_at_the_rate_of_adapters_is_told_its_own() -> None:
    assert "its own default is 1e-05" in built("full", lr=1e-3).notes[0]
    assert built("full").notes == ()
    assert built("full,lr=1e-3").notes == ()


@pytest.mark.parametrize(
    ("texts", "quantization"),
    [
        (["lora", "other: rank=8"], None),
        (["lora", "lora,lr=1e-4"], None),
        (["qlora", "qlora,bits=4"], None),
        (["full", "again: full"], None),
        (["lora", "qlora"], Quantization(4, 64)),
    ],
)
def test_two_variants_that_train_the_same_are_refused(
    texts: list[str], quantization: Quantization | None
) -> None:
    jobs = build_variants(base(), read_variants(texts), 8)

    with pytest.raises(InvalidInput, match="are the same job"):
        refuse_same(jobs, quantization)


def test_variants_that_differ_in_anything_pass() -> None:
    texts = ["lora", "qlora", "dora", "full", "qlora,bits=8", "lora,rank=4", "lora,compute.batching=packed"]

    refuse_same(build_variants(base(), read_variants(texts), 8), None)


@pytest.mark.parametrize(
    ("quantization", "methods"),
    [
        (None, ["lora", "qlora", "dora", "full"]),
        (Quantization(4, 64), ["qlora", "dora"]),
        (Quantization(3, 64), ["qlora"]),
    ],
)
def test_without_variants_all_methods_that_the_base_can_have_are_compared(
    quantization: Quantization | None, methods: list[str]
) -> None:
    variants, notes = default_variants(quantization)

    assert [one.name for one in variants] == methods
    assert bool(notes) == (quantization is not None)


def test_jobs_that_are_not_of_one_budget_are_told_apart_by_content() -> None:
    ours = base(steps=5)
    moved = ours.model_copy(update={"data": ours.data.model_copy(update={"source": "elsewhere"})})
    stored, also = (
        one.model_copy(update={"data": one.data.model_copy(update={"digest": "sha256:1"})})
        for one in (ours, moved)
    )

    assert differing([ours, base(steps=5, rank=4)]) == ()
    assert differing([ours, base(steps=6, seed=1)]) == ("seed", "steps")
    assert differing([ours, moved]) == ("data",)
    assert differing([stored, also]) == ()
