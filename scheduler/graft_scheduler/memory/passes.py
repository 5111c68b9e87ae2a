"""Graphs of what a job evaluates at once: a micro-batch's gradient, an evaluation's loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from graft_scheduler.anatomy import Anatomy, Block
from graft_scheduler.memory import kernels
from graft_scheduler.memory import operations as op
from graft_scheduler.memory.arrays import Array, Shape, caused
from graft_scheduler.memory.forward import forward_block
from graft_scheduler.memory.layers import FLOAT32, Parameters, norm
from graft_scheduler.memory.vjp import vjp

SHOWN_CHUNKS = 3
"""Chunks of the loss that a graph has."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One micro-batch through a model."""

    rows: float
    width: int
    learned: float
    """Tokens with a loss."""
    chunk: float | None
    """Tokens whose logits are computed at once; all without."""
    trained_blocks: int
    recomputes: bool = False


def gradient(anatomy: Anatomy, own: Parameters, one: Pass) -> tuple[list[Array], Array]:
    """The loss of a micro-batch and the gradient of everything that is trained; and the hidden states
    that the output matrix reads: once these are computed, all lies there that the backward pass reads.
    """
    hidden = _hidden(anatomy, own, one)
    with caused("logits"):
        loss = _loss(anatomy, own, one, hidden, learns=True)
    primals = list(own.found.values())
    gradients = vjp([loss], [op.ready((), FLOAT32)], primals)
    for array in gradients:
        _name(array, "gradients")
    return [loss, *gradients], hidden


def _name(array: Array, cause: str) -> None:
    """Say what an output, and the memory that it lies in, is there for."""
    while array.source is not None:
        array = array.source
    array.cause = cause


def evaluation(anatomy: Anatomy, own: Parameters, one: Pass) -> list[Array]:
    """The loss of a micro-batch alone."""
    own.is_differentiated = False
    hidden = _hidden(anatomy, own, one)
    with caused("logits"):
        return [_loss(anatomy, own, one, hidden, learns=False)]


def _hidden(anatomy: Anatomy, own: Parameters, one: Pass) -> Array:
    """The states that the output matrix reads, for every token."""
    shape = (one.rows, one.width, anatomy.hidden)
    own.is_trained = own.mode.learns_ends
    own.scope = ""
    table = own.weight("embedding", (anatomy.vocabulary, anatomy.hidden))
    x = op.gather([table, op.ready(shape[:2], 4)], shape, own.mode.itemsize)
    if anatomy.positions:
        places = own.weight("positions", (anatomy.positions, anatomy.hidden))
        x = op.add(x, op.gather([places, op.ready(shape[1:2], 4)], shape[1:], own.mode.itemsize))
    if anatomy.scales_embeddings:
        x = op.multiply(x, op.SCALAR)
    frozen = len(anatomy.blocks) - one.trained_blocks
    for number, block in enumerate(anatomy.blocks):
        own.scope, own.is_trained = f"{number}.", number >= frozen
        x = (
            _recomputed(block, x, own)
            if one.recomputes and number >= frozen
            else forward_block(block, x, own)
        )
    own.scope, own.is_trained = "", own.mode.learns_ends
    return norm(x, anatomy.norm, "final_norm", own)


def _recomputed(block: Block, x: Array, own: Parameters) -> Array:
    """The block as a checkpoint of its input and what it learns."""
    probe = Parameters(own.mode, own.rank, own.targets, scope=own.scope)
    forward_block(block, op.ready(x.shape, x.itemsize), probe)  # to know what it learns
    for name, array in probe.found.items():
        own.found.setdefault(name, array)
    names, scope = list(probe.found), own.scope

    def function(given: Sequence[Array]) -> list[Array]:
        inner = Parameters(
            own.mode, own.rank, own.targets, dict(zip(names, given[1:], strict=True)), own.frozen, scope
        )
        return [forward_block(block, given[0], inner)]

    return kernels.checkpoint(function, [x, *(own.found[name] for name in names)])[0]


def _loss(anatomy: Anatomy, own: Parameters, one: Pass, hidden: Array, *, learns: bool) -> Array:
    if one.chunk is None:
        return _plain_loss(anatomy, own, hidden)
    flat = op.view(hidden, (one.rows * one.width, anatomy.hidden))
    chosen = op.gather([flat, op.ready((one.learned,), 4)], (one.learned, anatomy.hidden), hidden.itemsize)
    # The last counts as a full one, lest the peak falls where it is begun; more take no more.
    sizes = [min(one.chunk, one.learned)] * min(SHOWN_CHUNKS, ceil(one.learned / one.chunk))
    if not learns:
        return _forward_chunks(anatomy, own, chosen, sizes)
    if own.mode.learns_base and own.is_trained:
        return _learning_chunks(anatomy, own, chosen, sizes)
    return _chunks_with_gradient(anatomy, own, chosen, sizes)


def _raw_logits(anatomy: Anatomy, own: Parameters, hidden: Array) -> Array:
    if own.mode.quantised:
        return kernels.quantised_matmul(hidden, anatomy.vocabulary, is_whole=own.mode.dequantises)
    return op.matmul(hidden, op.turned(own.weight(*_head(anatomy))))


