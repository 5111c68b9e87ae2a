"""What the estimate of a job's peak memory is made of, and what each choice does to it."""

from __future__ import annotations

from typing import Any

import pytest

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import (
    Backend,
    MemoryEstimate,
    cache_in,
    estimate_micro_batch,
    estimate_peak,
    moments,
)
from graft_scheduler.memory.cuts import largest_cuts
from graft_scheduler.memory.shape import Shape
from tests.scheduler import plans
from tests.scheduler.models import make_model

TINY = make_model()
HALF = make_model("bfloat16")
FOUR_BIT = make_model("bfloat16", quantization={"bits": 4, "group_size": 64})
WORDY = make_model(num_hidden_layers=4, vocab_size=32768)
MIB = 1 << 20


def job(**settings: Any) -> TrainJob:
    defaults = {"batch_size": 2, "max_length": 256, "micro_batch_tokens": 512}
    return plans.job(**{**defaults, **settings})


def estimate(model: BaseModel, backend: Backend = Backend.CPU, /, **settings: Any) -> MemoryEstimate:
    return estimate_peak(model, job(**settings), backend=backend)


# --- what is computed at once


def test_memory_follows_the_micro_batch_and_not_the_batch() -> None:
    cut = estimate(TINY, batch_size=64, micro_batch_tokens=512).total_bytes

    assert cut == estimate(TINY, batch_size=4, micro_batch_tokens=512).total_bytes
    assert cut < estimate(TINY, batch_size=64, micro_batch_tokens=64 * 256).total_bytes / 10


def test_a_job_that_leaves_its_cut_open_is_taken_to_compute_a_step_at_once() -> None:
    left_open = estimate(TINY, batch_size=8, micro_batch_tokens=None)

    assert left_open == estimate(TINY, batch_size=8, micro_batch_tokens=8 * 255)
    assert left_open == estimate(TINY, batch_size=8, micro_batch_tokens=None, gradient_checkpointing=False)


def test_a_row_longer_than_the_micro_batch_is_counted_whole() -> None:
    long = {"batch_size": 1, "max_length": 2048}

    assert estimate(TINY, **long, micro_batch_tokens=64) == estimate(TINY, **long, micro_batch_tokens=2048)


def test_a_micro_batch_alone_is_part_of_the_whole() -> None:
    whole = estimate(TINY, batch_size=4, micro_batch_tokens=4 * 255)

    sizes = [estimate_micro_batch(TINY, job(), Backend.CPU, rows, 255) for rows in (1, 2, 4)]

    assert sizes == sorted(sizes)
    assert whole.moment == "gradient"
    assert sizes[-1] == whole.peak_bytes


def test_checkpointing_keeps_little_more_of_a_block_than_its_input() -> None:
    def growth(recomputes: bool) -> float:
        """By each further block, of a micro-batch's peak without the weights."""
        settings = job(rank=1, gradient_checkpointing=recomputes)
        peaks = [
            estimate_micro_batch(model, settings, Backend.CPU, 8, 255) - model.weight_bytes
            for model in (make_model(num_hidden_layers=32), make_model(num_hidden_layers=16))
        ]
        return (peaks[0] - peaks[1]) / 16

    block_input = 8 * 255 * 256 * 4
    assert growth(True) == pytest.approx(block_input, rel=0.25)
    assert growth(False) > 15 * block_input


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("backend", list(Backend))
def test_a_deep_model_is_estimated_from_some_of_its_blocks(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, recomputes: bool
) -> None:
    model, settings = make_model(num_hidden_layers=24), job(gradient_checkpointing=recomputes)

    from_some = estimate_micro_batch(model, settings, backend, 2, 255)
    monkeypatch.setattr(moments, "SHOWN_BLOCKS", 24)
    from_all = estimate_micro_batch(model, settings, backend, 2, 255)

    assert from_some == pytest.approx(from_all, rel=0.1)


