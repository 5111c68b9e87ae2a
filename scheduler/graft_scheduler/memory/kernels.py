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
    made_of,
    multiply,
    sigmoid,
    stop_gradient,
    subtract,
    turned,
    view,
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
    """Of queries, keys, values and perhaps a mask, fused both ways: keeps its output and one number for
    each row.
    """

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        read = (*out.inputs, out, *given)
        grads = siblings(*(Array(one.shape, one.itemsize, read, Storage.NEW) for one in out.inputs[:3]))
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


def gathered_matmul(x: Array, weight: Array, width: float, experts: Array) -> Array:
    """Each row (n, 1, k), sorted by its expert, by the matrix (k, width) of that."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        x, weight, _, experts = out.inputs
        made = []
        for place in places:
            if place == 0:
                made.append(gathered_matmul(given[0], turned(weight), x.shape[-1], experts))
            else:
                made.append(_gathered_gradient(x, weight, given[0], experts))
        return made

    rows = made_of([SCALAR], x.shape[:1], 4)
    inputs = (x, weight, rows, experts)
    return Array((*x.shape[:-1], width), x.itemsize, inputs, Storage.NEW, backward)


def _gathered_gradient(x: Array, weight: Array, cotangent: Array, experts: Array) -> Array:
    """Of the matrices: one product for each, of the rows that are its own."""
    count = weight.shape[:1]
    ends = made_of([made_of([SCALAR], count, 4), experts], count, 4)
    ends = made_of([made_of([ends], count, 4)], count, 4)
    rows = turned(view(cotangent, (cotangent.shape[0], cotangent.shape[-1])))
    shape = (*count, weight.shape[2], weight.shape[1])
    products = made_of([rows, view(x, (x.shape[0], x.shape[-1])), stop_gradient(ends)], shape, x.itemsize)
    return turned(products)


def _passed(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
    count = len(given)
    return [given[place] if place < count else zeros_like(out.inputs[place]) for place in places]
