"""Gradient checkpointing: blocks that compute their activations again in the backward pass.

mlx-lm patches the block's class, for good, and once more with every call. Here the instances
change, and change back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn

MARK = "recomputes"
"""Of a class that is made here."""


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Keep only the inputs of `blocks` for the backward pass, until the context ends.

    Blocks that do so already stay as they are.
    """
    blocks = [block for block in blocks if not getattr(type(block), MARK, False)]
    classes = [type(block) for block in blocks]
    recomputing = {cls: _recomputing(cls) for cls in classes}
    try:
        for block, cls in zip(blocks, classes, strict=True):
            block.__class__ = recomputing[cls]
        yield
    finally:
        for block, cls in zip(blocks, classes, strict=True):
            block.__class__ = cls


def _recomputing(cls: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose call is a checkpoint of the class's own."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def inner(parameters: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self.update(parameters)
            return cls.__call__(self, *args, **kwargs)

        return mx.checkpoint(inner)(self.trainable_parameters(), *args, **kwargs)

    return type(cls.__name__, (cls,), {"__call__": call, MARK: True})
