"""MLX's primitives as far as training a language model needs them: what they keep, and their gradients.

Each function mirrors one of `mlx.core`'s, with the vjp of mlx/primitives.cpp. Numbers a person
would write as scalars are views of nothing: they cost no memory, and keep their place in the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from graft_scheduler.memory.arrays import Array, Backward, Shape, Storage, siblings

SCALAR = Array((), 4)
"""A number that a person wrote: it takes the dtype of what it meets."""
SHORT_SCALAR = Array((), 2)


def ready(shape: Shape, itemsize: int) -> Array:
    """An array that lies in memory already."""
    return Array(shape, itemsize)


def zeros_like(array: Array) -> Array:
    """Every element a view of one number."""
    return Array(array.shape, array.itemsize, (SCALAR,), Storage.VIEW, _nothing)


def add(one: Array, other: Array) -> Array:
    return _binary(one, other, lambda out, given, places: [given[0] for _ in places])


def subtract(one: Array, other: Array) -> Array:
    return _binary(
        one,
        other,
        lambda out, given, places: [given[0] if place == 0 else negative(given[0]) for place in places],
    )


def multiply(one: Array, other: Array) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        return [multiply(given[0], out.inputs[1 - place]) for place in places]

    return _binary(one, other, backward)


def divide(one: Array, other: Array) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        top, bottom = out.inputs
        return [
            divide(given[0], bottom)
            if place == 0
            else negative(divide(multiply(given[0], top), square(bottom)))
            for place in places
        ]

    return _binary(one, other, backward)


def maximum(one: Array, other: Array) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        mask = _binary(out.inputs[0], out.inputs[1], _nothing, itemsize=1)
        return [multiply(given[0], astype(mask, given[0].itemsize)) for _ in places]

    return _binary(one, other, backward)


def negative(array: Array) -> Array:
    return _unary(array, lambda out, given, places: [negative(given[0])])


def square(array: Array) -> Array:
    return _unary(array, lambda out, given, places: [multiply(out.inputs[0], multiply(SCALAR, given[0]))])


def sigmoid(array: Array) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        return [multiply(given[0], multiply(out, subtract(SCALAR, out)))]

    return _unary(array, backward)


def exp(array: Array) -> Array:
    return _unary(array, lambda out, given, places: [multiply(given[0], out)])


def erf(array: Array) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        scaled = multiply(SCALAR, given[0])
        return [multiply(scaled, exp(negative(square(out.inputs[0]))))]

    return _unary(array, backward)


def tanh(array: Array) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        opened = square(_unary(out.inputs[0], _nothing))  # cosh
        return [divide(given[0], opened)]

    return _unary(array, backward)


def cube(array: Array) -> Array:
    """A power of a constant: its gradient computes the power below it."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        lower = _binary(out.inputs[0], SCALAR, _nothing)
        return [multiply(multiply(given[0], SCALAR), lower)]

    return _binary(array, SCALAR, backward)


def rsqrt(array: Array) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        return [divide(multiply(multiply(SCALAR, out), given[0]), out.inputs[0])]

    return _unary(array, backward)


def relu(array: Array) -> Array:
    return maximum(array, SCALAR)


def astype(array: Array, itemsize: int) -> Array:
    if array.itemsize == itemsize:
        return array
    return Array(
        array.shape,
        itemsize,
        (array,),
        Storage.NEW,
        lambda out, given, places: [astype(given[0], out.inputs[0].itemsize)],
    )


def where(mask: Array, one: Array, other: Array) -> Array:
    """With a gradient for `one` alone."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        # A cast keeps what is broadcast in the size that it has.
        wide = broadcast(astype(mask, given[0].itemsize), out.shape)
        return [multiply(given[0], wide) for _ in places]

    inputs = _together([mask, one, other])
    return Array(inputs[1].shape, one.itemsize, tuple(inputs), Storage.REUSE, backward)


def softmax(array: Array) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        product = multiply(given[0], out)
        return [subtract(product, multiply(out, total(product, -1)))]

    return Array(array.shape, array.itemsize, (array,), Storage.REUSE, backward)


def total(array: Array, axis: int | None = None) -> Array:
    """The sum over `axis`, which stays as 1; over everything without one."""
    if axis is None:
        shape: Shape = ()
    else:
        place = axis % len(array.shape)
        shape = (*array.shape[:place], 1, *array.shape[place + 1 :])

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        return [broadcast(given[0], out.inputs[0].shape)]

    return Array(shape, array.itemsize, (array,), Storage.NEW, backward)


def broadcast(array: Array, shape: Shape) -> Array:
    if array.shape == shape:
        return array

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        source = out.inputs[0]
        summed = Array(source.shape, source.itemsize, (given[0],), Storage.NEW, _nothing)
        return [summed]

    made = Array(shape, array.itemsize, (array,), Storage.VIEW, backward)
    made.strided_bytes = array.strided_bytes
    return made


def view(array: Array, shape: Shape) -> Array:
    """Another shape or order of axes, without a copy."""
    made = Array(
        shape,
        array.itemsize,
        (array,),
        Storage.VIEW,
        lambda out, given, places: [view(given[0], out.inputs[0].shape)],
    )
    made.strided_bytes = array.strided_bytes
    return made


def strided(array: Array, shape: Shape) -> Array:
    """A view whose elements do not lie in the order of its axes: products copy it first."""
    made = view(array, shape)
    made.strided_bytes = array.nbytes
    made.backward = lambda out, given, places: [copied(given[0], out.inputs[0].shape)]
    return made


def copied(array: Array, shape: Shape) -> Array:
    """Another shape of what does not lie in that order: a copy; its gradient is strided."""
    return Array(
        shape,
        array.itemsize,
        (array,),
        Storage.NEW,
        lambda out, given, places: [strided(given[0], out.inputs[0].shape)],
    )


def part(array: Array, shape: Shape) -> Array:
    """A slice; its gradient is written into zeros."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        source = out.inputs[0]
        return [Array(source.shape, source.itemsize, (zeros_like(source), given[0]), Storage.NEW, _nothing)]

    return Array(shape, array.itemsize, (array,), Storage.VIEW, backward)


