"""Gradient checkpointing: blocks that compute their activations again in the backward pass.

mlx-lm patches the block's class, for good, and once more with every call. Here the instances
change, and change back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import BoundArguments, signature
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

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
    """A subclass whose call is a checkpoint of the class's own.

    Masks and whole numbers are no inputs of the checkpoint: it would ask for their gradients, which
    fused attention refuses.
    """
    form = signature(cls.__call__)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = form.bind(self, *args, **kwargs).arguments
        _, *names = given
        learned_from = {name: given[name] for name in names if _has_gradient(name, given[name])}

        def inner(parameters: dict[str, Any], inputs: dict[str, Any]) -> Any:
            self.update(parameters)
            every = BoundArguments(form, OrderedDict(given | inputs))
            return cls.__call__(*every.args, **every.kwargs)

        return mx.checkpoint(inner)(self.trainable_parameters(), learned_from)

    return type(cls.__name__, (cls,), {"__call__": call, MARK: True})


def _has_gradient(name: str, value: object) -> bool:
    leaves = dict(tree_flatten([value])).values()
    arrays = [leaf for leaf in leaves if isinstance(leaf, mx.array)]
    return "mask" not in name and any(mx.issubdtype(one.dtype, mx.floating) for one in arrays)
