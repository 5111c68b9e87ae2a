"""Laws of the estimate of a job's peak memory: it never falls when the job or the model grows."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from graft_scheduler.hyperparameters import Batching, BranchDtype, LossKernel, OptimizerName
from graft_scheduler.memory import Backend, estimate_peak
from tests.scheduler.models import make_model
from tests.scheduler.plans import job

UNEVEN = 0.85
"""How far MLX's own peak may fall where more blocks of a small model are computed again: its order, and
so what lies there, changes with their number."""
EXAMPLES = settings(max_examples=5, deadline=None, derandomize=True)
"""An estimate that was not made before takes about 0.1 s. With `derandomize=False` and many examples
this looks for new counterexamples."""

COUNTS = st.integers(1, 64)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "batch_size": COUNTS,
    "max_length": st.integers(8, 3000),
    "micro_batch_tokens": st.none() | st.integers(1, 10_000),
    "rank": COUNTS,
    "layers": st.integers(1, 12),
    "gradient_checkpointing": st.sampled_from([None, False, True]),
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
CONFIGS: list[dict[str, Any]] = [
    {},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "quantization": {"bits": 4, "group_size": 64}},
    {"head_dim": 48, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2},
    {"dtype": "bfloat16", "model_type": "gemma2", "tie_word_embeddings": False},
    {"dtype": "bfloat16", "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 512},
]
MODELS = st.sampled_from(CONFIGS)
BACKENDS = st.sampled_from([None, *Backend])


def total(config: dict[str, Any], backend: Backend | None, **changes: Any) -> int:
    return estimate_peak(make_model(**config), job(**changes), backend=backend).total_bytes


@EXAMPLES
@given(
    config=MODELS,
    backend=BACKENDS,
    changes=JOBS,
    grown=st.sampled_from(["batch_size", "max_length", "rank", "layers"]),
    growth=COUNTS,
)
def test_the_estimate_never_falls_when_the_job_grows(
    config: dict[str, Any], backend: Backend | None, changes: dict[str, Any], grown: str, growth: int
) -> None:
    larger = {**changes, grown: changes[grown] + growth}
    share = UNEVEN if grown == "layers" and changes["gradient_checkpointing"] else 1.0

    assert total(config, backend, **larger) >= share * total(config, backend, **changes)


@EXAMPLES
@given(config=MODELS, backend=BACKENDS, changes=JOBS, tokens=st.integers(1, 10_000), growth=COUNTS)
def test_the_estimate_never_falls_when_more_is_computed_at_once(
    config: dict[str, Any], backend: Backend | None, changes: dict[str, Any], tokens: int, growth: int
) -> None:
    smaller = {**changes, "micro_batch_tokens": tokens}
    larger = {**changes, "micro_batch_tokens": tokens + growth}

    assert total(config, backend, **larger) >= total(config, backend, **smaller)


@EXAMPLES
@given(
    config=MODELS,
    backend=BACKENDS,
    changes=JOBS,
    grown=st.sampled_from(
        ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
    ),
    times=st.integers(1, 3),
)
def test_the_estimate_never_falls_when_the_model_grows(
    config: dict[str, Any], backend: Backend | None, changes: dict[str, Any], grown: str, times: int
) -> None:
    sizes = {
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "intermediate_size": 704,
        "vocab_size": 2048,
    }
    larger = {**config, grown: sizes[grown] * (times + 1)}
    share = 1.0
    if grown == "num_hidden_layers":
        share = UNEVEN if changes["gradient_checkpointing"] else 1.0
        # Else all blocks, and with them the embeddings, may be trained of one model alone.
        changes = {**changes, "layers": None}

    assert total(larger, backend, **changes) >= share * total(config, backend, **changes)


@EXAMPLES
@given(config=MODELS, backend=st.sampled_from(list(Backend)), changes=JOBS)
def test_an_estimate_for_no_backend_in_particular_is_enough_for_each(
    config: dict[str, Any], backend: Backend, changes: dict[str, Any]
) -> None:
    assert total(config, None, **changes) >= total(config, backend, **changes)


@EXAMPLES
@given(config=MODELS, backend=BACKENDS, changes=JOBS, longest=st.integers(1, 4000))
def test_the_parts_are_whole_bytes_and_shorter_rows_never_cost_more(
    config: dict[str, Any], backend: Backend | None, changes: dict[str, Any], longest: int
) -> None:
    estimate = estimate_peak(make_model(**config), job(**changes), longest, backend)

    assert all(isinstance(part, int) and part >= 0 for part in estimate.parts.values())
    assert estimate.total_bytes == estimate.peak_bytes + estimate.parts["cache"]
    assert estimate.total_bytes <= total(config, backend, **changes)
