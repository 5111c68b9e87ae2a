"""The best low-rank approximation of one adapted module's branch, by what it does to the data.

In numpy and float64: MLX factorises on the CPU alone and in float32, and the root of a Gram matrix has half
of its digits. What is factorised is no larger than (rank, outputs).
Shapes begin with the experts of a module, which are cut alike; a plain module is one expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.float32]

LEFT_FLOOR = 1e-9
"""How far the variances of x@A are drawn towards their mean: below lies rounding."""
RIGHT_FLOOR = 0.1
"""The same of the gradient's: a few dozen rows say little about directions that they leave alone."""
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Components:
    """A branch as a sum of rank-1 branches, the most important first."""

    a: Floats
    """(experts, inputs, rank); every column as long as its row of `b`."""
    b: Floats
    """(experts, rank, outputs)"""
    scores: Array
    """(rank): what leaving each out adds to the loss, in one unit for all modules; never rises."""

    def first(self, kept: int, width: int) -> tuple[Floats, Floats]:
        """A and B of the first `kept` components, with zeros up to a rank of `width`."""
        count = min(kept, self.a.shape[-1])
        a = np.zeros((*self.a.shape[:2], width), np.float32)
        b = np.zeros((self.b.shape[0], width, self.b.shape[2]), np.float32)
        a[..., :count], b[:, :count] = self.a[..., :count], self.b[:, :count]
        return a, b


def decompose(a: Array, b: Array, left: Array, right: tuple[Array, Array] | None = None) -> Components:
    """Split a (experts, inputs, rank) @ b (experts, rank, outputs); all components add up to it.

    The first k are the rank-k branch whose difference to the whole is least, squared and summed over
    the data: weighted by `left` (experts, rank, rank), the Gram matrix of x@A, and by `right`, that of
    the loss's gradient at the output, as a pair of an orthonormal basis (experts, outputs, n) that
    holds the rows of B, and the matrix (experts, n, n) in it. Both weights together are K-FAC's
    estimate of the curvature (Martens and Grosse, arXiv 1503.05671); the left one alone is that of
    SVD-LLM (Wang et al., arXiv 2403.07378).
    """
    if right is None:
        basis = row_basis(b)
        right = basis, np.broadcast_to(np.eye(basis.shape[-1]), (len(b), *[basis.shape[-1]] * 2))
    basis, gradient = right
    left_root, left_inverse = _root(left, LEFT_FLOOR)
    right_root, right_inverse = _root(gradient, RIGHT_FLOOR)
    core = left_root @ (b @ basis) @ right_root.swapaxes(1, 2)
    u, values, v = np.linalg.svd(core, full_matrices=False)
    new_a = a @ (left_inverse @ u)
    new_b = (values[:, :, None] * v) @ right_inverse.swapaxes(1, 2) @ basis.swapaxes(1, 2)
    return Components(*_balanced(new_a, new_b), np.square(values).sum(axis=0))


def row_basis(b: Array) -> Array:
    """An orthonormal basis (experts, outputs, n) of the rows of B (experts, rank, outputs)."""
    return np.linalg.qr(b.swapaxes(1, 2))[0]


def gram(a: Array) -> Array:
    """AᵀA (experts, rank, rank): that of x@A for inputs of which nothing is known."""
    return a.swapaxes(1, 2) @ a


def _root(matrix: Array, floor: float) -> tuple[Array, Array]:
    """R with RᵀR = `matrix` drawn by `floor` towards the mean of its eigenvalues, and R's inverse."""
    values, vectors = np.linalg.eigh((matrix + matrix.swapaxes(1, 2)) / 2)
    # The mean of all experts: one that the data never reached weighs little, but not nothing.
    mean = max(float(values.mean()), TINY)
    roots = np.sqrt((1 - floor) * np.maximum(values, 0.0) + floor * mean)
    return roots[:, :, None] * vectors.swapaxes(1, 2), vectors / roots[:, None, :]


def _balanced(a: Array, b: Array) -> tuple[Floats, Floats]:
    """The same product with A's columns as long as B's rows."""
    a_lengths, b_lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=2)
    ratio = np.sqrt(np.maximum(b_lengths, TINY) / np.maximum(a_lengths, TINY))
    return (a * ratio[:, None, :]).astype(np.float32), (b / ratio[:, :, None]).astype(np.float32)
