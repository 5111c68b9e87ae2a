"""How much memory a job will need at its peak, from the model's shape and the job alone.

Nothing is loaded and nothing is measured here. The form was derived from what one training step
keeps for its backward pass, and its factors were fitted on MLX's CPU build.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.hyperparameters import (
    Batching,
    BranchDtype,
    LossKernel,
    Method,
    OptimizerName,
    Precision,
    QuantizationConfig,
)
from graft_scheduler.jobs import TrainJob

FLOAT32_BYTES = 4
HALF_BYTES = 2
CHECK_GRADIENTS = 2
"""What the check of the loss's kernels found for all that is trained; it stays until training ends."""
FIRST_MASTERS = 1
"""What is trained as it began; that stays too."""
PACKED_GRADIENTS = 1
"""An adapter's gradients, once by name and once end to end."""
LOADED_AT_ONCE = 32
"""Layers that are whole at the same time while a base is quantised on load, beside the embeddings."""
WIDTH_MULTIPLE = 32
"""Rows are padded to a multiple of this on a GPU."""
HEIGHTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""How many rows a compiled micro-batch may have: as the engine's `cutting` has it."""
PACKED_WIDTH = 1024
"""Packed lines are filled up to this, or to the longest row: likewise."""

# Tensors of one token that a trained block keeps for its backward pass.
KEPT_RESIDUALS = 4
"""Of the model's width: both norms' outputs and both residual sums."""
KEPT_QUERIES = 3
"""Of all heads' width: queries before and after their rotation, attention's output."""
KEPT_KEYS = 2
"""Of the key-value heads' width: keys and values."""
KEPT_MLP = 5.25
"""Of the MLP's width: gate, up, and what lies between them and the down projection."""
KEPT_GELU = 3.5
"""Of the MLP's width, besides: Gemma's activation is made of more steps."""
KEPT_SCORES = 1.25
"""Of heads x length, where attention keeps its scores."""
KEPT_SOFTCAP = 1
"""Of heads x length, besides: Gemma 2 bends its scores."""
RECOMPUTED_BLOCKS = 1.5
"""With gradient checkpointing: the block at work, and what is not given back yet of those before."""
KEPT_MASK_BYTES = 1
"""For each pair of places in a packed line, in every block."""

DROPOUT_BYTES = FLOAT32_BYTES + 1
"""For each input of an adapter: what was left of it, and the mask."""
LOSS_WORKSPACE_BYTES = 16
"""For each token and unit of the MLP's width, beside the logits when the loss is computed."""
BLOCK_WORKSPACE_BYTES = 50
"""For each token and unit of the MLP's width, while a block's gradient is computed, in float32."""
BLOCK_WORKSPACE_SCORES = 1.9
"""Of heads x length, at the same time; the logits are gone by then."""
FORWARD_WORKSPACE_BYTES = 28
"""For each token and unit of the MLP's width, in a pass without a gradient."""
FORWARD_SCORES = 2.5
"""Of heads x length, at the same time."""
FUSED_HEAD_DIMS = frozenset({64, 128})
"""Head widths that fused attention is taken to serve in training."""

CHUNK_LOGITS = 1 << 24
MIN_CHUNK_TOKENS = 32
"""The chunked loss makes so many logits at once, and of no fewer tokens: as the engine has it."""
CHUNKS_AT_ONCE = 2.25
"""The next chunks are begun before the memory of the one before is back."""
CHUNK_BYTES = 12
"""For each logit of the chunks at once: logits, their powers and errors, in float32."""
EVALUATED_LOGIT_BYTES = 8
"""For each logit at once where no gradient is taken."""

