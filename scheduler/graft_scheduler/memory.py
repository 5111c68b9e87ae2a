"""How much memory a job will need at its peak, from the model's shape and the job alone.

Nothing is loaded and nothing is measured here. The form was derived from what one training step
keeps for its backward pass, and its factors were fitted on MLX's CPU build.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.hyperparameters import OptimizerName, Precision
from graft_scheduler.jobs import TrainJob

FLOAT32_BYTES = 4
ADAPTER_ITEM_BYTES = FLOAT32_BYTES
"""Adapters, their gradients and the optimizer's state are float32 on any base."""
HELD_GRADIENTS = 2
"""Those of the micro-batch at work, and the sum of the ones before it."""
UPDATE_COPIES = 3
"""While an update is computed, new adapters and two new moments lie beside the old ones."""
WIDTH_MULTIPLE = 32
"""Rows are padded to a multiple of this."""

# Tensors of one token that a trained block keeps for its backward pass (fitted: 7.0, 1.7, 5.3).
KEPT_RESIDUALS = 4
"""Of the model's width: both norms' outputs and both residual sums."""
KEPT_QUERIES = 3
"""Of all heads' width: queries before and after their rotation, attention's output."""
KEPT_KEYS = 2
"""Of the key-value heads' width: keys and values."""
KEPT_MLP = 5.25
"""Of the MLP's width: gate, up, and what lies between them and the down projection."""
KEPT_SCORES = 1.25
"""Of heads x length, where attention keeps its scores."""

DROPOUT_BYTES = FLOAT32_BYTES + 1
"""For each input of an adapter: what was left of it, and the mask."""
LOSS_WORKSPACE_BYTES = 16
"""For each token and unit of the MLP's width, beside the logits when the loss is computed."""
BLOCK_WORKSPACE_BYTES = 45
"""For each token and unit of the MLP's width, while a block's gradient is computed, in float32."""
BLOCK_WORKSPACE_SCORES = 2.75
"""Of heads x length, at the same time; the logits are gone by then."""
FUSED_HEAD_DIMS = frozenset({64, 128})
"""Head widths that fused attention is taken to serve in training."""


class Backend(StrEnum):
    """What MLX runs on; it decides the dtype, and which operations are fused."""

    METAL = "metal"
    CUDA = "cuda"
    CPU = "cpu"


CPU_TOKENS = 256
"""Computed at once on the CPU: a small model needs a second for them, and a stop must wait as long."""

LOGIT_BYTES: dict[Backend, int] = {Backend.METAL: 8, Backend.CUDA: 16, Backend.CPU: 16}
"""For each token and word of the vocabulary: logits, loss and their gradients, in float32.

The CPU's was measured. Metal has a fused loss since MLX 0.32.3, said to take a quarter of that;
half is counted, as nobody measured it yet.
"""


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


@dataclass(frozen=True, slots=True)
class _Shape:
    """The numbers that the terms are products of."""

    model: BaseModel
    job: TrainJob
    backend: Backend
    width: int
    """Tokens in the longest row, padding included."""
    tokens: int
    """In a micro-batch."""

    @property
    def item_bytes(self) -> int:
        """Of the base's activations."""
        precision = self.job.precision
        if precision is Precision.AUTO and self.backend is not Backend.CPU:
            return FLOAT32_BYTES if self.model.dtype == "float32" else FLOAT32_BYTES // 2
        return FLOAT32_BYTES if precision in {Precision.AUTO, Precision.FLOAT32} else FLOAT32_BYTES // 2

    @property
    def trained_layers(self) -> int:
        return min(self.job.adapter.layers or self.model.num_layers, self.model.num_layers)

    @property
    def query_width(self) -> int:
        return self.model.num_heads * self.model.head_dim

    @property
    def kv_width(self) -> int:
        return self.model.num_kv_heads * self.model.head_dim

    @property
    def mlp_width(self) -> int:
        """Units of the MLP that one token passes."""
        return self.model.intermediate_size * self.model.experts_per_token


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear layer of a block."""

    name: str
    inputs: int
    outputs: int
    copies: int = 1
    """One for each expert."""
    passes: int = 1
    """How many of the copies one token goes through."""

    @property
    def parameters_per_rank(self) -> int:
        return (self.inputs + self.outputs) * self.copies


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
    width = -(-min(longest_tokens or job.max_length, job.max_length) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    tokens = min(job.batch_size * width, max(job.micro_batch_tokens, width))
    shape = _Shape(model, job, backend, width, tokens)
    adapter_bytes = _adapter_parameters(shape) * ADAPTER_ITEM_BYTES
    moments = 1 if job.optimizer.name is OptimizerName.SGD else 2
    return MemoryEstimate(
        {
            "weights": _weight_bytes(shape),
            "adapters": adapter_bytes,
            "gradients": adapter_bytes * HELD_GRADIENTS,
            "optimizer": adapter_bytes * moments,
            "activations": _activation_bytes(shape),
            "attention_scores": _score_bytes(shape),
            "logits": _logit_bytes(shape),
            "workspace": max(_workspace_bytes(shape), adapter_bytes * UPDATE_COPIES),
        }
    )


def tokens_at_once(asked: int, backend: Backend) -> int:
    """How many padded tokens the engine computes at once where a job allows `asked`."""
    return min(asked, CPU_TOKENS) if backend is Backend.CPU else asked


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


def _weight_bytes(shape: _Shape) -> int:
    """As stored where that is what it computes in; quantised weights always, but for their scales."""
    model = shape.model
    stored = FLOAT32_BYTES if model.dtype == "float32" else FLOAT32_BYTES // 2
    if shape.item_bytes == stored:
        return model.weight_bytes
    if model.quantization is None:
        return model.parameters * shape.item_bytes
    scales = 2 * model.parameters // model.quantization.group_size
    return model.weight_bytes + scales * max(0, shape.item_bytes - stored)


def _activation_bytes(shape: _Shape) -> int:
    """What trained blocks keep: everything, or with checkpointing their inputs and one block's all."""
    block = shape.tokens * _block_bytes(shape)
    if not shape.job.gradient_checkpointing:
        return block * shape.trained_layers
    inputs = shape.tokens * shape.model.hidden_size * shape.item_bytes
    return block + inputs * shape.trained_layers


