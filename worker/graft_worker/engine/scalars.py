"""Single numbers from MLX."""

from __future__ import annotations

import mlx.core as mx


def as_float(scalar: mx.array) -> float:
    """The value of a real scalar; waits for it."""
    value = scalar.item()
    assert isinstance(value, float)
    return value