MOMENTS: dict[OptimizerName, int] = {
    OptimizerName.ADAMW: 2,
    OptimizerName.ADAM: 2,
    OptimizerName.LION: 1,
    OptimizerName.MUON: 1,
    OptimizerName.SGD: 1,
}
"""Arrays of the size of what is trained; MLX's SGD keeps one without momentum too."""
ADAPTER_UPDATE_COPIES: dict[OptimizerName, int] = {
    OptimizerName.ADAMW: 5,
    OptimizerName.ADAM: 5,
    OptimizerName.LION: 4,
    OptimizerName.SGD: 2,
    OptimizerName.MUON: 1,
    OptimizerName.ADAFACTOR: 1,
}
"""Of all adapters while an update is computed, beside new ones; more where they lie end to end."""
UPDATED_AT_ONCE = 16
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
class _Cut:
    """One micro-batch."""

    width: int
    """Tokens in a line, padding included."""
    tokens: int
    """In all lines."""
    held_gradients: int
    """Its own, and the sum of those of earlier ones."""
    is_packed: bool = False


@dataclass(frozen=True, slots=True)
class _Shape:
    """The numbers that the terms are products of."""

    model: BaseModel
    job: TrainJob
    backend: Backend

    @property
    def item_bytes(self) -> int:
        """Of the base's activations."""
        precision = self.job.precision
        if precision is Precision.AUTO and self.backend is not Backend.CPU:
            return FLOAT32_BYTES if self.model.dtype == "float32" else HALF_BYTES
        return FLOAT32_BYTES if precision in {Precision.AUTO, Precision.FLOAT32} else HALF_BYTES

    @property
    def is_full(self) -> bool:
        return self.job.method is Method.FULL

    @property
    def computed_bytes(self) -> int:
        """Of one trained number where it is computed with; masters are float32."""
        asked = self.job.compute.branch_dtype
        if self.is_full or asked is BranchDtype.BASE:
            return self.item_bytes
        is_float16 = self.job.precision is Precision.FLOAT16 or (
            self.job.precision is Precision.AUTO and self.model.dtype == "float16"
        )
        return FLOAT32_BYTES if asked is BranchDtype.FLOAT32 or is_float16 else self.item_bytes

    @property
    def trained_layers(self) -> int:
        return min(self.job.adapter.layers or self.model.num_layers, self.model.num_layers)

    @property
    def head_learns(self) -> bool:
        return self.is_full and self.job.adapter.layers is None

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

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs * self.copies


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
    shape = _Shape(model, job, backend)
    longest = min(longest_tokens or job.max_length, job.max_length)
    moments = [_at_gradient(shape, cut) for cut in _largest_cuts(shape, longest)]
    moments += [_at_loading(shape), _at_evaluation(shape, longest), _at_update(shape)]
    return max((MemoryEstimate(parts) for parts in moments), key=_total)


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


def _at_loading(shape: _Shape) -> dict[str, int]:
    """Some of a base that is quantised on load is whole for a while, beside what becomes of it."""
    model, whole = shape.model, 0
    if _quantised(shape) is not None:
        embeddings = model.vocab_size * model.hidden_size * (1 if model.is_tied else 2)
        layers = LOADED_AT_ONCE * max(linear.parameters for linear in _linears(shape))
        whole = min(embeddings + layers, model.parameters) * shape.item_bytes
    return _parts(weights=_weight_bytes(shape), workspace=whole)


def _at_gradient(shape: _Shape, cut: _Cut) -> dict[str, int]:
    """Between the loss of the largest micro-batch and the end of its backward pass."""
    logits, packed = _logit_bytes(shape, cut.tokens), 0 if shape.is_full else PACKED_GRADIENTS
    return _resident(shape) | {
        "gradients": _masters_bytes(shape) * (CHECK_GRADIENTS + cut.held_gradients + packed),
        "activations": _activation_bytes(shape, cut),
        "attention_scores": _score_bytes(shape, cut),
        "logits": logits,
        "workspace": _workspace_bytes(shape, cut, logits),
    }


