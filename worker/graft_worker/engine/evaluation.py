"""Validation loss: always the same rows, cut the same way; no random state is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx import nn

from graft_worker.engine.batches import Budget, build, cut
from graft_worker.engine.loss import as_float, summed_loss
from graft_worker.engine.rows import TokenRow

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


def evaluate(
    model: nn.Module,
    rows: Sequence[TokenRow],
    budget: Budget,
    between_batches: Callable[[], None] = lambda: None,
) -> Evaluation:
    """The mean loss over all learned tokens of `rows`; `between_batches` may raise to stop."""
    widths = [row.width for row in rows]
    loss, tokens = 0.0, 0
    model.eval()
    try:
        for micro_batch in cut(widths, range(len(rows)), budget):
            between_batches()
            batch = build(rows, micro_batch)
            loss += as_float(summed_loss(model, batch.inputs, batch.targets, batch.learned))
            tokens += batch.tokens
    finally:
        model.train()
    return Evaluation(loss / tokens, tokens)
