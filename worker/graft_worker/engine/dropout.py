"""Dropout that draws its mask from a key it is given, never from MLX's global random state.

`nn.Dropout` under `mx.checkpoint` draws a second, different mask when the block is computed again
in the backward pass: the gradient then belongs to another function than the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn


class KeyedDropout(nn.Module):
    """Zeroes a share of its input in training; the same key always zeroes the same places."""

    def __init__(self, probability: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # MLX leaves it without types
        self._keep = 1.0 - probability
        self._key: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if not self.training or self._key is None:
            return x
        mask = mx.random.bernoulli(self._keep, x.shape, key=self._key)
        return mask * x * (1.0 / self._keep)

    def draw_from(self, key: mx.array | None) -> None:
        """Use `key` for the next masks; without one nothing is dropped."""
        self._key = key


def give_keys(dropouts: Sequence[KeyedDropout], key: mx.array) -> None:
    """Every module its own key, all made from `key`."""
    if dropouts:
        for dropout, own in zip(dropouts, mx.random.split(key, len(dropouts)), strict=True):
            dropout.draw_from(own)


def micro_batch_key(seed: int, step: int, micro_batch: int) -> mx.array:
    """The key of one micro-batch: random, but a pure function of its arguments.

    So there is no random state to save: a resumed job draws what it would have drawn.
    """
    step_key = mx.random.key((seed << 32) | step)
    return mx.random.split(step_key, micro_batch + 1)[micro_batch]
