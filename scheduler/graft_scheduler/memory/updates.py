"""Graphs of an optimizer's step, as MLX's optimizers build them (mlx/optimizers/optimizers.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from graft_scheduler.hyperparameters import BY_ELEMENT, OptimizerName
from graft_scheduler.memory import operations as op
from graft_scheduler.memory.arrays import Array, Shape, siblings

FLOAT32 = 4
NEWTON_SCHULZ_STEPS = 5

MOMENTS = {OptimizerName.ADAM: 2, OptimizerName.ADAMW: 2, OptimizerName.SGD: 1, OptimizerName.LION: 1}
"""Arrays of the size of what is trained that they keep."""

Made = tuple[list[Array], list[Array]]
"""New arrays, and the old ones that nobody needs afterwards."""


def update(name: OptimizerName, shapes: Sequence[Shape], *, is_fused: bool = False) -> Made:
    """One step for arrays of these shapes: new parameters and new state; what they take over.

    Fused, nothing lies between: rules that treat every number alike are one compiled kernel on a GPU.
    """
    parameters: list[Array] = []
    state: list[Array] = []
    owned: list[Array] = []
    for shape in shapes:
        fuses = is_fused and name in BY_ELEMENT
        (parameter, *kept), taken = _as_one(name, shape) if fuses else RULES[name](shape)
        parameters.append(parameter)
        state += kept
        owned += taken
    return parameters + state, owned


def _inputs(shape: Shape) -> tuple[Array, Array]:
    """The mean gradient and the parameter."""
    return op.multiply(op.ready(shape, FLOAT32), op.SCALAR), op.ready(shape, FLOAT32)


def _as_one(name: OptimizerName, shape: Shape) -> Made:
    """One primitive: the moments take over the memory of the old ones."""
    old = [op.ready(shape, FLOAT32) for _ in range(MOMENTS[name])]
    inputs = [op.ready(shape, FLOAT32), op.ready(shape, FLOAT32), *old]
    made = [op.made_of(inputs, shape, FLOAT32), *(op.reusing(inputs, shape, FLOAT32) for _ in old)]
    return list(siblings(*made)), old


def _moment(old: Array, gradient: Array) -> Array:
    return op.add(op.multiply(op.SCALAR, old), op.multiply(op.SCALAR, gradient))


def _adam(shape: Shape, *, decays: bool = False) -> Made:
    gradient, parameter = _inputs(shape)
    old = [op.ready(shape, FLOAT32), op.ready(shape, FLOAT32)]
    first = _moment(old[0], gradient)
    second = _moment(old[1], op.square(gradient))
    bottom = op.add(op.multiply(op.free_unary(second), op.SCALAR), op.SCALAR)
    step = op.divide(op.multiply(op.SCALAR, first), bottom)
    if decays:
        parameter = op.multiply(parameter, op.SCALAR)
    return [op.subtract(parameter, step), first, second], old


def _lion(shape: Shape) -> Made:
    gradient, parameter = _inputs(shape)
    old = op.ready(shape, FLOAT32)
    between = _moment(old, gradient)
    kept = _moment(old, gradient)
    return [op.subtract(parameter, op.multiply(op.SCALAR, op.unary(between))), kept], [old]


def _sgd(shape: Shape) -> Made:
    gradient, parameter = _inputs(shape)
    old = op.ready(shape, FLOAT32)
    kept = op.add(op.multiply(op.SCALAR, old), gradient)
    return [op.subtract(parameter, op.multiply(op.SCALAR, kept)), kept], [old]


def _muon(shape: Shape) -> Made:
    gradient, parameter = _inputs(shape)
    old = op.ready(shape, FLOAT32)
    kept = _moment(old, gradient)
    step = _moment(kept, gradient)
    if len(shape) >= 2:
        step = _orthogonal(step)
    return [op.subtract(parameter, op.multiply(op.SCALAR, step)), kept], [old]


def _orthogonal(matrix: Array) -> Array:
    x = op.view(matrix, (matrix.shape[0], matrix.nbytes // matrix.itemsize // matrix.shape[0]))
    if x.shape[0] > x.shape[1]:
        x = op.turned(x)
    x = op.divide(x, op.SCALAR)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = op.matmul(x, op.turned(x))
        mixed = op.add(op.multiply(op.SCALAR, gram), op.multiply(op.SCALAR, op.matmul(gram, gram)))
        x = op.add(op.multiply(op.SCALAR, x), op.matmul(mixed, x))
    return op.view(x, matrix.shape)


def _adafactor(shape: Shape) -> Made:
    gradient, parameter = _inputs(shape)
    squares = op.add(op.square(gradient), op.SCALAR)
    if len(shape) < 2:
        old = op.ready(shape, FLOAT32)
        kept = _moment(old, squares)
        scaled = op.multiply(op.free_unary(kept), gradient)
        return [op.subtract(parameter, op.multiply(op.SCALAR, scaled)), kept], [old]
    rows, columns = (*shape[:-1], 1), (*shape[:-2], 1, shape[-1])
    taken = [op.ready(rows, FLOAT32), op.ready(columns, FLOAT32)]
    row = _moment(taken[0], op.total(squares, -1))
    column = _moment(taken[1], op.total(squares, -2))
    approximate = op.multiply(op.free_unary(row), op.free_unary(column))
    scaled = op.multiply(approximate, gradient)
    norm = op.total(op.square(scaled))
    scaled = op.multiply(op.divide(scaled, norm), op.SCALAR)
    return [op.subtract(parameter, scaled), row, column], taken


RULES: dict[OptimizerName, Callable[[Shape], Made]] = {
    OptimizerName.ADAM: _adam,
    OptimizerName.ADAMW: partial(_adam, decays=True),
    OptimizerName.LION: _lion,
    OptimizerName.SGD: _sgd,
    OptimizerName.MUON: _muon,
    OptimizerName.ADAFACTOR: _adafactor,
}