def _at_evaluation(shape: _Shape, longest: int) -> dict[str, int]:
    """Validation rows are as many as the token budget allows, whatever the batch."""
    width, rows = _padded(shape, longest), shape.job.evaluation.rows
    budget = max(shape.job.micro_batch_tokens, width)
    cut = _Cut(width, budget if rows is None else min(rows * width, budget), 0)
    logits = _evaluated_logit_bytes(shape, cut.tokens)
    block = cut.tokens * shape.mlp_width * FORWARD_WORKSPACE_BYTES
    block += round(_one_score_bytes(shape, cut) * FORWARD_SCORES)
    return _resident(shape) | {"logits": logits, "workspace": max(0, block - logits)}


def _at_update(shape: _Shape) -> dict[str, int]:
    """A new copy of all that is trained, and what lies between it and the old one."""
    masters = _masters_bytes(shape)
    between = masters * ADAPTER_UPDATE_COPIES[shape.job.optimizer.name]
    if shape.is_full:
        numbers = UPDATED_AT_ONCE * max(linear.parameters for linear in _linears(shape))
        if shape.head_learns:
            is_muon = shape.job.optimizer.name is OptimizerName.MUON
            copies = MUON_EMBEDDINGS if is_muon else UPDATED_EMBEDDINGS
            numbers += copies * shape.model.vocab_size * shape.model.hidden_size
        between = numbers * FLOAT32_BYTES
    return _resident(shape) | {
        "gradients": masters * (CHECK_GRADIENTS + 1),
        "workspace": masters + between,
    }


def _resident(shape: _Shape) -> dict[str, int]:
    """What lies there from the first step to the last."""
    return _parts(
        weights=_weight_bytes(shape),
        adapters=_trained_bytes(shape),
        gradients=_masters_bytes(shape) * CHECK_GRADIENTS,
        optimizer=_optimizer_bytes(shape),
    )


def _parts(**bytes_by_cause: int) -> dict[str, int]:
    return dict.fromkeys(CAUSES, 0) | bytes_by_cause


def _largest_cuts(shape: _Shape, longest: int) -> list[_Cut]:
    """The micro-batches of which one is the dearest: a whole step, or most of one that was parted.

    Rows of different lengths may be computed apart though they fit together.
    """
    job, width = shape.job, _padded(shape, longest)
    budget, rows = max(job.micro_batch_tokens, width), job.batch_size
    cuts = [_Cut(width, min(_rounded_up(shape, rows) * width, budget), 1)]
    if rows > 1:
        cuts.append(_Cut(width, min(_rounded_up(shape, rows - 1) * width, budget), 2))
    if job.compute.batching is Batching.PACKED:  # or not packed, where the model does not allow it
        cuts.append(_packed_cut(shape, longest))
    return cuts