def test_a_step_of_one_row_holds_one_gradient_less() -> None:
    gradients = [
        estimate(TINY, batch_size=rows, micro_batch_tokens=256).parts["gradients"] for rows in (1, 2)
    ]

    assert gradients[1] - gradients[0] == 4928 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("shortest", "gradients", "changes"),
    [
        (256, 1, {}),
        (254, 1, {}),  # 6 tokens of padding are less than another micro-batch costs
        (253, 2, {}),
        (1, 2, {}),
        (1, 1, {"batching": "padded"}),
        (256, 2, {"batching": "packed"}),
    ],
)
def test_a_step_that_is_never_parted_holds_one_gradient(
    shortest: int, gradients: int, changes: dict[str, str]
) -> None:
    spec = job(batch_size=4, micro_batch_tokens=1024, compute={"compile": False, **changes})

    cuts = largest_cuts(Shape(TINY, spec, Backend.CPU), 255, shortest - 1)

    assert max(cut.held_gradients for cut in cuts) == gradients


def test_a_step_that_does_not_fit_is_parted_though_its_rows_are_alike() -> None:
    alike = estimate_peak(TINY, job(method="full", batch_size=2), 256, Backend.CPU, 256)
    parted = estimate_peak(TINY, job(method="full", batch_size=3), 256, Backend.CPU, 256)

    assert parted.parts["gradients"] > 1.9 * alike.parts["gradients"]


def test_dropout_keeps_a_copy_of_what_every_adapter_reads() -> None:
    assert estimate(TINY, dropout=0.1).parts["activations"] > 1.2 * estimate(TINY).parts["activations"]


# --- the base


def test_16_bit_models_are_doubled_on_the_cpu_and_kept_elsewhere() -> None:
    weights = {backend: estimate(HALF, backend).parts["weights"] for backend in Backend}

    assert weights == {
        Backend.CPU: TINY.parameters * 4,
        Backend.METAL: HALF.weight_bytes,
        Backend.CUDA: HALF.weight_bytes,
    }


