"""SwiGLU that keeps its two inputs for the backward pass, and nothing of what lies between.

Compiled, MLX's own keeps the sigmoid and its product too: two more arrays of the MLP's width for
every token and block. On the CPU, where exponentials are dear and nothing is fused, it stays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
from mlx import nn
from mlx_lm.models import activations

from graft_worker.engine.device import is_gpu

NAME = "swiglu"


@mx.custom_function
def frugal_swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """`silu(gate) * x`, as mlx-lm has it."""
    return gate * mx.sigmoid(gate) * x


@frugal_swiglu.vjp
def _backward(
    primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, mx.array]:
    gate, x = primals
    share = mx.sigmoid(gate)
    silu = gate * share
    return cotangent * x * (share + silu * (1.0 - share)), cotangent * silu


@contextmanager
def frugal_activations(model: nn.Module) -> Iterator[None]:
    """Let the modules that the model's classes come from use it, until the context ends."""
    names = {type(module).__module__ for _, module in model.named_modules()} if is_gpu() else set()
    homes = [sys.modules[name] for name in sorted(names) if name in sys.modules]
    homes = [home for home in homes if getattr(home, NAME, None) is activations.swiglu]
    for home in homes:
        setattr(home, NAME, frugal_swiglu)
    try:
        yield
    finally:
        for home in homes:
            setattr(home, NAME, activations.swiglu)
