"""Whole functions with a gradient of their own: MLX's custom functions and checkpoints, its fast kernels,
products with packed matrices, and the engine's own activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graft_scheduler.memory.arrays import Array, Backward, Shape, Storage, siblings
from graft_scheduler.memory.operations import (
    SCALAR,
    add,
    copy,
    multiply,
    sigmoid,
    stop_gradient,
    subtract,
    turned,
    zeros_like,
)
from graft_scheduler.memory.vjp import vjp


def custom(
    made: Sequence[Array],
    inputs: Sequence[Array],
    backward: Callable[[Sequence[Array], Sequence[Array], Sequence[Array]], list[Array]],
) -> tuple[Array, ...]:
    """A function of `inputs` with a gradient of its own, of (inputs, cotangents, outputs)."""
    count = len(inputs)

    def back(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        found = backward(out.inputs[:count], given, out.outputs)
        return [found[place] if place < count else zeros_like(out.inputs[place]) for place in places]

    return _renamed(made, (*inputs, *made), back)


def depends(arrays: Sequence[Array], on: Sequence[Array]) -> tuple[Array, ...]:
    """`arrays`, not before `on` are computed."""
    return _renamed(arrays, (*arrays, *on), _passed)


def _renamed(arrays: Sequence[Array], inputs: tuple[Array, ...], backward: Backward) -> tuple[Array, ...]:
    """The same memory by new names, the outputs of one primitive of `inputs`."""
    outputs = []
    for one in arrays:
        output = Array(one.shape, one.itemsize, inputs, Storage.VIEW, backward)
        output.source = one
        outputs.append(output)
    return siblings(*outputs)


def checkpoint(
    function: Callable[[Sequence[Array]], list[Array]], inputs: Sequence[Array]
) -> tuple[Array, ...]:
    """Its forward pass is computed again for the gradient, after its outputs (mlx `checkpoint`)."""

    def backward(
        given: Sequence[Array], cotangents: Sequence[Array], outputs: Sequence[Array]
    ) -> list[Array]:
        primals = [copy(one) for one in depends(given, outputs)]
        return vjp(function(primals), cotangents, primals)

    return custom(function([stop_gradient(one) for one in inputs]), inputs, backward)


def fused_norm(x: Array, weight: Array) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        source, scale = out.inputs
        gradient = Array(source.shape, source.itemsize, (source, scale, given[0]), Storage.REUSE)
        if 1 not in places:
            return [gradient]
        partial = Array(source.shape, source.itemsize, (source, given[0]), Storage.NEW)
        of_weight = Array(scale.shape, scale.itemsize, (partial,), Storage.NEW)
        return [gradient, of_weight] if 0 in places else [of_weight]

    return Array(x.shape, x.itemsize, (x, weight), Storage.NEW, backward)


def rotation(array: Array) -> Array:
    """Of heads by their place, in one primitive; its gradient turns back."""
    return Array(
        array.shape, array.itemsize, (array,), Storage.NEW, lambda out, given, places: [rotation(given[0])]
    )


def attention(inputs: Sequence[Array], shape: Shape) -> Array:
    """Fused both ways: keeps its output and one number for each row."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        grads = siblings(
            *(Array(one.shape, one.itemsize, (*out.inputs, out, *given), Storage.NEW) for one in out.inputs)
        )
        return [grads[place] for place in places]

    return Array(shape, inputs[0].itemsize, tuple(inputs), Storage.NEW, backward)


def with_fallback(
    inputs: Sequence[Array], shape: Shape, plain: Callable[[Sequence[Array]], list[Array]]
) -> Array:
    """One primitive whose gradient is that of `plain`, computed again."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        primals = [copy(one) for one in out.inputs]
        found = vjp(plain(primals), given[:1], primals)
        return [found[place] for place in places]

    return Array(shape, inputs[0].itemsize, tuple(inputs), Storage.NEW, backward)


def frugal_swiglu(gate: Array, up: Array) -> Array:
    """The engine's: keeps its two inputs (graft_worker/engine/activations.py)."""

    def backward(
        given: Sequence[Array], cotangents: Sequence[Array], outputs: Sequence[Array]
    ) -> list[Array]:
        gate, up = given[0], given[1]
        share = sigmoid(gate)
        silu = multiply(gate, share)
        slope = add(share, multiply(silu, subtract(SCALAR, share)))
        return [multiply(multiply(cotangents[0], up), slope), multiply(cotangents[0], silu)]

    primals = [stop_gradient(gate), stop_gradient(up)]
    made = multiply(multiply(primals[0], sigmoid(primals[0])), primals[1])
    return custom([made], [gate, up], backward)[0]


def quantised_matmul(x: Array, width: float, *, is_whole: bool = False) -> Array:
    """By a frozen matrix that stays packed, or is made whole for the time of the product."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        return [quantised_matmul(given[0], out.inputs[0].shape[-1], is_whole=is_whole)]

    whole = round(x.shape[-1] * width * x.itemsize) if is_whole else 0
    return Array((*x.shape[:-1], width), x.itemsize, (x,), Storage.NEW, backward, whole)


def gathered_matmul(x: Array, weight: Array, width: float) -> Array:
    """Each row by the matrix of its expert."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        x, weight = out.inputs
        made = []
        for place in places:
            if place == 0:
                made.append(gathered_matmul(given[0], turned(weight), x.shape[-1]))
            else:
                made.append(Array(weight.shape, weight.itemsize, (x, given[0]), Storage.NEW))
        return made

    return Array((*x.shape[:-1], width), x.itemsize, (x, weight), Storage.NEW, backward)


def _passed(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
    count = len(given)
    return [given[place] if place < count else zeros_like(out.inputs[place]) for place in places]
