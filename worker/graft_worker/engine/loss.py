"""Sums of token losses over a micro-batch, by one of two kernels that agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

from graft_scheduler.hyperparameters import LossKernel
from graft_worker.engine import chunked
from graft_worker.engine.adapters import Adapted, Parameters
from graft_worker.engine.batches import Arrays
from graft_worker.engine.below import BELOW, Below
from graft_worker.engine.head import Captured, Head, captured, find_head
from graft_worker.engine.packing import packed_caches
from graft_worker.engine.scalars import as_float

TOLERANCES: dict[mx.Dtype, float] = {mx.float32: 1e-4, mx.float16: 5e-3, mx.bfloat16: 5e-2}
"""How far the two kernels may be apart, relatively, on one batch: rounding in each dtype. Gradients that
went through 16 blocks in bfloat16 were up to 2e-2 apart on an H100; a wrong kernel is off by far more."""
SMALLEST = 1e-30

SummedLoss = Callable[[Arrays], mx.array]


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The loss of a micro-batch, summed over its learned tokens, in float32 whatever the model's dtype."""

    kernel: LossKernel
    training: SummedLoss
    evaluation: SummedLoss
    """The same value; no gradient is taken of it."""
    problem: str | None = None
    """Why it is the plain kernel although the chunked one was asked for."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a model's last hidden states become a loss."""

    head: Head | None
    """Whose logits need not all be there at once."""
    problem: str | None = None
    """Why they are, if the head is not known or its loss is another."""


def find_ending(adapted: Adapted, parameters: Parameters, asked: LossKernel, sample: Arrays) -> Ending:
    """The head of `adapted`, if chunks were asked for and agree with the plain loss on `sample`."""
    if asked is LossKernel.PLAIN:
        return Ending(None)
    head = find_head(adapted.model)
    if head is None:
        return Ending(None, "the model ends in a way that is not known here")
    expected = loss_and_gradient(plain_loss(adapted.model), adapted, parameters, sample)
    with captured(head) as capture:
        loss = _chunked(adapted, head, capture)
        found = loss_and_gradient(loss.training, adapted, parameters, sample)
        assert capture.hidden is not None
        dtype = capture.hidden.dtype
        problem = _difference(expected, found, dtype)
        problem = problem or _difference(expected[:1], [loss.evaluation(sample)], dtype)
    return Ending(head if problem is None else None, problem)


@contextmanager
def token_loss(adapted: Adapted, ending: Ending, below: Below | None = None) -> Iterator[TokenLoss]:
    """The loss of `adapted`: in chunks, where `ending` has a head.

    Micro-batches may bring what the blocks `below` make of them.

    While the context lasts, the model itself may compute no logits any more.
    """
    if ending.head is None:
        plain = plain_loss(adapted.model, below)
        yield TokenLoss(LossKernel.PLAIN, plain, plain, ending.problem)
        return
    with captured(ending.head) as capture:
        yield _chunked(adapted, ending.head, capture, below)


def plain_loss(model: nn.Module, below: Below | None = None) -> SummedLoss:
    """All logits of a micro-batch at once."""

    def loss(arrays: Arrays) -> mx.array:
        logits = _call(model, arrays, below).astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, arrays["targets"])
        return mx.where(arrays["learned"], losses, 0.0).sum()

    return loss


def _chunked(adapted: Adapted, head: Head, capture: Captured, below: Below | None = None) -> TokenLoss:
    vocabulary = _vocabulary(head)
    learns = bool(head.module.trainable_parameters())
    make = chunked.with_head_gradient if learns else chunked.with_gradient

    def over(kernel: chunked.SummedLoss) -> SummedLoss:
        def loss(arrays: Arrays) -> mx.array:
            _call(adapted.model, arrays, below)
            assert capture.hidden is not None  # the head was called: `find_head` saw it happen
            slots = arrays["slots"]
            used, places = slots >= 0, mx.maximum(slots, 0)
            hidden = capture.hidden.reshape(-1, capture.hidden.shape[-1])[places]
            return kernel(hidden, arrays["targets"].reshape(-1)[places], used.astype(mx.float32))

        return loss

    return TokenLoss(
        LossKernel.CHUNKED, over(make(head, vocabulary)), over(chunked.forward_only(head, vocabulary))
    )


def _call(model: nn.Module, arrays: Arrays, below: Below | None) -> mx.array:
    documents = arrays.get("documents")
    cache = {} if documents is None else {"cache": packed_caches(len(model.layers), documents)}
    with below.given(arrays.get(BELOW)) if below else nullcontext():
        logits: mx.array = model(arrays["inputs"], **cache)
    return logits


def _vocabulary(head: Head) -> int:
    return int(head.module.weight.shape[0])


def loss_and_gradient(
    loss: SummedLoss, adapted: Adapted, parameters: Parameters, sample: Arrays
) -> list[mx.array]:
    """The value and the gradient with respect to what the last blocks' adapters or weights are."""

    def of(parameters: dict[str, mx.array]) -> mx.array:
        adapted.put(parameters)
        return loss(sample)

    try:
        value, gradient = mx.value_and_grad(of)(parameters)
        mx.eval(value, gradient)
    finally:
        adapted.put(parameters)
    return [value, *gradient.values()]


def _difference(expected: list[mx.array], found: list[mx.array], dtype: mx.Dtype) -> str | None:
    """Says how far apart a value and its gradient are, if that is more than rounding explains."""
    value = relative_difference([expected[0]], [found[0]])
    gradient = relative_difference(expected[1 : len(found)], found[1:])
    tolerance = TOLERANCES[dtype]
    if value <= tolerance and gradient <= tolerance:  # never true of NaN
        return None
    return f"the chunked loss is off by {value:.1e} and its gradient by {gradient:.1e}"


def relative_difference(expected: list[mx.array], found: list[mx.array]) -> float:
    """The length of the difference over that of `expected`, both as one vector.

    One array after the other: the squares of all would take as much memory as a gradient.
    """
    if not expected:
        return 0.0
    apart, length = mx.array(0.0), mx.array(0.0)
    for one, other in zip(expected, found, strict=True):
        apart = apart + mx.square(one - other).sum()
        length = length + mx.square(one).sum()
        mx.eval(apart, length)
    return as_float(mx.sqrt(apart / mx.maximum(length, SMALLEST)))