def _head(anatomy: Anatomy) -> tuple[str, Shape]:
    """The output matrix: its name and shape."""
    return "embedding" if anatomy.is_tied else "lm_head.weight", (anatomy.vocabulary, anatomy.hidden)


def _logits(anatomy: Anatomy, own: Parameters, hidden: Array) -> Array:
    logits = op.astype(_raw_logits(anatomy, own, hidden), FLOAT32)
    if anatomy.softcap:
        logits = op.multiply(op.tanh(op.divide(logits, op.SCALAR)), op.SCALAR)
    return logits


def _plain_loss(anatomy: Anatomy, own: Parameters, hidden: Array) -> Array:
    """As `mlx.nn.losses.cross_entropy`, which takes each line's largest logit off first."""
    logits = _logits(anatomy, own, hidden)
    return op.total(_losses(op.subtract(logits, op.stop_gradient(op.total(logits, -1)))))


def _losses(logits: Array) -> Array:
    """Of every token, from the logits in its line."""
    picked = _picked(logits, op.ready((*logits.shape[:-1], 1), 4))
    return op.subtract(op.logsumexp(logits), picked)


def _picked(logits: Array, places: Array) -> Array:
    return op.gather([logits, places], places.shape, FLOAT32)


def _slice(array: Array, size: float) -> Array:
    return op.part(array, (size, *array.shape[1:]))


def _forward_chunks(anatomy: Anatomy, own: Parameters, hidden: Array, sizes: Sequence[float]) -> Array:
    total = op.ready((), FLOAT32)
    for place, size in enumerate(sizes):
        part = _slice(hidden, size)
        if place:
            part = kernels.depends([part], [total])[0]
        total = op.add(total, op.total(_losses(_logits(anatomy, own, part))))
    return total


def _chunks_with_gradient(anatomy: Anatomy, own: Parameters, hidden: Array, sizes: Sequence[float]) -> Array:
    source = op.stop_gradient(hidden)
    total = op.ready((), FLOAT32)
    gradients: list[Array] = []
    for place, size in enumerate(sizes):
        part = _slice(source, size)
        if place:
            part = kernels.depends([part], [total, gradients[-1]])[0]
        loss, slope = _chunk(anatomy, own, part)
        total = op.add(total, loss)
        gradients.append(slope)
    if (left := hidden.shape[0] - sum(sizes)) > 0:
        gradients.append(op.made_of([gradients[-1]], (left, hidden.shape[1]), hidden.itemsize))
    joined = op.concatenate(gradients, hidden.shape)

    def backward(
        given: Sequence[Array], cotangents: Sequence[Array], outputs: Sequence[Array]
    ) -> list[Array]:
        return [op.multiply(op.astype(cotangents[0], outputs[1].itemsize), outputs[1])]

    return kernels.custom([total, joined], [hidden], backward)[0]


def _chunk(anatomy: Anatomy, own: Parameters, hidden: Array) -> tuple[Array, Array]:
    """As in graft_worker/engine/chunked.py."""
    size = hidden.shape[0]
    logits = _logits(anatomy, own, hidden)
    places = op.ready((size, 1), 4)
    largest = op.total(logits, -1)
    powers = op.exp(op.subtract(logits, largest))
    sums = op.total(powers, -1)
    picked = _picked(logits, places)
    losses = op.subtract(op.add(op.made_of([sums], (size, 1), FLOAT32), largest), picked)
    right = op.subtract(_picked(powers, places), sums)
    errors = op.made_of([powers, places, right], powers.shape, FLOAT32)
    if anatomy.softcap:
        errors = op.multiply(errors, op.subtract(op.SCALAR, op.square(op.divide(logits, op.SCALAR))))
    share = op.divide(op.ready((size, 1), FLOAT32), sums)
    if hidden.itemsize != FLOAT32:
        errors = op.multiply(errors, share)
    primal = op.copy(hidden)
    (slope,) = vjp([_raw_logits(anatomy, own, primal)], [op.astype(errors, hidden.itemsize)], [primal])
    scaled = op.multiply(slope, op.astype(share, slope.itemsize)) if hidden.itemsize == FLOAT32 else slope
    return op.total(op.multiply(losses, op.ready((size, 1), FLOAT32))), scaled


def _learning_chunks(anatomy: Anatomy, own: Parameters, hidden: Array, sizes: Sequence[float]) -> Array:
    name, shape = _head(anatomy)
    weight = own.weight(name, shape)
    total = op.ready((), FLOAT32)

    def function(given: Sequence[Array]) -> list[Array]:
        inner = Parameters(own.mode, own.rank, own.targets, {name: given[1]}, own.frozen)
        losses = _losses(_logits(anatomy, inner, given[0]))
        return [op.total(op.multiply(losses, op.ready(losses.shape, FLOAT32)))]

    for place, size in enumerate(sizes):
        part = _slice(hidden, size)
        if place:
            part = kernels.depends([part], [total])[0]
        total = op.add(total, kernels.checkpoint(function, [part, weight])[0])
    return total
