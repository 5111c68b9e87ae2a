"""Token losses and their gradients: sums over micro-batches, weighed by tokens once a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from graft_worker.engine.adapters import Adapted, Parameters
from graft_worker.engine.batches import Batch
from graft_worker.engine.device import is_gpu
from graft_worker.engine.dropout import give_keys

MAX_COMPILED_SHAPES = 32
"""`mx.compile` keeps a trace for every shape (mlx#4464); further shapes run uncompiled."""

Gradient = Callable[[Parameters, mx.array, mx.array, mx.array, mx.array], tuple[mx.array, Parameters]]


@dataclass(frozen=True, slots=True)
class StepGradient:
    """What the micro-batches of one optimizer step add up to."""

    loss: float
    """The sum over its learned tokens."""
    tokens: int
    gradient: Parameters
    """Of the mean loss of its learned tokens, in float32."""


def summed_loss(model: nn.Module, inputs: mx.array, targets: mx.array, learned: mx.array) -> mx.array:
    """The sum of the losses of the learned targets, in float32 whatever the model's dtype."""
    logits = model(inputs).astype(mx.float32)
    losses = nn.losses.cross_entropy(logits, targets)
    return mx.where(learned, losses, 0.0).sum()


class GradientOfSum:
    """Loss and gradient as sums over tokens, so that any cut into micro-batches adds up alike."""

    def __init__(self, adapted: Adapted) -> None:
        self._adapted = adapted
        self._plain: Gradient = mx.value_and_grad(self._loss)
        self._compiled: Gradient = mx.compile(self._plain)
        self._shapes: set[tuple[int, ...]] = set()

    def __call__(self, parameters: Parameters, batch: Batch, key: mx.array) -> tuple[mx.array, Parameters]:
        function = self._compiled if self._is_compiled(batch.inputs.shape) else self._plain
        return function(parameters, batch.inputs, batch.targets, batch.learned, key)

    def _loss(
        self,
        parameters: Parameters,
        inputs: mx.array,
        targets: mx.array,
        learned: mx.array,
        key: mx.array,
    ) -> mx.array:
        give_keys(self._adapted.dropouts, key)
        self._adapted.model.update(tree_unflatten(list(parameters.items())))
        return summed_loss(self._adapted.model, inputs, targets, learned)

    def _is_compiled(self, shape: tuple[int, ...]) -> bool:
        if not is_gpu():
            return False
        if shape not in self._shapes and len(self._shapes) < MAX_COMPILED_SHAPES:
            self._shapes.add(shape)
        return shape in self._shapes


def step_gradient(
    function: GradientOfSum, parameters: Parameters, batches: Iterable[tuple[Batch, mx.array]]
) -> StepGradient:
    """Add up all micro-batches of one optimizer step, each with its key, and weigh by tokens once."""
    loss, tokens = 0.0, 0
    total = {name: mx.zeros(value.shape, dtype=mx.float32) for name, value in parameters.items()}
    for batch, key in batches:
        one, gradient = function(parameters, batch, key)
        total = {name: value + gradient[name].astype(mx.float32) for name, value in total.items()}
        mx.eval(one, total)
        loss += as_float(one)
        tokens += batch.tokens
    return StepGradient(loss, tokens, {name: value / tokens for name, value in total.items()})


def norm(gradient: Parameters) -> float:
    """The length of the whole gradient as one vector."""
    squares = [mx.square(value).sum() for value in gradient.values()]
    return as_float(mx.sqrt(mx.stack(squares).sum()))


def as_float(scalar: mx.array) -> float:
    """The value of a real scalar; waits for it."""
    value = scalar.item()
    assert isinstance(value, float)
    return value