def test_numbers_take_the_dtype_of_what_they_meet() -> None:
    """A cap on the scores is computed in 16 bits where the scores are."""
    settings: dict[str, Any] = {
        "head_dim": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    scores = [
        estimate(make_model(dtype, model_type="gemma2", **settings), Backend.CUDA).parts["attention_scores"]
        for dtype in ("float32", "bfloat16")
    ]

    assert scores[0] == 2 * scores[1]


def test_cuda_keeps_a_mask_of_numbers_for_every_head_and_block_with_a_window() -> None:
    windowed = make_model("bfloat16", model_type="gemma3_text", sliding_window=64, sliding_window_pattern=2)

    scores = [
        estimate(windowed, backend).parts["attention_scores"] for backend in (Backend.CUDA, Backend.METAL)
    ]

    assert scores[1] == 0
    assert scores[0] >= (windowed.num_layers // 2) * 2 * windowed.num_heads * 256 * 256 * 2


def test_quantised_weights_stay_packed_whatever_the_precision() -> None:
    weights = estimate(FOUR_BIT, Backend.METAL, precision="float32").parts["weights"]

    assert FOUR_BIT.weight_bytes < weights < 1.2 * FOUR_BIT.weight_bytes


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
    assert estimate(model, backend, method="qlora", **settings).parts["weights"] == weight_bytes


def test_a_base_that_is_quantised_on_load_is_whole_module_by_module() -> None:
    wide = make_model("bfloat16", hidden_size=4096, vocab_size=32768)
    small = {"rank": 1, "layers": 1, "batch_size": 1, "max_length": 8, "micro_batch_tokens": 8}

    found = estimate(wide, Backend.CPU, method="qlora", **small)

    assert found.moment == "loading"
    assert found.parts["workspace"] == (32768 * 4096 + 4096 * 704) * 4
    assert found.parts["activations"] == 0


def test_attention_scores_are_left_out_only_where_the_gradient_of_attention_is_fused() -> None:
    long = {"max_length": 1024, "micro_batch_tokens": 2048}
    odd = make_model("bfloat16", head_dim=48)
    scores = {
        "metal": estimate(HALF, Backend.METAL, **long).parts["attention_scores"],
        "cuda": estimate(HALF, Backend.CUDA, **long).parts["attention_scores"],
        "cuda, float32": estimate(TINY, Backend.CUDA, **long).parts["attention_scores"],
        "cpu": estimate(HALF, Backend.CPU, **long).parts["attention_scores"],
        "metal, an odd width": estimate(odd, Backend.METAL, **long).parts["attention_scores"],
    }

    assert [name for name, size in scores.items() if size == 0] == ["metal", "cuda"]


def test_a_base_of_which_something_is_guessed_is_given_more_and_says_so() -> None:
    known, unknown = estimate(TINY), estimate(make_model(model_type="unheard_of"))

    assert known.doubt is None
    assert unknown.doubt is not None
    assert "unheard_of" in unknown.doubt
    assert unknown.peak_bytes - known.peak_bytes == pytest.approx(
        (known.peak_bytes - known.parts["weights"]) / 4, abs=1
    )


# --- the loss


def test_the_chunked_loss_never_has_all_logits() -> None:
    chunk_bytes = 512 * 32768 * 4
    logits = {
        (rows, kernel): estimate(
            WORDY, batch_size=rows, micro_batch_tokens=rows * 256, **{"compute.loss": kernel}
        ).parts["logits"]
        for rows in (32, 64)
        for kernel in ("plain", "chunked")
    }

    assert logits[64, "plain"] > 2 * 64 * 255 * 32768 * 4
    assert logits[64, "chunked"] == pytest.approx(logits[32, "chunked"], rel=0.05)
    assert logits[64, "chunked"] < 11 * chunk_bytes


def test_the_head_of_a_large_vocabulary_has_chunks_of_few_tokens() -> None:
    found = estimate(make_model(vocab_size=1 << 20), micro_batch_tokens=512)

    assert found.parts["logits"] < 11 * 32 * (1 << 20) * 4  # of 510 tokens there would be 2 GiB at least


def test_evaluation_reads_as_many_rows_at_once_as_the_budget_allows() -> None:
    single = {"batch_size": 1, "max_length": 8, "micro_batch_tokens": 4096, "compute.loss": "plain"}

    all_at_once = estimate(WORDY, **single)
    few = estimate(WORDY, **single, **{"evaluation.rows": 2})

    assert all_at_once.moment == "evaluation"
    assert all_at_once.parts["logits"] >= 4095 * 32768 * 4
    assert few.total_bytes < all_at_once.total_bytes / 4


# --- packing


def test_packed_lines_pay_for_attention_of_their_whole_width() -> None:
    rows = {"batch_size": 20, "max_length": 100, "micro_batch_tokens": 2048, "evaluation.rows": 1}

    packed = estimate(TINY, **rows, **{"compute.batching": "packed"}).parts["attention_scores"]
    padded = estimate(TINY, **rows, **{"compute.batching": "padded"}).parts["attention_scores"]

    assert packed > 8 * padded  # ten rows to a line


def test_a_compiled_packed_line_is_always_full() -> None:
    packed = {"batch_size": 3, "max_length": 100, "compute.batching": "packed", "micro_batch_tokens": 4096}

    compiled = estimate(TINY, Backend.CUDA, **packed, **{"evaluation.rows": 1})
    exact = estimate(TINY, Backend.CUDA, **packed, **{"compute.compile": False, "evaluation.rows": 1})

    assert exact.parts["attention_scores"] < compiled.parts["attention_scores"] / 10


# --- what is trained


LORA = 4928 * 4 * 3  # numbers in a block's adapters by rank, rank, blocks
MAGNITUDES = (4 * 256 + 2 * 704 + 256) * 3


@pytest.mark.parametrize(
    ("targets", "parameters_per_rank"),
    [
        (None, 4 * (256 + 256) + 3 * (256 + 704)),
        (["self_attn.q_proj"], 256 + 256),
        (["q_proj", "down_proj"], 2 * 256 + 256 + 704),
        (["mlp.*"], 3 * (256 + 704)),
        (["mixer.unheard_of"], 4 * (256 + 256) + 3 * (256 + 704)),
    ],
)
def test_only_targets_get_adapters_and_all_do_where_one_is_not_known(
    targets: list[str] | None, parameters_per_rank: int
) -> None:
    found = estimate(TINY, targets=targets, rank=4, layers=3)

    masters = parameters_per_rank * 4 * 3 * 4
    assert found.parts["adapters"] == masters
    assert found.parts["optimizer"] == 2 * masters


@pytest.mark.parametrize(
    ("model", "settings", "adapter_bytes", "moment_bytes"),
    [
        (TINY, {}, LORA * 4, LORA * 4),
        (HALF, {}, LORA * (4 + 2), LORA * 4),  # copies in the base's dtype
        (HALF, {"compute.branch_dtype": "float32"}, LORA * 4, LORA * 4),
        (make_model("float16"), {}, LORA * 4, LORA * 4),  # small gradients would vanish
        (HALF, {"method": "qlora"}, LORA * (4 + 2), LORA * 4),
        (TINY, {"method": "dora"}, (LORA + MAGNITUDES) * 4, (LORA + MAGNITUDES) * 4),
    ],
)
def test_masters_are_float32_and_computed_with_in_the_dtype_of_the_branch(
    model: BaseModel, settings: dict[str, Any], adapter_bytes: int, moment_bytes: int
) -> None:
    found = estimate(model, Backend.METAL, rank=4, layers=3, **settings)

    assert found.parts["adapters"] == adapter_bytes
    assert found.parts["optimizer"] == 2 * moment_bytes


def test_float32_adapters_of_a_16_bit_base_copy_what_they_read() -> None:
    activations = [
        estimate(HALF, Backend.METAL, layers=1, rank=1, **{"compute.branch_dtype": dtype}).parts[
            "activations"
        ]
        for dtype in ("base", "float32")
    ]

    assert activations[1] > 1.2 * activations[0]


def test_rank_auto_is_trained_at_the_largest_rank() -> None:
    assert estimate(TINY, rank="auto", max_rank=48) == estimate(TINY, rank=48)


BLOCK = 4 * 256 * 256 + 3 * 256 * 704 + 2 * 256


@pytest.mark.parametrize(
    ("model", "layers", "weight_bytes", "learned"),
    [
        (TINY, None, 0, 6_951_168),  # the model's own weights are the masters
        (HALF, None, HALF.weight_bytes, 6_951_168),
        (TINY, 2, (6_951_168 - 2 * BLOCK) * 4, 2 * BLOCK),
    ],
)
def test_a_full_fine_tune_has_masters_and_moments_of_all_that_learns(
    model: BaseModel, layers: int | None, weight_bytes: int, learned: int
) -> None:
    found = estimate(model, Backend.METAL, method="full", layers=layers)

    assert found.parts["weights"] == weight_bytes
    assert found.parts["adapters"] == learned * 4
    assert found.parts["optimizer"] == 2 * learned * 4


@pytest.mark.parametrize(
    ("name", "moments"), [("adam", 2), ("adamw", 2), ("lion", 1), ("muon", 1), ("sgd", 1)]
)
def test_an_optimizer_keeps_its_moments(name: str, moments: int) -> None:
    found = estimate(TINY, rank=4, layers=3, **{"optimizer.name": name})

    assert found.parts["optimizer"] == moments * LORA * 4


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"rank": 4, "layers": 3}, (4928 + 7 * 2 * 4) * 3),
        ({"method": "full"}, (4928 + 2 * 256) * 8 + 2048 + 256 + 256),
        ({"method": "full", "layers": 1}, 4928 + 2 * 256),
    ],
)
def test_adafactor_keeps_rows_and_columns(settings: dict[str, Any], numbers: int) -> None:
    found = estimate(TINY, **settings, **{"optimizer.name": "adafactor"})

    assert found.parts["optimizer"] == numbers * 4


def test_a_step_of_many_parameters_and_few_tokens_is_dearest_when_it_is_applied() -> None:
    found = estimate(TINY, method="full", max_length=16, micro_batch_tokens=32)

    assert found.moment == "update"
    assert found.parts["gradients"] == 6_951_168 * 4


# --- what MLX keeps of what was freed


def test_the_cache_is_a_share_of_the_peak_within_bounds() -> None:
    small, large = estimate(TINY), estimate(TINY, batch_size=64, micro_batch_tokens=64 * 256)

    assert small.parts["cache"] == 32 * MIB
    assert large.parts["cache"] == large.peak_bytes // 10
    assert large.total_bytes == large.peak_bytes + large.parts["cache"]


def test_the_engine_gives_the_cache_what_the_estimate_leaves_it() -> None:
    large = estimate(TINY, batch_size=64, micro_batch_tokens=64 * 256)

    assert cache_in(large.total_bytes) == pytest.approx(large.parts["cache"], abs=1)
    assert cache_in(None) == 32 * MIB
    assert cache_in(1 << 40) == 2 << 30
