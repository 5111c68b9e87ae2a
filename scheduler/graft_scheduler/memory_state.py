"""What lies in memory from the first step to the last: weights, masters, moments."""

from __future__ import annotations

from graft_scheduler.hyperparameters import Method, OptimizerName, QuantizationConfig
from graft_scheduler.memory_shape import FLOAT32_BYTES, HALF_BYTES, Shape, adapted_linears, block_linears

MOMENTS: dict[OptimizerName, int] = {
    OptimizerName.ADAMW: 2,
    OptimizerName.ADAM: 2,
    OptimizerName.LION: 1,
    OptimizerName.MUON: 1,
    OptimizerName.SGD: 1,
}
"""Arrays of the size of what is trained; MLX's SGD keeps one without momentum too."""


def weight_bytes(shape: Shape) -> int:
    """As stored where that is what it computes in; quantised weights always, but for their scales."""
    model = shape.model
    stored = FLOAT32_BYTES if model.dtype == "float32" else HALF_BYTES
    if (quantised := quantised_to(shape)) is not None:
        scales = 2 * model.parameters * shape.item_bytes // quantised.group_size
        return model.parameters * quantised.bits // 8 + scales
    if shape.item_bytes == stored:
        return model.weight_bytes
    if model.quantization is None:
        return model.parameters * shape.item_bytes
    scales = 2 * model.parameters // model.quantization.group_size
    return model.weight_bytes + scales * max(0, shape.item_bytes - stored)


def quantised_to(shape: Shape) -> QuantizationConfig | None:
    """What the base is quantised to when it is loaded."""
    if shape.job.method is not Method.QLORA or shape.model.quantization is not None:
        return None
    return shape.job.quantization or QuantizationConfig()


def trained_bytes(shape: Shape) -> int:
    """Masters beside what is counted as weights; of adapters also the copies that are computed with.

    A float32 base that is trained whole is its own masters, and then the model holds those of the
    step before. DoRA's base has norms of its rows.
    """
    masters = masters_bytes(shape)
    if shape.is_full:
        return masters
    copies = _trained_parameters(shape) * shape.computed_bytes if shape.computed_bytes < FLOAT32_BYTES else 0
    return masters + copies + _magnitudes(shape) * FLOAT32_BYTES


def masters_bytes(shape: Shape) -> int:
    """One float32 copy of all that is trained: masters, their gradient, or one moment."""
    return _trained_parameters(shape) * FLOAT32_BYTES


def _trained_parameters(shape: Shape) -> int:
    if not shape.is_full:
        block = sum(linear.parameters_per_rank for linear in adapted_linears(shape))
        return block * shape.job.adapter.trained_rank * shape.trained_layers + _magnitudes(shape)
    if shape.job.adapter.layers is None:
        return shape.model.parameters
    block = sum(linear.parameters for linear in block_linears(shape)) + 2 * shape.model.hidden_size
    return min(block * shape.trained_layers, shape.model.parameters)


def _magnitudes(shape: Shape) -> int:
    """Of DoRA: one for each output."""
    if shape.job.method is not Method.DORA:
        return 0
    return sum(linear.outputs * linear.copies for linear in adapted_linears(shape)) * shape.trained_layers


def optimizer_bytes(shape: Shape) -> int:
    name = shape.job.optimizer.name
    if name is OptimizerName.ADAFACTOR:
        return _factored(shape) * FLOAT32_BYTES
    return masters_bytes(shape) * MOMENTS[name]


def _factored(shape: Shape) -> int:
    """Numbers of a moment that is kept as sums of rows and of columns; vectors are kept whole."""
    model, rank = shape.model, shape.job.adapter.trained_rank
    if not shape.is_full:
        block = sum(
            (linear.inputs + linear.outputs + 2 * rank) * linear.copies for linear in adapted_linears(shape)
        )
        return block * shape.trained_layers + _magnitudes(shape)
    block = sum(linear.parameters_per_rank for linear in block_linears(shape)) + 2 * model.hidden_size
    embeddings = 2 * (model.vocab_size + model.hidden_size) if shape.head_learns else 0
    return block * shape.trained_layers + embeddings
