"""The estimate of a job's peak memory: its laws, its known values, and how bytes are written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.basemodels import BaseModel, Quantization
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import Backend, estimate_peak, format_bytes
from graft_scheduler.settings import parse_bytes

TINY = BaseModel(
    model_type="llama",
    architecture="LlamaForCausalLM",
    hidden_size=256,
    num_layers=8,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=704,
    vocab_size=2048,
    num_experts=1,
    experts_per_token=1,
    is_tied=True,
    quantization=None,
    weight_bytes=27_804_672,
    parameters=6_951_168,
    dtype="float32",
    has_tokenizer=True,
    has_chat_template=True,
)
HALF = replace(TINY, dtype="bfloat16", weight_bytes=TINY.weight_bytes // 2)
FOUR_BIT = replace(HALF, weight_bytes=TINY.parameters * 9 // 16, quantization=Quantization(4, 64))
MIB = 1 << 20


def job(**settings: Any) -> TrainJob:
    defaults = {"model": "m", "data": "d", "batch_size": 2, "max_length": 256, "micro_batch_tokens": 1 << 20}
    return build_train_job({**defaults, **settings})


def peak(model: BaseModel, backend: Backend | None = Backend.CPU, **settings: Any) -> int:
    return estimate_peak(model, job(**settings), backend=backend).total_bytes


# --- laws

COUNTS = st.integers(1, 300)
SETTINGS = st.fixed_dictionaries(
    {
        "batch_size": COUNTS,
        "max_length": st.integers(8, 5000),
        "micro_batch_tokens": st.integers(1, 10_000),
        "rank": COUNTS,
        "layers": st.integers(1, 12),
        "dropout": st.sampled_from([0.0, 0.1]),
        "gradient_checkpointing": st.booleans(),
        "precision": st.sampled_from(["auto", "float32", "bfloat16"]),
    }
)
MODELS = st.sampled_from(
    [TINY, HALF, FOUR_BIT, replace(TINY, head_dim=48, num_experts=4, experts_per_token=2)]
)
BACKENDS = st.sampled_from([None, *Backend])


@given(
    model=MODELS,
    backend=BACKENDS,
    settings=SETTINGS,
    grown=st.sampled_from(["batch_size", "max_length", "micro_batch_tokens", "rank", "layers"]),
    growth=COUNTS,
)
def test_the_estimate_never_falls_when_the_job_grows(
    model: BaseModel, backend: Backend | None, settings: dict[str, Any], grown: str, growth: int
) -> None:
    larger = {**settings, grown: settings[grown] + growth}

    assert peak(model, backend, **larger) >= peak(model, backend, **settings)


@given(
    model=MODELS,
    backend=BACKENDS,
    settings=SETTINGS,
    grown=st.sampled_from(
        ["hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "num_experts"]
    ),
    growth=COUNTS,
)
def test_the_estimate_never_falls_when_the_model_grows(
    model: BaseModel, backend: Backend | None, settings: dict[str, Any], grown: str, growth: int
) -> None:
    larger = replace(model, **{grown: getattr(model, grown) + growth})

    assert peak(larger, backend, **settings) >= peak(model, backend, **settings)


@given(model=MODELS, backend=st.sampled_from(list(Backend)), settings=SETTINGS)
def test_an_estimate_for_no_backend_in_particular_is_enough_for_each(
    model: BaseModel, backend: Backend, settings: dict[str, Any]
) -> None:
    assert peak(model, None, **settings) >= peak(model, backend, **settings)


@given(model=MODELS, settings=SETTINGS, longest=st.integers(1, 6000))
def test_the_parts_are_whole_bytes_and_shorter_rows_never_cost_more(
    model: BaseModel, settings: dict[str, Any], longest: int
) -> None:
    estimate = estimate_peak(model, job(**settings), longest)

    assert all(isinstance(part, int) and part >= 0 for part in estimate.parts.values())
    assert (
        estimate.total_bytes
        == sum(estimate.parts.values())
        <= estimate_peak(model, job(**settings)).total_bytes
    )
    assert estimate.label == "rough"


# --- against what was measured: `mx.get_peak_memory()` on MLX 0.32.4's CPU build, two Adam steps

MEASURED: list[tuple[BaseModel, dict[str, Any], float]] = [
    (replace(TINY, num_layers=4, weight_bytes=14_951_424), {}, 96.1),
    (TINY, {}, 162.9),
    (TINY, {"layers": 2}, 77.5),
    (TINY, {"dropout": 0.1}, 208.9),
    (TINY, {"gradient_checkpointing": True}, 69.7),
    (
        replace(TINY, num_heads=16, num_kv_heads=4, head_dim=16, weight_bytes=24_658_944),
        {"gradient_checkpointing": True, "max_length": 512},
        192.1,
    ),
    (replace(TINY, num_layers=4, weight_bytes=14_951_424), {"batch_size": 4, "max_length": 512}, 367.1),
    (replace(TINY, num_layers=4, weight_bytes=14_951_424), {"batch_size": 1, "max_length": 1024}, 228.6),
    (replace(TINY, num_layers=4, weight_bytes=14_951_424), {"rank": 64}, 112.0),
    (replace(TINY, num_layers=4, weight_bytes=29_631_488, vocab_size=16384), {}, 222.1),
    (HALF, {"precision": "bfloat16"}, 127.7),
    (replace(FOUR_BIT, num_layers=4, weight_bytes=2_103_296), {"precision": "bfloat16"}, 73.6),
]


@pytest.mark.parametrize(("model", "settings", "measured_mib"), MEASURED)
def test_the_estimate_lies_close_above_what_was_measured(
    model: BaseModel, settings: dict[str, Any], measured_mib: float
) -> None:
    estimated = peak(model, **settings) / MIB

    assert 0.95 * measured_mib < estimated < 1.25 * measured_mib


# --- what each choice does


def test_memory_follows_the_micro_batch_and_not_the_batch() -> None:
    cut = peak(TINY, batch_size=64, micro_batch_tokens=512)

    assert cut == peak(TINY, batch_size=2, micro_batch_tokens=512)
    assert cut < peak(TINY, batch_size=64) / 10


def test_a_row_longer_than_the_micro_batch_is_counted_whole() -> None:
    assert peak(TINY, batch_size=1, max_length=2048, micro_batch_tokens=64) == peak(
        TINY, batch_size=1, max_length=2048, micro_batch_tokens=2048
    )


def test_checkpointing_makes_activations_almost_flat_in_depth() -> None:
    deep = replace(TINY, num_layers=32)

    plain = estimate_peak(deep, job(), backend=Backend.CPU).parts["activations"]
    recomputed = estimate_peak(deep, job(gradient_checkpointing=True), backend=Backend.CPU).parts[
        "activations"
    ]

    assert recomputed < plain / 10


def test_16_bit_models_are_doubled_on_the_cpu_and_kept_elsewhere() -> None:
    weights = {backend: estimate_peak(HALF, job(), backend=backend).parts["weights"] for backend in Backend}

    assert weights == {
        Backend.CPU: TINY.parameters * 4,
        Backend.METAL: HALF.weight_bytes,
        Backend.CUDA: HALF.weight_bytes,
    }


def test_quantised_weights_stay_packed_whatever_the_precision() -> None:
    weights = estimate_peak(FOUR_BIT, job(precision="float32")).parts["weights"]

    assert FOUR_BIT.weight_bytes < weights < 1.2 * FOUR_BIT.weight_bytes


def test_attention_scores_are_left_out_only_where_attention_is_fused() -> None:
    scores = {
        backend: estimate_peak(HALF, job(), backend=backend).parts["attention_scores"] for backend in Backend
    }
    odd = estimate_peak(replace(HALF, head_dim=48), job(), backend=Backend.METAL).parts["attention_scores"]

    assert scores[Backend.METAL] == 0
    assert min(scores[Backend.CPU], scores[Backend.CUDA], odd) > 0


@pytest.mark.parametrize(
    ("targets", "parameters_per_rank"),
    [
        (None, 4 * (256 + 256) + 3 * (256 + 704)),
        (["self_attn.q_proj"], 256 + 256),
        (["q_proj", "down_proj"], 2 * 256 + 256 + 704),
        (["mlp.*"], 3 * (256 + 704)),
        (["mixer.unheard_of"], 256 + 704),
    ],
)
def test_only_targets_get_adapters_and_an_unknown_one_counts_as_the_widest(
    targets: list[str] | None, parameters_per_rank: int
) -> None:
    estimate = estimate_peak(TINY, job(targets=targets, rank=4, layers=3))

    assert estimate.parts["adapters"] == parameters_per_rank * 4 * 3 * 4
    assert estimate.parts["optimizer"] == 2 * estimate.parts["adapters"]


def test_sgd_keeps_one_moment() -> None:
    estimate = estimate_peak(TINY, job(**{"optimizer.name": "sgd"}))

    assert estimate.parts["optimizer"] == estimate.parts["adapters"]


# --- bytes for people


@pytest.mark.parametrize(
    ("number_of_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KB"),
        (1536, "1.5 KB"),
        (MIB - 1, "1 MB"),
        (16 << 30, "16 GB"),
        (14_388_390_297, "13.4 GB"),
        (5 << 40, "5 TB"),
        (-3 << 30, "-3 GB"),
    ],
)
def test_bytes_are_written_as_macs_are_sold(number_of_bytes: int, text: str) -> None:
    assert format_bytes(number_of_bytes) == text


@given(st.integers(1, 1 << 44))
def test_what_is_written_can_be_read_again(number_of_bytes: int) -> None:
    assert parse_bytes(format_bytes(number_of_bytes)) == pytest.approx(number_of_bytes, rel=0.051)
