"""Gradients as sums over tokens, so that any cut into micro-batches adds up alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlx.core as mx

from graft_worker.engine.adapters import Adapted, Parameters
from graft_worker.engine.batches import Arrays, Batch
from graft_worker.engine.compilation import CompilePlan
from graft_worker.engine.device import is_gpu
from graft_worker.engine.dropout import give_keys
from graft_worker.engine.layout import Layout
from graft_worker.engine.loss import SummedLoss
from graft_worker.engine.scalars import as_float

Gradient = Callable[[Parameters, Arrays, mx.array], tuple[mx.array, Parameters]]


@dataclass(frozen=True, slots=True)
class StepGradient:
    """What the micro-batches of one optimizer step add up to."""

    loss: float
    """The sum over its learned tokens."""
    total: Parameters
    """The gradient of that sum, in float32."""
    tokens: int
    read_tokens: int
    computed_tokens: int
    norm: float
    """Of the gradient of the mean loss, as one vector."""

    @property
    def mean_loss(self) -> float:
        return self.loss / self.tokens


class GradientOfSum:
    """Loss and gradient of micro-batches with respect to the masters as they are kept.

    Compiled where that pays. Leaves the model without arrays of its own: `put` them back after.
    """

    def __init__(
        self, adapted: Adapted, loss: SummedLoss, layout: Layout, plan: CompilePlan | None = None
    ) -> None:
        self._adapted = adapted
        self._loss = loss
        self._layout = layout
        self._differentiated = mx.value_and_grad(self._value)
        self._plan = plan if is_gpu() else None
        self._compiled: Gradient = mx.compile(self._of_kept)
        self._add: Callable[[Parameters, Parameters], Parameters] = mx.compile(_add)
        self._norm: Callable[[Parameters], mx.array] = mx.compile(norm)
        self._pack: Callable[[Parameters], Parameters] = mx.compile(self._packed)

    def __call__(self, parameters: Parameters, arrays: Arrays, key: mx.array) -> tuple[mx.array, Parameters]:
        shape = tuple(arrays[name].shape for name in sorted(arrays))
        compiled = self._plan is not None and self._plan.wants(shape)
        began = time.monotonic()
        loss, gradient = (self._compiled if compiled else self._of_kept)(parameters, arrays, key)
        # Before they are put end to end: MLX computes in another order then, and keeps more meanwhile.
        mx.eval(loss, gradient)
        if self._plan is not None:
            self._plan.took(shape, time.monotonic() - began, was_compiled=compiled)
        return loss, self._pack(gradient)

    def of_step(self, parameters: Parameters, batches: Iterable[tuple[Batch, mx.array]]) -> StepGradient:
        """Add up all micro-batches of one optimizer step, each with its key."""
        losses: list[mx.array] = []
        total: Parameters | None = None
        tokens = read = computed = 0
        for batch, key in batches:
            loss, gradient = self(parameters, batch.arrays, key)
            total = gradient if total is None else self._add(total, gradient)
            losses.append(loss)
            mx.eval(loss, total)
            tokens += batch.tokens
            read += batch.read_tokens
            computed += batch.computed_tokens
        assert total is not None  # no step is empty
        if self._plan is not None:
            self._plan.done += 1
        loss_sum, length = mx.stack(losses).sum(), self._norm(total)
        mx.eval(loss_sum, length)
        return StepGradient(as_float(loss_sum), total, tokens, read, computed, as_float(length) / tokens)

    def _of_kept(self, kept: Parameters, arrays: Arrays, key: mx.array) -> tuple[mx.array, Parameters]:
        """By name, and with respect to the copies that are computed with, which is the same."""
        computed = self._adapted.computed(self._layout.unpack(kept))
        return self._differentiated(computed, arrays, key)

    def _packed(self, gradient: Parameters) -> Parameters:
        """As the masters are kept, in float32."""
        return {name: value.astype(mx.float32) for name, value in self._layout.pack(gradient).items()}

    def _value(self, computed: Parameters, arrays: Arrays, key: mx.array) -> mx.array:
        give_keys(self._adapted.dropouts, key)
        self._adapted.put(computed)
        return self._loss(arrays)


def norm(gradient: Parameters) -> mx.array:
    """The length of the whole gradient as one vector; summed in the order of its names."""
    return mx.sqrt(mx.stack([mx.square(value).sum() for value in gradient.values()]).sum())


def _add(total: Parameters, gradient: Parameters) -> Parameters:
    return {name: value + gradient[name] for name, value in total.items()}
