"""How much memory a job will need at its peak, from the model's shape and the job alone.

Nothing is loaded and nothing is measured here. The form was derived from what one training step
keeps for its backward pass, and its factors were fitted on MLX's CPU build.
"""

from __future__ import annotations

from dataclasses import dataclass

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.hyperparameters import OptimizerName
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory_activations import (
    activation_bytes,
    evaluated_logit_bytes,
    forward_bytes,
    logit_bytes,
    score_bytes,
    workspace_bytes,
)
from graft_scheduler.memory_cuts import Cut, largest_cuts, padded
from graft_scheduler.memory_shape import (
    FLOAT32_BYTES,
    Backend,
    Shape,
    block_linears,
    is_target,
    tokens_at_once,
)
from graft_scheduler.memory_state import (
    masters_bytes,
    optimizer_bytes,
    quantised_to,
    trained_bytes,
    weight_bytes,
)

__all__ = ["Backend", "MemoryEstimate", "estimate_peak", "format_bytes", "is_target", "tokens_at_once"]

LOADED_AT_ONCE = 1
"""Layers that are whole at the same time while a base is quantised on load, beside the embeddings."""
ADAPTER_UPDATE_COPIES: dict[OptimizerName, int] = {
    OptimizerName.ADAMW: 6,
    OptimizerName.ADAM: 6,
    OptimizerName.LION: 5,
    OptimizerName.SGD: 2,
    OptimizerName.MUON: 1,
    OptimizerName.ADAFACTOR: 1,
}
"""Of all adapters while an update is computed, beside new ones; more where they lie end to end."""
UPDATED_AT_ONCE = 8
"""Matrices of a block that the update of a full fine-tune holds something of at the same time,"""
UPDATED_EMBEDDINGS = 4
MUON_EMBEDDINGS = 11
"""and copies of the embeddings, where they learn; Muon makes them orthogonal too."""

CAUSES = (
    "weights",
    "adapters",
    "gradients",
    "optimizer",
    "activations",
    "attention_scores",
    "logits",
    "workspace",
)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """A peak, by what causes it."""

    parts: dict[str, int]
    """Bytes by cause; every cause is there, also those of 0 bytes."""
    label: str = "rough"
    """How far to trust it: `rough` was corrected by no measurement."""

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


def estimate_peak(
    model: BaseModel, job: TrainJob, longest_tokens: int | None = None, backend: Backend | None = None
) -> MemoryEstimate:
    """The most memory that MLX's arrays take while `job` trains on `model`.

    Without a `backend` it is the dearest one's: enough for any host, and on a Mac often twice
    too much, as only Metal is taken to keep no attention scores (a fused backward came
    with MLX 0.32.4; nobody measured it here) and the CPU alone computes 16-bit models in float32.
    `longest_tokens` is the data's longest row; without it rows are taken to reach `max_length`.
    """
    if backend is None:
        return max((estimate_peak(model, job, longest_tokens, one) for one in Backend), key=_total)
    shape = Shape(model, job, backend)
    longest = min(longest_tokens or job.max_length, job.max_length)
    moments = [_at_gradient(shape, cut) for cut in largest_cuts(shape, longest)]
    moments += [_at_loading(shape), _at_evaluation(shape, longest), _at_update(shape)]
    return max((MemoryEstimate(parts) for parts in moments), key=_total)


def format_bytes(number_of_bytes: int) -> str:
    """`13.4 GB`: powers of 1024 under the names that Macs are sold with, as `parse_bytes` reads them."""
    value = float(number_of_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if round(abs(value), 1) < 1024:
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + " TB"


def _total(estimate: MemoryEstimate) -> int:
    return estimate.total_bytes


def _at_loading(shape: Shape) -> dict[str, int]:
    """Some of a base that is quantised on load is whole for a while, beside what becomes of it."""
    model, whole = shape.model, 0
    if quantised_to(shape) is not None:
        embeddings = model.vocab_size * model.hidden_size * (1 if model.is_tied else 2)
        layers = LOADED_AT_ONCE * max(linear.parameters for linear in block_linears(shape))
        whole = min(embeddings + layers, model.parameters) * shape.item_bytes
    return _parts(weights=weight_bytes(shape), workspace=whole)


def _at_gradient(shape: Shape, cut: Cut) -> dict[str, int]:
    """Between the loss of the largest micro-batch and the end of its backward pass."""
    logits = logit_bytes(shape, cut.tokens)
    return _resident(shape) | {
        "gradients": masters_bytes(shape) * cut.held_gradients,
        "activations": activation_bytes(shape, cut),
        "attention_scores": score_bytes(shape, cut),
        "logits": logits,
        "workspace": workspace_bytes(shape, cut, logits),
    }


def _at_evaluation(shape: Shape, longest: int) -> dict[str, int]:
    """Validation rows are as many as the token budget allows, whatever the batch."""
    width, rows = padded(shape, longest), shape.job.evaluation.rows
    budget = max(shape.job.micro_batch_tokens, width)
    cut = Cut(width, budget if rows is None else min(rows * width, budget), 0)
    logits = evaluated_logit_bytes(shape, cut.tokens)
    return _resident(shape) | {"logits": logits, "workspace": max(0, forward_bytes(shape, cut) - logits)}


def _at_update(shape: Shape) -> dict[str, int]:
    """A new copy of all that is trained, and what lies between it and the old one."""
    masters = masters_bytes(shape)
    between = masters * ADAPTER_UPDATE_COPIES[shape.job.optimizer.name]
    if shape.is_full:
        numbers = UPDATED_AT_ONCE * max(linear.parameters for linear in block_linears(shape))
        if shape.head_learns:
            is_muon = shape.job.optimizer.name is OptimizerName.MUON
            copies = MUON_EMBEDDINGS if is_muon else UPDATED_EMBEDDINGS
            numbers += copies * shape.model.vocab_size * shape.model.hidden_size
        between = numbers * FLOAT32_BYTES
    return _resident(shape) | {"gradients": masters, "workspace": masters + between}


def _resident(shape: Shape) -> dict[str, int]:
    """What lies there from the first step to the last."""
    return _parts(
        weights=weight_bytes(shape), adapters=trained_bytes(shape), optimizer=optimizer_bytes(shape)
    )


def _parts(**bytes_by_cause: int) -> dict[str, int]:
    return dict.fromkeys(CAUSES, 0) | bytes_by_cause
