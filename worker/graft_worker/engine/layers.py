"""LoRA and DoRA layers: mlx-lm's, with a cheaper forward pass of the same function.

The parameters, and so the files, are mlx-lm's own. An adapter is computed in the dtype its arrays
have when the layer is called: the trainer hands it copies of float32 masters in the base's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import mlx.core as mx
from mlx import nn
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear


class SharedInput:
    """Layers of a block that read the same array, as queries, keys and values do.

    What all their A matrices make of it is computed at once: products with 16 columns cost a GPU
    hardly less than products with 48.
    """

    def __init__(self, members: Sequence[ComputedLoRALinear]) -> None:
        self._members = tuple(members)
        self._input: mx.array | None = None
        self._products: dict[int, mx.array] = {}

    def product(self, member: ComputedLoRALinear, x: mx.array) -> mx.array:
        """`x @ A` of one member; each is handed out once, so that nothing outlives a forward pass."""
        if self._input is not x or id(member) not in self._products:
            joined = mx.concatenate([one.lora_a for one in self._members], axis=1)
            ends = list(accumulate(one.lora_a.shape[1] for one in self._members))
            parts = mx.split(x @ joined, ends[:-1], axis=-1)
            self._products = {id(one): part for one, part in zip(self._members, parts, strict=True)}
            self._input = x
        found = self._products.pop(id(member))
        if not self._products:
            self._input = None
        return found


class ComputedLoRALinear(LoRALinear):
    """Adds the low-rank product to the base's output in one fused multiplication.

    While `watch` is on, it adds up the Gram matrix of what A makes of its inputs, (rank, rank):
    what cutting the rank needs to know of the data.
    """

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        shared: SharedInput | None = getattr(self, "_shared", None)
        z = self.dropout(x) @ self.lora_a if shared is None else shared.product(self, x)
        if "_gram" in self:
            flat = z.reshape(-1, z.shape[-1]).astype(mx.float32)
            self["_gram"] = self["_gram"] + flat.T @ flat
        scaled = self.scale * self.lora_b  # of the small matrix: its gradient is scaled there too
        if z.dtype != y.dtype:
            return y + (z @ scaled).astype(y.dtype)
        # Of rows end to end: else B's gradient is made for every row of the batch apart, and then summed.
        flat = mx.addmm(y.reshape(-1, y.shape[-1]), z.reshape(-1, z.shape[-1]), scaled)
        return flat.reshape(y.shape)

    def share(self, shared: SharedInput) -> None:
        """Read the input together with others."""
        self._shared = shared

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


def share_inputs(model: nn.Module) -> None:
    """Find the layers of `model` that read the same array, and let them.

    By watching one forward pass that is never computed. Not for layers with dropout: each drops
    other places of its input.
    """
    seen: list[tuple[mx.array, list[ComputedLoRALinear]]] = []
    recording = type("Recording", (ComputedLoRALinear,), {"__call__": _recorder(seen)})
    layers = [module for _, module in model.named_modules() if type(module) is ComputedLoRALinear]
    for layer in layers:
        layer.__class__ = recording
    try:
        model(mx.zeros((1, 2), dtype=mx.int32))
    except Exception:  # foreign code on a strange input: then nothing is shared
        seen.clear()
    finally:
        for layer in layers:
            layer.__class__ = ComputedLoRALinear
    for _, members in seen:
        if len(members) > 1:
            shared = SharedInput(members)
            for member in members:
                member.share(shared)


def _recorder(
    seen: list[tuple[mx.array, list[ComputedLoRALinear]]],
) -> Callable[[ComputedLoRALinear, mx.array], mx.array]:
    def call(self: ComputedLoRALinear, x: mx.array) -> mx.array:
        members = next((members for known, members in seen if known is x), None)
        if members is None:
            seen.append((x, [self]))
        else:
            members.append(self)
        return ComputedLoRALinear.__call__(self, x)

    return call


def speed_up(model: nn.Module) -> None:
    """Give every adapter of `model` the forward pass of this module."""
    for _, module in model.named_modules():
        if type(module) in COMPUTED:
            module.__class__ = COMPUTED[type(module)]
            if isinstance(module, ComputedDoRALinear):
                module.prepare()
