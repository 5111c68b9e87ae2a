"""Cross-entropy of the output matrix some tokens at a time: never all logits at once.

The forward pass computes the loss and its gradient with respect to the hidden states, chunk by
chunk, so that the backward pass only scales what is there; the idea is that of Liger Kernel's
fused linear cross-entropy (Hsu et al., arXiv 2410.10989) and of Apple's cut cross-entropy
(Wijmans et al., arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from graft_scheduler.memory.cuts import chunk_tokens
from graft_worker.engine.head import Head

SummedLoss = Callable[[mx.array, mx.array, mx.array], mx.array]
"""The loss summed over tokens: hidden (n, width), targets (n), weights (n) to a scalar."""


def forward_only(head: Head, vocabulary: int) -> SummedLoss:
    """For evaluation: no gradient can be taken of it cheaply."""
    size = chunk_tokens(vocabulary)

    def loss(hidden: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        total = mx.zeros(())
        for place in range(0, hidden.shape[0], size):
            part = mx.depends(hidden[place : place + size], total) if place else hidden[:size]
            logits = head.logits(part)
            losses = mx.logsumexp(logits, axis=-1) - _of_target(logits, targets[place : place + size])
            total = total + (losses * weights[place : place + size]).sum()
        return total

    return loss


def with_gradient(head: Head, vocabulary: int) -> SummedLoss:
    """For training under a frozen head: differentiable with respect to the hidden states."""
    size = chunk_tokens(vocabulary)

    @mx.custom_function
    def function(hidden: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
        total = mx.zeros(())
        gradients: list[mx.array] = []
        for place in range(0, hidden.shape[0], size):
            chunk = slice(place, place + size)
            part = mx.depends(hidden[chunk], [total, gradients[-1]]) if place else hidden[chunk]
            loss, gradient = _chunk(head, part, targets[chunk], weights[chunk])
            total = total + loss
            gradients.append(gradient)
        return total, mx.concatenate(gradients)

    @function.vjp
    def backward(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> tuple[mx.array, mx.array, mx.array]:
        _, targets, weights = primals
        gradient = cotangents[0].astype(outputs[1].dtype) * outputs[1]
        return gradient, mx.zeros_like(targets), mx.zeros_like(weights)

    def loss(hidden: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        total: mx.array = function(hidden, targets, weights)[0]  # type: ignore[index]  # its stub knows one output
        return total

    return loss


def with_head_gradient(head: Head, vocabulary: int) -> SummedLoss:
    """For a head that learns too: each chunk's logits are computed again in the backward pass."""
    size = chunk_tokens(vocabulary)

    def loss(hidden: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        own: dict[str, mx.array] = dict(tree_flatten(head.module.trainable_parameters()))
        total = mx.zeros(())
        for place in range(0, hidden.shape[0], size):
            chunk = slice(place, place + size)
            part = mx.depends(hidden[chunk], total) if place else hidden[chunk]
            recomputed = mx.checkpoint(_learning_chunk(head, targets[chunk], weights[chunk]))
            total = total + recomputed(part, own)
        return total

    return loss


def _chunk(head: Head, hidden: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """The summed loss of a chunk, and its gradient with respect to `hidden`."""
    logits = head.logits(hidden)
    places = targets[:, None]
    # One exponential for each logit: on the CPU they cost more than the products.
    largest = mx.max(logits, axis=-1, keepdims=True)
    powers = mx.exp(logits - largest)
    sums = powers.sum(axis=-1, keepdims=True)
    losses = (mx.log(sums) + largest - mx.take_along_axis(logits, places, axis=-1))[:, 0]
    errors = mx.put_along_axis(
        powers, places, mx.take_along_axis(powers, places, axis=-1) - sums, axis=-1
    )  # the softmax less the target, times `sums`
    if head.softcap is not None:
        errors = errors * (1.0 - mx.square(logits / head.softcap))
    share = weights[:, None] * head.scale / sums
    if hidden.dtype != mx.float32:
        errors, share = errors * share, mx.array(1.0)
    _, (gradient,) = mx.vjp(head.raw, [hidden], [errors.astype(hidden.dtype)])
    return (losses * weights).sum(), gradient * share.astype(gradient.dtype)


def _learning_chunk(
    head: Head, targets: mx.array, weights: mx.array
) -> Callable[[mx.array, dict[str, mx.array]], mx.array]:
    """The summed loss of a chunk as a function of all that learns: checkpointing differentiates
    every argument, whole numbers too, and nothing that a function merely sees.
    """

    def loss(hidden: mx.array, own: dict[str, mx.array]) -> mx.array:
        head.module.update(tree_unflatten(list(own.items())))
        logits = head.logits(hidden)
        losses = mx.logsumexp(logits, axis=-1) - _of_target(logits, targets)
        return (losses * weights).sum()

    return loss


def _of_target(logits: mx.array, targets: mx.array) -> mx.array:
    return mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
