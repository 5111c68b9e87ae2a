"""Validation loss: always the same rows, cut the same way; no random state is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
from mlx import nn

from graft_scheduler.hyperparameters import Batching
from graft_worker.engine.batches import build
from graft_worker.engine.below import VALIDATION, Reuse
from graft_worker.engine.cutting import Budget, exact_cutter
from graft_worker.engine.loss import SummedLoss
from graft_worker.engine.rows import TokenRow
from graft_worker.engine.scalars import as_float

MAX_EXPONENT = 700.0
"""Perplexities above e to this are reported as it: they would not fit a float."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A token-weighted loss in nats."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


def perplexity(loss: float) -> float:
    """The number e to the power of `loss`, as far as a float reaches."""
    return math.exp(min(loss, MAX_EXPONENT))


class Once(Protocol):
    """Finds out what follows from base and data alone; the same question is answered by heart."""

    def __call__(self, question: tuple[Hashable, ...], answer: Callable[[], Evaluation]) -> Evaluation: ...


class Evaluator:
    """Measures a model on the same rows as often as it is called."""

    def __init__(
        self,
        model: nn.Module,
        loss: SummedLoss,
        rows: Sequence[TokenRow],
        budget: Budget,
        once: Once = lambda question, answer: answer(),
        reuse: Reuse | None = None,
    ) -> None:
        self._model = model
        self._loss = loss
        self._rows = rows
        self._once = once
        self._reuse = reuse
        self.cut(budget)

    def cut(self, budget: Budget) -> None:
        """Compute no more at once than `budget` from the next time on."""
        self._budget = budget
        self._batches = exact_cutter(self._rows, budget, Batching.BUCKETED).cut(range(len(self._rows)))

    def dearest(self) -> None:
        """Compute the largest of the micro-batches and forget its loss."""
        largest = max(self._batches, key=lambda one: (one.height * one.width, one.width))
        self._model.eval()
        try:
            mx.eval(self._loss(build(self._rows, largest).arrays))
        finally:
            self._model.train()

    def untrained(self, between_batches: Callable[[], None]) -> Evaluation:
        """The same of a model that is still its base."""
        question = ("untrained", self._budget, len(self._rows))
        return self._once(question, lambda: self(between_batches))

    def __call__(self, between_batches: Callable[[], None] = lambda: None) -> Evaluation:
        """The mean loss over all learned tokens; `between_batches` may raise to stop."""
        loss, tokens = 0.0, 0
        self._model.eval()
        try:
            for micro_batch in self._batches:
                between_batches()
                batch = build(self._rows, micro_batch)
                if self._reuse is not None:
                    batch = self._reuse.extend(VALIDATION, micro_batch, batch)
                loss += as_float(self._loss(batch.arrays))
                tokens += batch.tokens
        finally:
            self._model.train()
        return Evaluation(loss / tokens, tokens)
