"""What a base takes once it is loaded."""

from __future__ import annotations

from graft_scheduler.hyperparameters import Method, QuantizationConfig
from graft_scheduler.memory.shape import FLOAT32_BYTES, HALF_BYTES, Shape


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
