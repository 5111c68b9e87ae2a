"""What a model's blocks are made of: how they are computed, what learns, norms, and linear layers with the
engine's adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from graft_scheduler.anatomy import Norm
from graft_scheduler.memory import kernels
from graft_scheduler.memory import operations as op
from graft_scheduler.memory.arrays import Array, Shape

FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Mode:
    """How the model is computed."""

    itemsize: int
    """Of the base's activations."""
    branch: int
    """Of the adapters."""
    is_fused: bool
    """Norms, rotations and attention are single primitives, as on a GPU."""
    fused_attention_dims: frozenset[int] = frozenset()
    """Head widths whose attention has a fused gradient."""
    quantised: bool = False
    dequantises: bool = False
    """A product of many rows with a quantised matrix makes it whole first, as on CUDA."""
    adds_masks: bool = False
    """Fused attention makes of a mask numbers of its own for every head, and keeps them, as on CUDA."""
    learns_base: bool = False
    learns_ends: bool = False
    """Embeddings, last norm and output matrix learn too."""
    dropout: bool = False
    dora: bool = False
    is_packed: bool = False


@dataclass
class Parameters:
    """What is trained: made when the forward pass first names it."""

    mode: Mode
    rank: int
    targets: frozenset[str] | None
    """Linear layers with adapters, by name; `None` for all."""
    found: dict[str, Array] = field(default_factory=dict)
    frozen: dict[str, Array] = field(default_factory=dict)
    scope: str = ""
    is_trained: bool = True
    is_differentiated: bool = True

    def weight(self, name: str, shape: Shape) -> Array:
        """A weight of the base."""
        path = f"{self.scope}{name}"
        itemsize = self.mode.itemsize
        if self.mode.learns_base and self.is_trained:
            return self._trained(path, shape, itemsize)
        return self.frozen.setdefault(path, op.ready(shape, itemsize))

    def adapter(self, name: str, shape: Shape, itemsize: int | None = None) -> Array:
        return self._trained(f"{self.scope}{name}", shape, itemsize or self.mode.branch)

    def _trained(self, path: str, shape: Shape, itemsize: int) -> Array:
        """MLX gives what it differentiates by a new name."""
        if path not in self.found:
            array = op.ready(shape, itemsize)
            self.found[path] = op.copy(array) if self.is_differentiated else array
        return self.found[path]

    def has_adapter(self, name: str) -> bool:
        if self.mode.learns_base or not self.is_trained:
            return False
        return self.targets is None or name in self.targets


def norm(x: Array, kind: Norm, name: str, own: Parameters) -> Array:
    weight = own.weight(f"{name}.weight", (x.shape[-1],))
    if own.mode.is_fused:
        return kernels.fused_norm(x, weight)
    whole = op.astype(x, FLOAT32)
    if kind is Norm.LAYER:
        whole = op.subtract(whole, op.multiply(op.total(whole, -1), op.SCALAR))
    mean = op.multiply(op.total(op.square(whole), -1), op.SCALAR)
    whole = op.multiply(whole, op.rsqrt(op.add(mean, op.SCALAR)))
    normed = op.multiply(op.astype(whole, x.itemsize), weight)
    if kind is Norm.LAYER:
        normed = op.add(normed, own.weight(f"{name}.bias", (x.shape[-1],)))
    return normed


def linears(named: Sequence[tuple[str, float, bool]], x: Array, own: Parameters) -> list[Array]:
    """Linear layers that read the same array: (name, width, has a bias), with their adapters."""
    adapted = [name for name, _, _ in named if own.has_adapter(name)]
    shares = len(adapted) > 1 and not own.mode.dropout and not own.mode.dora
    projected: dict[str, Array] = {}
    outs = []
    for name, width, has_bias in named:
        y = _base_linear(name, x, width, has_bias, own)
        if name not in adapted:
            outs.append(y)
            continue
        if shares:
            if not projected:
                projected = _project_together(adapted, x, own)
            z = projected[name]
        else:
            z = op.matmul(op.astype(_dropped(x, own.mode), own.mode.branch), _lora_a(name, x, own))
        outs.append(_add_branch(name, x, y, z, own))
    return outs


def _project_together(names: Sequence[str], x: Array, own: Parameters) -> dict[str, Array]:
    parts = [_lora_a(name, x, own) for name in names]
    joined = op.concatenate(parts, (x.shape[-1], own.rank * len(names)))
    product = op.matmul(op.astype(x, own.mode.branch), joined)
    return dict(zip(names, op.split(product, [own.rank] * len(names)), strict=True))


def _lora_a(name: str, x: Array, own: Parameters) -> Array:
    return own.adapter(f"{name}.lora_a", (x.shape[-1], own.rank))


def _dropped(x: Array, mode: Mode) -> Array:
    if not mode.dropout:
        return x
    mask = op.made_of([op.ready((1,), 4)], x.shape, 1)
    return op.multiply(op.astype(mask, x.itemsize), op.multiply(op.SCALAR, x))


def _base_linear(name: str, x: Array, width: float, has_bias: bool, own: Parameters) -> Array:
    weight = own.weight(f"{name}.weight", (width, x.shape[-1]))
    bias = own.weight(f"{name}.bias", (width,)) if has_bias else None
    if own.mode.quantised:
        y = kernels.quantised_matmul(x, width, is_whole=own.mode.dequantises)
        return y if bias is None else op.add(y, bias)
    if bias is None:
        return op.matmul(x, op.turned(weight))
    flat = _end_to_end(x)
    made = op.addmm(op.broadcast(bias, (flat.shape[0], width)), flat, op.turned(weight))
    return op.view(made, (*x.shape[:-1], width))


def _add_branch(name: str, x: Array, y: Array, z: Array, own: Parameters) -> Array:
    width = y.shape[-1]
    b = own.adapter(f"{name}.lora_b", (own.rank, width))
    if own.mode.dora:
        product = op.astype(op.multiply(op.SCALAR, op.matmul(z, b)), y.itemsize)
        adapted = op.add(y, product)
        m = own.adapter(f"{name}.m", (width,), FLOAT32)
        norms = op.made_of([op.stop_gradient(b)], (width,), FLOAT32)
        return op.multiply(op.astype(op.divide(m, norms), x.itemsize), adapted)
    scaled = op.multiply(op.SCALAR, b)
    if z.itemsize != y.itemsize:
        return op.add(y, op.astype(op.matmul(z, scaled), y.itemsize))
    flat = op.addmm(_end_to_end(y), _end_to_end(z), scaled)
    return op.view(flat, y.shape)


def _end_to_end(x: Array) -> Array:
    return op.view(x, (prod(x.shape[:-1]), x.shape[-1]))