def split(array: Array, widths: Sequence[int]) -> tuple[Array, ...]:
    """Parts along the last axis."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        return [concatenate(given, out.inputs[0].shape)]

    return siblings(
        *(
            Array((*array.shape[:-1], width), array.itemsize, (array,), Storage.VIEW, backward)
            for width in widths
        )
    )


def concatenate(arrays: Sequence[Array], shape: Shape) -> Array:
    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        return [detached(given[0], out.inputs[place].shape) for place in places]

    return Array(shape, arrays[0].itemsize, tuple(arrays), Storage.NEW, backward)


def matmul(one: Array, other: Array) -> Array:
    """(..., n, k) by (k, m), or by (..., k, m) with the same leading axes."""
    if len(one.shape) > 2 and len(other.shape) == 2:
        rows = prod(one.shape[:-1])
        flat = view(one, (rows, one.shape[-1]))
        return view(matmul(flat, other), (*one.shape[:-1], other.shape[-1]))

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        left, right = out.inputs
        return [
            matmul(given[0], turned(right)) if place == 0 else matmul(turned(left), given[0])
            for place in places
        ]

    shape = (*one.shape[:-1], other.shape[-1])
    temporary = one.strided_bytes + other.strided_bytes
    return Array(shape, one.itemsize, (one, other), Storage.NEW, backward, temporary)


def addmm(summand: Array, one: Array, other: Array) -> Array:
    """`summand + one @ other`, of rows end to end: (n, m), (n, k) and (k, m)."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        left, right, _ = out.inputs
        made = [matmul(given[0], turned(right)), matmul(turned(left), given[0]), given[0]]
        return [made[place] for place in places]

    return Array(summand.shape, summand.itemsize, (one, other, summand), Storage.NEW, backward)


def turned(array: Array) -> Array:
    """The last two axes exchanged."""
    return view(array, (*array.shape[:-2], array.shape[-1], array.shape[-2]))


def stop_gradient(array: Array) -> Array:
    return detached(array, array.shape)


def detached(array: Array, shape: Shape) -> Array:
    """A view that no gradient goes through."""
    return Array(shape, array.itemsize, (array,), Storage.VIEW)


def copy(array: Array) -> Array:
    """A new name for the same memory."""
    return Array(array.shape, array.itemsize, (array,), Storage.VIEW, lambda out, given, places: [given[0]])


def made_of(inputs: Sequence[Array], shape: Shape, itemsize: int, temporary_bytes: int = 0) -> Array:
    """Any other primitive with memory of its own, and without a gradient."""
    return Array(shape, itemsize, tuple(inputs), Storage.NEW, None, temporary_bytes)


def reusing(inputs: Sequence[Array], shape: Shape, itemsize: int) -> Array:
    """As `made_of`, in the memory of an input that nobody needs afterwards, where there is one."""
    return Array(shape, itemsize, tuple(inputs), Storage.REUSE)


def free_unary(array: Array) -> Array:
    """A function without a gradient."""
    return Array(array.shape, array.itemsize, (array,), Storage.NEW)


def gather(inputs: Sequence[Array], shape: Shape, itemsize: int) -> Array:
    """Rows of the first input; its gradient is added up in zeros."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        source = out.inputs[0]
        scattered = Array(source.shape, source.itemsize, (zeros_like(source), given[0]), Storage.NEW)
        return [scattered if place == 0 else zeros_like(out.inputs[place]) for place in places]

    return Array(shape, itemsize, tuple(inputs), Storage.NEW, backward)


def logsumexp(array: Array) -> Array:
    """Over the last axis: one primitive, whose gradient makes the softmax."""

    def backward(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
        return [multiply(given[0], softmax(out.inputs[0]))]

    return Array((*array.shape[:-1], 1), array.itemsize, (array,), Storage.NEW, backward)


def unary(array: Array) -> Array:
    """Any function of single elements, without a gradient."""
    return Array(array.shape, array.itemsize, (array,), Storage.REUSE)


def _nothing(out: Array, given: list[Array], places: tuple[int, ...]) -> list[Array]:
    return [zeros_like(out.inputs[place]) for place in places]


def _unary(array: Array, backward: Backward) -> Array:
    return Array(array.shape, array.itemsize, (array,), Storage.REUSE, backward)


def _binary(one: Array, other: Array, backward: Backward, itemsize: int | None = None) -> Array:
    size = itemsize or max(array.itemsize for array in (one, other) if array is not SCALAR)
    if size == SHORT_SCALAR.itemsize:
        one, other = (SHORT_SCALAR if array is SCALAR else array for array in (one, other))
    one, other = _together([one, other])
    return Array(one.shape, size, (one, other), Storage.REUSE, backward)


def _together(arrays: list[Array]) -> list[Array]:
    """Broadcast against each other."""
    if all(array.shape == arrays[0].shape for array in arrays):
        return arrays
    length = max(len(array.shape) for array in arrays)
    padded = [(1,) * (length - len(array.shape)) + array.shape for array in arrays]
    shape = tuple(max(sizes) for sizes in zip(*padded, strict=True))
    return [broadcast(array, shape) for array in arrays]