def _packed_cut(shape: _Shape, longest: int) -> _Cut:
    """Every line holds at least as many rows as if all were the longest."""
    job = shape.job
    line = _padded(shape, max(longest, min(PACKED_WIDTH, job.micro_batch_tokens)))
    budget, held = max(job.micro_batch_tokens, line), 1 if job.batch_size == 1 else 2
    if _compiles(shape):  # then all have one shape
        return _Cut(line, budget, held, is_packed=True)
    lines = -(-job.batch_size // (line // longest))
    width = min(line, job.batch_size * longest)
    return _Cut(width, min(width * lines, budget), held, is_packed=True)


def _compiles(shape: _Shape) -> bool:
    return shape.job.compute.compile and shape.backend is not Backend.CPU


def _rounded_up(shape: _Shape, rows: int) -> int:
    if not _compiles(shape):
        return rows
    return next((height for height in HEIGHTS if height >= rows), rows)


def _padded(shape: _Shape, width: int) -> int:
    multiple = 1 if shape.backend is Backend.CPU else WIDTH_MULTIPLE
    return -(-width // multiple) * multiple


def _weight_bytes(shape: _Shape) -> int:
    """As stored where that is what it computes in; quantised weights always, but for their scales."""
    model = shape.model
    stored = FLOAT32_BYTES if model.dtype == "float32" else HALF_BYTES
    if (quantised := _quantised(shape)) is not None:
        scales = 2 * model.parameters * shape.item_bytes // quantised.group_size
        return model.parameters * quantised.bits // 8 + scales
    if shape.item_bytes == stored:
        return model.weight_bytes
    if model.quantization is None:
        return model.parameters * shape.item_bytes
    scales = 2 * model.parameters // model.quantization.group_size
    return model.weight_bytes + scales * max(0, shape.item_bytes - stored)


def _quantised(shape: _Shape) -> QuantizationConfig | None:
    """What the base is quantised to when it is loaded."""
    if shape.job.method is not Method.QLORA or shape.model.quantization is not None:
        return None
    return shape.job.quantization or QuantizationConfig()


def _trained_bytes(shape: _Shape) -> int:
    """Masters as they are and as they began, and what they are computed as; those of a float32
    base that is trained whole are its weights, as they began. DoRA's base has norms of its rows.
    """
    masters = _masters_bytes(shape)
    is_counted = shape.is_full and shape.computed_bytes == FLOAT32_BYTES
    copies = 1 if is_counted else 1 + FIRST_MASTERS
    trained = masters * copies
    if not shape.is_full and shape.computed_bytes < FLOAT32_BYTES:
        trained += _trained_parameters(shape) * shape.computed_bytes
    return trained + _magnitudes(shape) * FLOAT32_BYTES


def _masters_bytes(shape: _Shape) -> int:
    """One float32 copy of all that is trained: masters, their gradient, or one moment."""
    return _trained_parameters(shape) * FLOAT32_BYTES


def _trained_parameters(shape: _Shape) -> int:
    if not shape.is_full:
        block = sum(linear.parameters_per_rank for linear in _adapted(shape))
        return block * shape.job.adapter.trained_rank * shape.trained_layers + _magnitudes(shape)
    if shape.job.adapter.layers is None:
        return shape.model.parameters
    block = sum(linear.parameters for linear in _linears(shape)) + 2 * shape.model.hidden_size
    return min(block * shape.trained_layers, shape.model.parameters)


def _magnitudes(shape: _Shape) -> int:
    """Of DoRA: one for each output."""
    if shape.job.method is not Method.DORA:
        return 0
    return sum(linear.outputs * linear.copies for linear in _adapted(shape)) * shape.trained_layers


def _optimizer_bytes(shape: _Shape) -> int:
    name = shape.job.optimizer.name
    if name is OptimizerName.ADAFACTOR:
        return _factored(shape) * FLOAT32_BYTES
    return _masters_bytes(shape) * MOMENTS[name]


def _factored(shape: _Shape) -> int:
    """Numbers of a moment that is kept as sums of rows and of columns; vectors are kept whole."""
    model, rank = shape.model, shape.job.adapter.trained_rank
    if not shape.is_full:
        block = sum((linear.inputs + linear.outputs + 2 * rank) * linear.copies for linear in _adapted(shape))
        return block * shape.trained_layers + _magnitudes(shape)
    block = sum(linear.parameters_per_rank for linear in _linears(shape)) + 2 * model.hidden_size
    embeddings = 2 * (model.vocab_size + model.hidden_size) if shape.head_learns else 0
    return block * shape.trained_layers + embeddings


def _activation_bytes(shape: _Shape, cut: _Cut) -> int:
    """What trained blocks keep: everything, or with checkpointing their inputs and one block's all."""
    block = cut.tokens * _block_bytes(shape)
    if cut.is_packed:
        block += cut.tokens * cut.width * KEPT_MASK_BYTES
    if not shape.job.gradient_checkpointing:
        return block * shape.trained_layers
    inputs = cut.tokens * shape.model.hidden_size * shape.item_bytes
    return round(block * RECOMPUTED_BLOCKS) + inputs * shape.trained_layers


def _block_bytes(shape: _Shape) -> int:
    """What one trained block keeps of one token."""
    mlp = KEPT_MLP + (KEPT_GELU if shape.model.model_type.startswith("gemma") else 0)
    kept = (
        KEPT_RESIDUALS * shape.model.hidden_size
        + KEPT_QUERIES * shape.query_width
        + KEPT_KEYS * shape.kv_width
        + mlp * shape.mlp_width
    ) * shape.item_bytes
    return round(kept) + (0 if shape.is_full else _branch_bytes(shape))


def _branch_bytes(shape: _Shape) -> int:
    """What the adapters of one block keep of one token, beside what the base keeps."""
    linears = _adapted(shape)
    inputs = sum(linear.inputs * linear.passes for linear in linears)
    kept = sum(linear.passes for linear in linears) * shape.job.adapter.trained_rank * shape.computed_bytes
    if shape.item_bytes < shape.computed_bytes:  # float32 adapters read a float32 copy of their input
        kept += inputs * FLOAT32_BYTES
    if shape.job.adapter.dropout:
        kept += inputs * DROPOUT_BYTES
    if shape.job.method is Method.DORA:  # the product before the magnitude
        kept += sum(linear.outputs * linear.passes for linear in linears) * shape.item_bytes
    return kept


def _score_bytes(shape: _Shape, cut: _Cut) -> int:
    layers = 1 if shape.job.gradient_checkpointing else shape.trained_layers
    kept = KEPT_SCORES + (KEPT_SOFTCAP if shape.model.model_type == "gemma2" else 0)
    return round(_one_score_bytes(shape, cut) * layers * kept)


def _one_score_bytes(shape: _Shape, cut: _Cut) -> int:
    """One tensor of heads x length for each token; none where attention is fused."""
    if shape.backend is Backend.METAL and shape.model.head_dim in FUSED_HEAD_DIMS:
        return 0
    return cut.tokens * cut.width * shape.model.num_heads * shape.item_bytes


def _logit_bytes(shape: _Shape, tokens: int) -> int:
    """16-bit logits and their gradient lie beside the float32 ones."""
    beside = 0 if shape.item_bytes == FLOAT32_BYTES else 2 * shape.item_bytes
    vocabulary = shape.model.vocab_size
    if shape.job.compute.loss is LossKernel.PLAIN:
        return tokens * vocabulary * (LOGIT_BYTES[shape.backend] + beside)
    at_once = min(tokens, round(CHUNKS_AT_ONCE * _chunk_tokens(shape)))
    gradients = tokens * shape.model.hidden_size * shape.item_bytes
    if shape.head_learns:
        gradients += vocabulary * shape.model.hidden_size * FLOAT32_BYTES
    return at_once * vocabulary * (CHUNK_BYTES + beside) + gradients


def _evaluated_logit_bytes(shape: _Shape, tokens: int) -> int:
    if shape.job.compute.loss is LossKernel.CHUNKED:
        tokens = min(tokens, _chunk_tokens(shape))
    beside = 0 if shape.item_bytes == FLOAT32_BYTES else shape.item_bytes
    return tokens * shape.model.vocab_size * (EVALUATED_LOGIT_BYTES + beside)


def _chunk_tokens(shape: _Shape) -> int:
    return max(MIN_CHUNK_TOKENS, CHUNK_LOGITS // shape.model.vocab_size)


def _workspace_bytes(shape: _Shape, cut: _Cut, logits: int) -> int:
    """At the loss, or in a block's backward pass as far as that exceeds the logits it comes after."""
    units = cut.tokens * shape.mlp_width
    block = units * BLOCK_WORKSPACE_BYTES + round(_one_score_bytes(shape, cut) * BLOCK_WORKSPACE_SCORES)
    return max(units * LOSS_WORKSPACE_BYTES, block - logits)


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
