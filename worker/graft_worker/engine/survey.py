"""What a few training rows say of each adapted module: its components, and what each is worth.

The rows are looked at with the adapters at half strength: at full strength, rows that are learned have
no gradient left. On the demo (rank 32 to 8 and 4) that, with K-FAC's weights, kept more of the loss
than plain SVD, than the error of the outputs alone, and than Taylor scores of each component.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import mlx.core as mx
import numpy as np

from graft_worker.engine.adapters import Parameters
from graft_worker.engine.batches import Arrays, build_alone
from graft_worker.engine.layers import ComputedLoRALinear
from graft_worker.engine.loop import Task
from graft_worker.engine.loss import TokenLoss
from graft_worker.engine.recompute import recomputed
from graft_worker.engine.svd import Array, Components, decompose, gram, row_basis

ROWS = 32
"""So many are looked at, spread evenly over all."""
STRENGTH = 0.5
"""What the adapters are scaled by meanwhile."""
A, B = ".lora_a", ".lora_b"


def survey(
    task: Task, parameters: Parameters, loss: TokenLoss, check_stop: Callable[[], None] = lambda: None
) -> dict[str, Components]:
    """The components of every module, by its path in the model; `check_stop` may raise between rows."""
    weak = {name: value * STRENGTH if name.endswith(B) else value for name, value in parameters.items()}
    paths = module_paths(parameters)
    bases = {path: _as_floats(row_basis(as_matrices(parameters, path)[1])) for path in paths}
    task.adapted.model.eval()
    try:
        task.adapted.put(weak)
        inputs = _input_grams(task, loss, check_stop)
        for dropout in task.adapted.dropouts:
            dropout.draw_from(None)
        task.adapted.model.train()  # which has gradients; nothing is dropped without a key
        with recomputed(task.adapted.blocks if task.recomputes else ()):
            gradients = _gradient_grams(task, weak, loss, bases, check_stop)
    finally:
        task.adapted.put(parameters)
        task.adapted.model.train()
    components = {}
    for path in paths:
        a, b = as_matrices(parameters, path)
        left = inputs[path] if path in inputs else gram(a)
        # Gradients of B hold the size of x@A too; without it they are those at the output.
        right = gradients[path] / max(float(np.trace(left, axis1=1, axis2=2).sum()), np.finfo(float).tiny)
        components[path] = decompose(a, b, left, (row_basis(b), right))
    return components


def module_paths(parameters: Iterable[str]) -> list[str]:
    """The modules whose arrays these are, in their order."""
    return [name.removesuffix(A) for name in parameters if name.endswith(A)]


def as_matrices(parameters: Parameters, path: str) -> tuple[Array, Array]:
    """A module's A (experts, inputs, rank) and B (experts, rank, outputs)."""
    a, b = parameters[path + A], parameters[path + B]
    if a.ndim == 2:
        a, b = a[None], b[None]
    else:  # mlx-lm keeps those of experts transposed
        a, b = a.swapaxes(1, 2), b.swapaxes(1, 2)
    return np.array(a, np.float64), np.array(b, np.float64)


def _input_grams(task: Task, loss: TokenLoss, check_stop: Callable[[], None]) -> dict[str, Array]:
    """Of x@A (1, rank, rank), for the modules that can be watched."""
    watched = {
        path: module
        for path, module in task.adapted.model.named_modules()
        if isinstance(module, ComputedLoRALinear)
    }
    for module in watched.values():
        module.watch()
    try:
        for arrays in _rows(task):
            check_stop()
            mx.eval(loss.evaluation(arrays), [module["_gram"] for module in watched.values()])
    finally:
        grams = {path: module.watched() for path, module in watched.items()}
    return {path: np.array(value, np.float64)[None] for path, value in grams.items()}


def _gradient_grams(
    task: Task,
    parameters: Parameters,
    loss: TokenLoss,
    bases: dict[str, mx.array],
    check_stop: Callable[[], None],
) -> dict[str, Array]:
    """GᵀG (experts, n, n) of B's gradients in `bases`, summed over rows."""

    def value(candidate: Parameters, arrays: Arrays) -> mx.array:
        task.adapted.put(candidate)
        return loss.training(arrays)

    gradient = mx.value_and_grad(value)
    sums = {path: mx.zeros((basis.shape[0], *[basis.shape[-1]] * 2)) for path, basis in bases.items()}
    for arrays in _rows(task):
        check_stop()
        _, found = gradient(parameters, arrays)
        for path, basis in bases.items():
            of_b = found[path + B]
            inside = (of_b[None] if of_b.ndim == 2 else of_b.swapaxes(1, 2)) @ basis
            sums[path] = sums[path] + inside.swapaxes(1, 2) @ inside
        mx.eval(sums)
    return {path: np.array(value, np.float64) for path, value in sums.items()}


def _rows(task: Task) -> Iterator[Arrays]:
    """One after another, so that there is no padding."""
    rows = task.train_rows
    for place in range(min(ROWS, len(rows))):
        yield build_alone(rows[place * len(rows) // min(ROWS, len(rows))]).arrays


def _as_floats(array: Array) -> mx.array:
    return mx.array(array.astype(np.float32))
