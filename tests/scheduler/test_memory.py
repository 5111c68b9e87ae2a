"""The estimate of a job's peak memory: its laws, its known values, and how bytes are written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.basemodels import BaseModel, Quantization
from graft_scheduler.hyperparameters import Batching, BranchDtype, LossKernel, OptimizerName
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
FOUR_BLOCKS = replace(TINY, num_layers=4, weight_bytes=14_951_424, parameters=3_737_856)
WORDY = replace(FOUR_BLOCKS, vocab_size=32768, weight_bytes=46_408_704, parameters=11_602_176)
MIB = 1 << 20


def job(**settings: Any) -> TrainJob:
    defaults = {"model": "m", "data": "d", "batch_size": 2, "max_length": 256, "micro_batch_tokens": 512}
    return build_train_job({**defaults, **settings})


def peak(model: BaseModel, backend: Backend | None = Backend.CPU, **settings: Any) -> int:
    return estimate_peak(model, job(**settings), backend=backend).total_bytes


# --- laws

COUNTS = st.integers(1, 300)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "batch_size": COUNTS,
    "max_length": st.integers(8, 5000),
    "micro_batch_tokens": st.integers(1, 10_000),
    "rank": COUNTS,
    "layers": st.integers(1, 12),
    "gradient_checkpointing": st.booleans(),
    "precision": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    "optimizer.name": st.sampled_from(list(OptimizerName)),
    "compute.batching": st.sampled_from(list(Batching)),
    "compute.loss": st.sampled_from(list(LossKernel)),
    "compute.branch_dtype": st.sampled_from(list(BranchDtype)),
    "compute.compile": st.booleans(),
}
FULL = st.fixed_dictionaries({**SETTINGS, "method": st.just("full")})
ADAPTED = st.fixed_dictionaries(
    {
        **SETTINGS,
        "method": st.sampled_from(["lora", "qlora", "dora"]),
        "dropout": st.sampled_from([0.0, 0.1]),
    }
)
JOBS = FULL | ADAPTED
MODELS = st.sampled_from(
    [
        TINY,
        HALF,
        FOUR_BIT,
        replace(TINY, head_dim=48, num_experts=4, experts_per_token=2),
        replace(HALF, model_type="gemma2", is_tied=False),
    ]
)
BACKENDS = st.sampled_from([None, *Backend])


@given(
    model=MODELS,
    backend=BACKENDS,
    settings=JOBS,
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
    settings=JOBS,
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


@given(model=MODELS, backend=st.sampled_from(list(Backend)), settings=JOBS)
def test_an_estimate_for_no_backend_in_particular_is_enough_for_each(
    model: BaseModel, backend: Backend, settings: dict[str, Any]
) -> None:
    assert peak(model, None, **settings) >= peak(model, backend, **settings)


@given(model=MODELS, settings=JOBS, longest=st.integers(1, 6000))
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


# --- against what was measured: the peak of `mx.get_peak_memory()` on MLX 0.32.4's CPU build, two steps

MEASURED: list[tuple[BaseModel, dict[str, Any], float]] = [
    (FOUR_BLOCKS, {}, 90.6),
    (FOUR_BLOCKS, {"max_length": 512}, 180.9),
    (FOUR_BLOCKS, {"max_length": 512, "gradient_checkpointing": True}, 95.6),
    (FOUR_BLOCKS, {"max_length": 512, "compute.loss": "plain"}, 188.9),
    (FOUR_BLOCKS, {"max_length": 512, "dropout": 0.1}, 221.9),
    (FOUR_BLOCKS, {"max_length": 512, "rank": 64}, 207.2),
    (FOUR_BLOCKS, {"max_length": 32, "rank": 256}, 226.3),
    (FOUR_BLOCKS, {"rank": "auto"}, 100.5),
    (TINY, {"max_length": 512, "layers": 2}, 129.9),
    (WORDY, {}, 299.9),
    (WORDY, {"max_length": 512}, 558.2),
    (WORDY, {"max_length": 512, "compute.loss": "plain"}, 698.0),
    (FOUR_BLOCKS, {"max_length": 512, "method": "dora"}, 225.2),
    (FOUR_BLOCKS, {"max_length": 512, "method": "dora", "gradient_checkpointing": True}, 110.2),
    (FOUR_BLOCKS, {"max_length": 32, "method": "dora", "gradient_checkpointing": True}, 23.1),
    (FOUR_BLOCKS, {"method": "dora", "rank": 64}, 137.3),
    (FOUR_BLOCKS, {"max_length": 32, "method": "full"}, 94.0),
    (FOUR_BLOCKS, {"max_length": 512, "method": "full"}, 238.5),
    (FOUR_BLOCKS, {"method": "full", "gradient_checkpointing": True}, 112.4),
    (FOUR_BLOCKS, {"max_length": 32, "method": "full", "optimizer.name": "lion"}, 88.5),
    (FOUR_BLOCKS, {"method": "full", "layers": 2}, 81.2),
    (WORDY, {"max_length": 512, "method": "full"}, 694.7),
    (WORDY, {"method": "full", "compute.loss": "plain"}, 500.6),
]


@pytest.mark.parametrize(("model", "settings", "measured_mib"), MEASURED)
def test_the_estimate_lies_close_above_what_was_measured(
    model: BaseModel, settings: dict[str, Any], measured_mib: float
) -> None:
    tokens = 2 * settings.get("max_length", 256)
    estimated = peak(model, **{"micro_batch_tokens": tokens, "evaluation.rows": 1, **settings}) / MIB

    assert 0.95 * measured_mib < estimated < 1.25 * measured_mib


# --- what each choice does


def test_memory_follows_the_micro_batch_and_not_the_batch() -> None:
    cut = peak(TINY, batch_size=64, micro_batch_tokens=512)

    assert cut == peak(TINY, batch_size=3, micro_batch_tokens=512)
    assert cut < peak(TINY, batch_size=64, micro_batch_tokens=64 * 256) / 10


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

    masters = parameters_per_rank * 4 * 3 * 4
    assert estimate.parts["adapters"] == masters
    assert estimate.parts["optimizer"] == 2 * masters


LORA = 4928 * 4 * 3  # numbers in a block's adapters by rank, rank, blocks
MAGNITUDES = (4 * 256 + 2 * 704 + 256) * 3


@pytest.mark.parametrize(
    ("model", "settings", "adapter_bytes", "moment_bytes"),
    [
        (TINY, {}, LORA * 4, LORA * 4),
        (HALF, {}, LORA * (4 + 2), LORA * 4),  # copies in the base's dtype
        (HALF, {"compute.branch_dtype": "float32"}, LORA * 4, LORA * 4),
        (replace(HALF, dtype="float16"), {}, LORA * 4, LORA * 4),  # small gradients would vanish
        (HALF, {"method": "qlora"}, LORA * (4 + 2), LORA * 4),
        (
            TINY,
            {"method": "dora"},
            (LORA + MAGNITUDES) * 4 + MAGNITUDES * 4,  # and the norms of the base's rows
            (LORA + MAGNITUDES) * 4,
        ),
    ],
)
def test_masters_are_float32_and_computed_with_in_the_dtype_of_the_branch(
    model: BaseModel, settings: dict[str, Any], adapter_bytes: int, moment_bytes: int
) -> None:
    estimate = estimate_peak(model, job(rank=4, layers=3, **settings), backend=Backend.METAL)

    assert estimate.parts["adapters"] == adapter_bytes
    assert estimate.parts["optimizer"] == 2 * moment_bytes


@pytest.mark.parametrize(
    ("settings", "read_width"),
    [
        ({}, 256 + 256 + 256 + 704),
        ({"targets": ["q_proj", "v_proj"]}, 256),
        ({"targets": ["q_proj", "mixer.unheard_of"]}, 256 + 256),
        ({"method": "dora"}, 4 * 256 + 2 * 256 + 704),
    ],
)
def test_float32_adapters_of_a_16_bit_base_copy_an_input_once_for_all_that_read_it(
    settings: dict[str, Any], read_width: int
) -> None:
    activations = [
        estimate_peak(
            HALF, job(layers=1, rank=1, **settings, **{"compute.branch_dtype": dtype}), None, Backend.METAL
        ).parts["activations"]
        for dtype in ("float32", "base")
    ]

    linears = len(settings.get("targets", range(7)))
    assert activations[0] - activations[1] == 512 * (read_width * 4 + linears * 2)


def test_rank_auto_is_trained_at_the_largest_rank() -> None:
    assert peak(TINY, rank="auto", max_rank=48) == peak(TINY, rank=48)


BLOCK = 4 * 256 * 256 + 3 * 256 * 704 + 2 * 256


@pytest.mark.parametrize(
    ("model", "layers", "adapter_bytes", "moment_bytes"),
    [
        (TINY, None, 6_951_168 * 4, 6_951_168 * 4),  # those of the step before; the weights are the masters
        (HALF, None, 6_951_168 * 4, 6_951_168 * 4),  # the masters; a copy in its dtype is its weights
        (TINY, 2, BLOCK * 2 * 4, BLOCK * 2 * 4),
    ],
)
def test_a_full_fine_tune_has_masters_and_moments_of_all_that_learns(
    model: BaseModel, layers: int | None, adapter_bytes: int, moment_bytes: int
) -> None:
    settings = {"method": "full", "layers": layers}
    estimate = estimate_peak(model, job(**settings), backend=Backend.METAL)

    assert estimate.parts["weights"] == model.weight_bytes
    assert estimate.parts["adapters"] == adapter_bytes
    assert estimate.parts["optimizer"] == 2 * moment_bytes


@pytest.mark.parametrize(
    ("name", "moments"), [("adam", 2), ("adamw", 2), ("lion", 1), ("muon", 1), ("sgd", 1)]
)
def test_an_optimizer_keeps_its_moments(name: str, moments: int) -> None:
    estimate = estimate_peak(TINY, job(rank=4, layers=3, **{"optimizer.name": name}))

    assert estimate.parts["optimizer"] == moments * LORA * 4


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"rank": 4, "layers": 3}, (4928 + 7 * 2 * 4) * 3),
        ({"method": "full"}, (4928 + 2 * 256) * 8 + 2 * (2048 + 256)),
        ({"method": "full", "layers": 1}, 4928 + 2 * 256),
    ],
)
def test_adafactor_keeps_rows_and_columns(settings: dict[str, Any], numbers: int) -> None:
    estimate = estimate_peak(TINY, job(**settings, **{"optimizer.name": "adafactor"}))

    assert estimate.parts["optimizer"] == numbers * 4


@pytest.mark.parametrize(
    ("model", "settings", "backend", "weight_bytes"),
    [
        (TINY, {}, Backend.CPU, 6_951_168 // 2 + 2 * 6_951_168 * 4 // 64),
        (HALF, {}, Backend.METAL, 6_951_168 // 2 + 2 * 6_951_168 * 2 // 64),
        (HALF, {"bits": 8, "group_size": 32}, Backend.METAL, 6_951_168 + 2 * 6_951_168 * 2 // 32),
        (FOUR_BIT, {}, Backend.METAL, FOUR_BIT.weight_bytes),
    ],
)
def test_qlora_quantises_a_base_that_is_not(
    model: BaseModel, settings: dict[str, Any], backend: Backend, weight_bytes: int
) -> None:
    estimate = estimate_peak(model, job(method="qlora", **settings), backend=backend)

    assert estimate.parts["weights"] == weight_bytes


def test_a_base_that_is_quantised_on_load_is_whole_module_by_module() -> None:
    wide = replace(HALF, hidden_size=4096, vocab_size=32768, parameters=1 << 30)
    small = job(method="qlora", rank=1, layers=1, batch_size=1, max_length=8, micro_batch_tokens=8)

    estimate = estimate_peak(wide, small, backend=Backend.METAL)

    assert estimate.parts["workspace"] == (32768 * 4096 + 4096 * 704) * 2
    assert estimate.parts["activations"] == 0


@pytest.mark.parametrize(
    ("settings", "logit_bytes"),
    [
        ({"max_length": 512}, 512 * 32768 * 12 + 512 * 256 * 4),
        ({"max_length": 4096}, 1152 * 32768 * 12 + 4096 * 256 * 4),  # 2.25 chunks, the gradient of all
        ({"max_length": 512, "compute.loss": "plain"}, 512 * 32768 * 16),
        ({"max_length": 512, "method": "full"}, 512 * 32768 * 12 + (512 + 32768) * 256 * 4),
    ],
)
def test_the_chunked_loss_never_has_all_logits(settings: dict[str, Any], logit_bytes: int) -> None:
    whole = job(batch_size=1, micro_batch_tokens=8, **settings)

    assert estimate_peak(WORDY, whole, backend=Backend.CPU).parts["logits"] == logit_bytes


def test_the_head_of_a_large_vocabulary_has_chunks_of_few_tokens() -> None:
    wordier = replace(TINY, vocab_size=1 << 20)
    estimate = estimate_peak(wordier, job(micro_batch_tokens=8), backend=Backend.CPU)

    assert estimate.parts["logits"] == round(2.25 * 32) * (1 << 20) * 12 + 256 * 256 * 4


def test_evaluation_reads_as_many_rows_at_once_as_the_budget_allows() -> None:
    single = {"batch_size": 1, "max_length": 8, "micro_batch_tokens": 4096, "compute.loss": "plain"}

    estimate = estimate_peak(WORDY, job(**single), backend=Backend.CPU)
    few = estimate_peak(WORDY, job(**single, **{"evaluation.rows": 2}), backend=Backend.CPU)

    assert estimate.parts["logits"] == 4096 * 32768 * 8
    assert estimate.parts["activations"] == 0
    assert few.total_bytes < estimate.total_bytes / 4


@pytest.mark.parametrize(
    ("rows", "budget", "tokens", "width"),
    [
        (20, 4096, 2 * 1024, 1024),  # ten rows to a line
        (20, 1024, 1024, 1024),
        (3, 4096, 300, 300),  # one line, no longer than it has to be
    ],
)
def test_packed_lines_pay_for_attention_of_their_whole_width(
    rows: int, budget: int, tokens: int, width: int
) -> None:
    packed = job(
        batch_size=rows,
        max_length=100,
        micro_batch_tokens=budget,
        **{"compute.batching": "packed", "evaluation.rows": 1},
    )

    estimate = estimate_peak(TINY, packed, backend=Backend.CPU)

    assert estimate.parts["attention_scores"] == tokens * width * 4 * 4 * 8 * 1.25


def test_a_compiled_packed_line_is_always_full() -> None:
    packed = {"batch_size": 3, "max_length": 100, "compute.batching": "packed", "micro_batch_tokens": 4096}

    compiled = estimate_peak(TINY, job(**packed), backend=Backend.CUDA)
    exact = estimate_peak(TINY, job(**packed, **{"compute.compile": False}), backend=Backend.CUDA)

    assert compiled.parts["attention_scores"] == 4096 * 1024 * 4 * 4 * 8 * 1.25
    assert exact.parts["attention_scores"] < compiled.parts["attention_scores"] / 10


def test_a_step_of_one_row_holds_one_gradient_less() -> None:
    sizes = {"micro_batch_tokens": 256}
    gradients = [
        estimate_peak(TINY, job(batch_size=rows, **sizes), backend=Backend.CPU).parts["gradients"]
        for rows in (1, 2)
    ]

    assert gradients[1] - gradients[0] == 4928 * 8 * 8 * 4


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
