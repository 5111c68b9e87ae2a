"""Adapters added into the weights that they adapt: plain layers, and no adapter any more.

Sums are made in float32 and rounded once, which mlx-lm's own fusing does not do. Nothing is computed here:
the arrays are MLX's promises, kept one at a time when they are saved.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

QUANTIZED = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)


def fuse_adapters(model: nn.Module, *, keep_quantized: bool, dtype: mx.Dtype | None = None) -> None:
    """Put plain layers in the place of all adapted ones of `model`, in `dtype` or as exact as they were.

    With `keep_quantized`, those that were quantised are again, and the rest of the model stays as it is;
    without, no layer of the model is quantised afterwards.
    """
    fused = [
        (path, _fuse(module, dtype, keep_quantized=keep_quantized))
        for path, module in model.named_modules()
        if callable(getattr(module, "fuse", None))
    ]
    model.update_modules(tree_unflatten(fused))
    if not keep_quantized:
        dequantise(model, dtype)


def dequantise(model: nn.Module, dtype: mx.Dtype | None = None) -> None:
    """Put plain layers in the place of all quantised ones."""
    plain = [
        (path, _like(module, whole_weight(module).astype(dtype or weight_dtype(module))))
        for path, module in model.named_modules()
        if isinstance(module, QUANTIZED)
    ]
    model.update_modules(tree_unflatten(plain))


def weight_dtype(module: nn.Module) -> mx.Dtype:
    """What the weight of a layer is in, or was before it was quantised, as far as can be told."""
    if not isinstance(module, QUANTIZED):
        found: mx.Dtype = module.weight.dtype
        return found
    scales: mx.Dtype = module.scales.dtype
    return scales if mx.issubdtype(scales, mx.floating) else mx.bfloat16


def whole_weight(module: nn.Module) -> mx.array:
    """The weight of a layer that may be quantised, in float32."""
    weight: mx.array = module.weight
    if not isinstance(module, QUANTIZED):
        return weight.astype(mx.float32)
    scales, biases = module.scales, module.get("biases")
    if mx.issubdtype(scales.dtype, mx.floating):
        scales = scales.astype(mx.float32)
        biases = None if biases is None else biases.astype(mx.float32)
    whole: mx.array = mx.dequantize(
        weight,
        scales,
        biases,
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
        dtype=mx.float32,
    )
    return whole


def _fuse(module: nn.Module, dtype: mx.Dtype | None, *, keep_quantized: bool) -> nn.Module:
    layer = module.embedding if isinstance(module, (LoRAEmbedding, DoRAEmbedding)) else module.get("linear")
    if layer is None or not isinstance(module, (*_PRODUCTS, DoRALinear, DoRAEmbedding)):
        own: nn.Module = module.fuse(dequantize=not keep_quantized)  # of the model's own making
        return own
    adapted = _adapted(module, whole_weight(layer)).astype(dtype or weight_dtype(layer))
    fused = _like(layer, adapted)
    if keep_quantized and isinstance(layer, QUANTIZED):
        return _requantised(fused, layer)
    return fused


def _adapted(module: nn.Module, weight: mx.array) -> mx.array:
    """The float32 weight that does what `weight` and the adapter do together."""
    a, b = module.lora_a.astype(mx.float32), module.lora_b.astype(mx.float32)
    scale: float = module.scale
    if isinstance(module, LoRASwitchLinear):
        product = b @ a
    elif isinstance(module, (LoRAEmbedding, DoRAEmbedding)):
        product = a @ b
    else:
        product = (a @ b).T
    adapted: mx.array = weight + scale * product
    if isinstance(module, (DoRALinear, DoRAEmbedding)):
        magnitude = module.m.astype(mx.float32) / mx.linalg.norm(adapted, axis=1)
        adapted = magnitude[:, None] * adapted
    return adapted


def _like(layer: nn.Module, weight: mx.array) -> nn.Module:
    """The plain layer of this weight, with the bias of `layer`."""
    plain: nn.Module
    if isinstance(layer, (SwitchLinear, QuantizedSwitchLinear)):
        plain = SwitchLinear(1, 1, 1, bias=False)  # its own weight is never computed
    elif isinstance(layer, (nn.Embedding, nn.QuantizedEmbedding)):
        plain = nn.Embedding(1, 1)
    else:
        plain = nn.Linear(1, 1, bias=False)
    plain.weight = weight
    if "bias" in layer:
        plain.bias = layer.bias
    return plain


def _requantised(fused: nn.Module, like: nn.Module) -> nn.Module:
    settings: dict[str, Any] = {
        "group_size": like.group_size,
        "bits": like.bits,
        "mode": like.mode,
    }
    quantised: nn.Module = fused.to_quantized(**settings)
    return quantised


_PRODUCTS = (LoRALinear, LoRASwitchLinear, LoRAEmbedding)