def _block_bytes(shape: _Shape) -> int:
    """What one trained block keeps of one token."""
    linears = _adapted(shape)
    inputs = sum(linear.inputs * linear.passes for linear in linears)
    kept = (
        KEPT_RESIDUALS * shape.model.hidden_size
        + KEPT_QUERIES * shape.query_width
        + KEPT_KEYS * shape.kv_width
        + KEPT_MLP * shape.mlp_width
    ) * shape.item_bytes
    kept += sum(linear.passes for linear in linears) * shape.job.adapter.trained_rank * ADAPTER_ITEM_BYTES
    if shape.item_bytes < FLOAT32_BYTES:  # float32 adapters read a float32 copy of their input
        kept += inputs * FLOAT32_BYTES
    if shape.job.adapter.dropout:
        kept += inputs * DROPOUT_BYTES
    return round(kept)


def _score_bytes(shape: _Shape) -> int:
    layers = 1 if shape.job.gradient_checkpointing else shape.trained_layers
    return round(_one_score_bytes(shape) * layers * KEPT_SCORES)


def _one_score_bytes(shape: _Shape) -> int:
    """One tensor of heads x length for each token; none where attention is fused."""
    if shape.backend is Backend.METAL and shape.model.head_dim in FUSED_HEAD_DIMS:
        return 0
    return shape.tokens * shape.width * shape.model.num_heads * shape.item_bytes


def _logit_bytes(shape: _Shape) -> int:
    """16-bit logits and their gradient lie beside the float32 ones."""
    beside = 0 if shape.item_bytes == FLOAT32_BYTES else 2 * shape.item_bytes
    return shape.tokens * shape.model.vocab_size * (LOGIT_BYTES[shape.backend] + beside)


def _workspace_bytes(shape: _Shape) -> int:
    """At the loss, or in a block's backward pass as far as that exceeds the logits it comes after."""
    units = shape.tokens * shape.mlp_width
    block = units * BLOCK_WORKSPACE_BYTES + round(_one_score_bytes(shape) * BLOCK_WORKSPACE_SCORES)
    return max(units * LOSS_WORKSPACE_BYTES, block - _logit_bytes(shape))


def _adapter_parameters(shape: _Shape) -> int:
    block = sum(linear.parameters_per_rank for linear in _adapted(shape))
    return block * shape.job.adapter.trained_rank * shape.trained_layers


def _adapted(shape: _Shape) -> list[_Linear]:
    """The linear layers of a block that get an adapter; an unknown target counts as the widest."""
    linears = _linears(shape)
    targets = shape.job.adapter.targets
    if targets is None:
        return linears
    chosen = [linear for linear in linears if any(is_target(target, linear.name) for target in targets)]
    unknown = [target for target in targets if not any(is_target(target, linear.name) for linear in linears)]
    widest = max(linears, key=lambda linear: linear.parameters_per_rank)
    return chosen + [widest] * len(unknown)


def _linears(shape: _Shape) -> list[_Linear]:
    """Of a block in Llama's layout, which is taken for all."""
    model = shape.model
    hidden, mlp = model.hidden_size, model.intermediate_size
    copies, passes = model.num_experts, model.experts_per_token
    return [
        _Linear("self_attn.q_proj", hidden, shape.query_width),
        _Linear("self_attn.k_proj", hidden, shape.kv_width),
        _Linear("self_attn.v_proj", hidden, shape.kv_width),
        _Linear("self_attn.o_proj", shape.query_width, hidden),
        _Linear("mlp.gate_proj", hidden, mlp, copies, passes),
        _Linear("mlp.up_proj", hidden, mlp, copies, passes),
        _Linear("mlp.down_proj", mlp, hidden, copies, passes),
    ]


def is_target(target: str, module: str) -> bool:
    """Whether `target`, a name, a path's end or a pattern, means the module at this path in a block."""
    return module == target or module.endswith(f".{target}") or fnmatchcase(module, target)
