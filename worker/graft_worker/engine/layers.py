"""LoRA and DoRA layers: mlx-lm's, with a cheaper forward pass of the same function.

The parameters, and so the files, are mlx-lm's own. An adapter is computed in the dtype its arrays
have when the layer is called: the trainer hands it copies of float32 masters in the base's dtype.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear


class ComputedLoRALinear(LoRALinear):
    """Adds the low-rank product to the base's output in one fused multiplication.

    While `watch` is on, it adds up the Gram matrix of what A makes of its inputs, (rank, rank):
    what cutting the rank needs to know of the data.
    """

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        z = self.dropout(x) @ self.lora_a
        if "_gram" in self:
            flat = z.reshape(-1, z.shape[-1]).astype(mx.float32)
            self["_gram"] = self["_gram"] + flat.T @ flat
        scaled = self.scale * self.lora_b  # of the small matrix: its gradient is scaled there too
        if z.dtype != y.dtype:
            return y + (z @ scaled).astype(y.dtype)
        return mx.addmm(y, z, scaled)

    def watch(self) -> None:
        """Start to add up."""
        rank = self.lora_a.shape[-1]
        self["_gram"] = mx.zeros((rank, rank))

    def watched(self) -> mx.array:
        """What was added up since `watch`; ends it."""
        gram: mx.array = self.pop("_gram")
        return gram


class ComputedDoRALinear(DoRALinear):
    """Never makes the adapted weight: the norms of its rows follow from A's and B's small products.

    |w + s·(AB)ᵀ|² by rows is |w|² + 2s·w·(AB)ᵀ + s²·|AB|². As in the paper's section 4.3 no
    gradient goes through the norm.
    """

    def prepare(self) -> None:
        """Work out what depends on the frozen base alone."""
        weight: mx.array = self._dequantized_weight().astype(mx.float32)  # type: ignore[no-untyped-call]
        self._weight_squares = mx.square(weight).sum(axis=1)
        mx.eval(self._weight_squares)

    def __call__(self, x: mx.array) -> mx.array:
        bias = self.linear.bias if "bias" in self.linear else None
        y = self.linear(x)
        if bias is not None:
            y = y - bias
        z = self.dropout(x) @ self.lora_a
        adapted: mx.array = y + (self.scale * (z @ self.lora_b)).astype(y.dtype)
        out: mx.array = (self.m / self._row_norms(bias)).astype(x.dtype) * adapted
        return out if bias is None else out + bias

    def _row_norms(self, bias: mx.array | None) -> mx.array:
        a, b = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.lora_b)
        projected = self.linear(a.T)
        if bias is not None:
            projected = projected - bias
        b32, gram = b.astype(mx.float32), (a.T @ a).astype(mx.float32)
        cross = (projected.astype(mx.float32) * b32).sum(axis=0)
        squares = ((gram @ b32) * b32).sum(axis=0)
        scale: float = self.scale
        return mx.sqrt(mx.maximum(self._weight_squares + 2 * scale * cross + scale**2 * squares, 0.0))


COMPUTED: dict[type[nn.Module], type[nn.Module]] = {
    LoRALinear: ComputedLoRALinear,
    DoRALinear: ComputedDoRALinear,
}
LOW_RANK_LAYERS = (LoRALinear, DoRALinear, LoRASwitchLinear)


def speed_up(model: nn.Module) -> None:
    """Give every adapter of `model` the forward pass of this module."""
    for _, module in model.named_modules():
        if type(module) in COMPUTED:
            module.__class__ = COMPUTED[type(module)]
            if isinstance(module, ComputedDoRALinear):
                module.prepare()
