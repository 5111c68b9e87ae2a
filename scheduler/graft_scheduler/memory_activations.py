"""What a pass over a micro-batch takes: what blocks keep for the way back, logits, workspace."""

from __future__ import annotations

from graft_scheduler.hyperparameters import LossKernel, Method
from graft_scheduler.memory_cuts import Cut, chunk_tokens
from graft_scheduler.memory_shape import FLOAT32_BYTES, Backend, Linear, Shape, adapted_linears

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

CHUNKS_AT_ONCE = 2.25
"""The next chunks are begun before the memory of the one before is back."""
CHUNK_BYTES = 12
"""For each logit of the chunks at once: logits, their powers and errors, in float32."""
EVALUATED_LOGIT_BYTES = 8
"""For each logit at once where no gradient is taken."""
LOGIT_BYTES: dict[Backend, int] = {Backend.METAL: 8, Backend.CUDA: 16, Backend.CPU: 16}
"""For each token and word of the vocabulary: logits, loss and their gradients, in float32.

The CPU's was measured. Metal has a fused loss since MLX 0.32.3, said to take a quarter of that;
half is counted, as nobody measured it yet.
"""


def activation_bytes(shape: Shape, cut: Cut) -> int:
    """What trained blocks keep: everything, or with checkpointing their inputs and one block's all."""
    block = cut.tokens * _block_bytes(shape)
    if cut.is_packed:
        block += cut.tokens * cut.width * KEPT_MASK_BYTES
    if not shape.job.gradient_checkpointing:
        return block * shape.trained_layers
    inputs = cut.tokens * shape.model.hidden_size * shape.item_bytes
    return round(block * RECOMPUTED_BLOCKS) + inputs * shape.trained_layers


def _block_bytes(shape: Shape) -> int:
    """What one trained block keeps of one token."""
    mlp = KEPT_MLP + (KEPT_GELU if shape.model.model_type.startswith("gemma") else 0)
    kept = (
        KEPT_RESIDUALS * shape.model.hidden_size
        + KEPT_QUERIES * shape.query_width
        + KEPT_KEYS * shape.kv_width
        + mlp * shape.mlp_width
    ) * shape.item_bytes
    return round(kept) + (0 if shape.is_full else _branch_bytes(shape))


def _branch_bytes(shape: Shape) -> int:
    """What the adapters of one block keep of one token, beside what the base keeps."""
    linears = adapted_linears(shape)
    inputs = sum(linear.inputs * linear.passes for linear in linears)
    kept = sum(linear.passes for linear in linears) * shape.job.adapter.trained_rank * shape.computed_bytes
    if shape.item_bytes < shape.computed_bytes:  # float32 adapters read a float32 copy of their input
        kept += _read_width(shape, linears) * FLOAT32_BYTES
    if shape.job.adapter.dropout:
        kept += inputs * DROPOUT_BYTES
    if shape.job.method is Method.DORA:  # the product before the magnitude
        kept += sum(linear.outputs * linear.passes for linear in linears) * shape.item_bytes
    return kept


def _read_width(shape: Shape, linears: list[Linear]) -> int:
    """Of the inputs that adapters read; layers that read the same one share it, but for some."""
    if shape.job.adapter.dropout or shape.job.method is Method.DORA or shape.model.num_experts > 1:
        return sum(linear.inputs * linear.passes for linear in linears)
    return sum({linear.reads: linear.inputs for linear in linears}.values())


def score_bytes(shape: Shape, cut: Cut) -> int:
    layers = 1 if shape.job.gradient_checkpointing else shape.trained_layers
    kept = KEPT_SCORES + (KEPT_SOFTCAP if shape.model.model_type == "gemma2" else 0)
    return round(_one_score_bytes(shape, cut) * layers * kept)


def _one_score_bytes(shape: Shape, cut: Cut) -> int:
    """One tensor of heads x length for each token; none where attention is fused."""
    if shape.backend is Backend.METAL and shape.model.head_dim in FUSED_HEAD_DIMS:
        return 0
    return cut.tokens * cut.width * shape.model.num_heads * shape.item_bytes


def logit_bytes(shape: Shape, tokens: int) -> int:
    """16-bit logits and their gradient lie beside the float32 ones."""
    beside = 0 if shape.item_bytes == FLOAT32_BYTES else 2 * shape.item_bytes
    vocabulary = shape.model.vocab_size
    if shape.job.compute.loss is LossKernel.PLAIN:
        return tokens * vocabulary * (LOGIT_BYTES[shape.backend] + beside)
    at_once = min(tokens, round(CHUNKS_AT_ONCE * chunk_tokens(shape.model.vocab_size)))
    gradients = tokens * shape.model.hidden_size * shape.item_bytes
    if shape.head_learns:
        gradients += vocabulary * shape.model.hidden_size * FLOAT32_BYTES
    return at_once * vocabulary * (CHUNK_BYTES + beside) + gradients


def evaluated_logit_bytes(shape: Shape, tokens: int) -> int:
    if shape.job.compute.loss is LossKernel.CHUNKED:
        tokens = min(tokens, chunk_tokens(shape.model.vocab_size))
    beside = 0 if shape.item_bytes == FLOAT32_BYTES else shape.item_bytes
    return tokens * shape.model.vocab_size * (EVALUATED_LOGIT_BYTES + beside)


def forward_bytes(shape: Shape, cut: Cut) -> int:
    """What a block has at once in a pass without a gradient."""
    units = cut.tokens * shape.mlp_width
    return units * FORWARD_WORKSPACE_BYTES + round(_one_score_bytes(shape, cut) * FORWARD_SCORES)


def workspace_bytes(shape: Shape, cut: Cut, logits: int) -> int:
    """At the loss, or in a block's backward pass as far as that exceeds the logits it comes after."""
    units = cut.tokens * shape.mlp_width
    block = units * BLOCK_WORKSPACE_BYTES + round(_one_score_bytes(shape, cut) * BLOCK_WORKSPACE_SCORES)
    return max(units * LOSS_WORKSPACE_BYTES, block - logits)
