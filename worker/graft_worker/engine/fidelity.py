"""How near one model is to another: losses and divergences over the same learned tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx import nn

from graft_scheduler.exports import Fidelity
from graft_worker.engine.held_out import HeldOut
from graft_worker.engine.rows import TokenRow
from graft_worker.engine.scalars import as_float

KEPT_SHARE = 0.9
"""A fused model that is further from the adapted one than a tenth of what the tuning changed lost some of it.
Rounding to bfloat16 kept over 0.999 of what was tried; 4 bits nothing of a small adapter."""
NOISE: dict[str, float] = {"float32": 1e-7, "float16": 1e-4, "bfloat16": 1e-3}
"""Divergences, in nats a token, that rounding alone makes between two ways to compute the same model: logits
are off by about 1e-4, 1e-2 and 4e-2, and a divergence is about half of that squared."""
HELD_BYTES = 1 << 30
"""Most that the adapted model's log-probabilities may take: 2,000 tokens of a vocabulary of 128,000."""


@dataclass(frozen=True, slots=True)
class Witness:
    """What the adapted model makes of the held-out rows; other models are compared with it."""

    rows: Sequence[TokenRow]
    log_probabilities: Sequence[mx.array]
    """Of each row, (learned tokens, vocabulary)."""
    loss: float

    @property
    def tokens(self) -> int:
        return sum(row.targets for row in self.rows)


@dataclass(frozen=True, slots=True)
class Compared:
    """A model beside the adapted one."""

    divergence: float
    """KL(adapted || model), the mean of a token."""
    loss: float


def listen(model: nn.Module, held_out: HeldOut) -> Witness:
    """What `model`, the adapted one, says of as many rows as may be held."""
    model.eval()
    rows: list[TokenRow] = []
    kept: list[mx.array] = []
    loss, size = 0.0, 0
    for row in held_out.rows:
        found = _log_probabilities(model, row)
        mx.eval(found)
        size += found.nbytes
        if rows and size > HELD_BYTES:
            break
        rows.append(row)
        kept.append(found)
        loss += _loss(found, row)
    return Witness(rows, kept, loss / sum(row.targets for row in rows))


def compare(witness: Witness, model: nn.Module) -> Compared:
    """How far `model` is from what `witness` says."""
    model.eval()
    divergence, loss = 0.0, 0.0
    for row, adapted in _pairs(witness):
        other = _log_probabilities(model, row)
        apart = mx.where(adapted > -mx.inf, mx.exp(adapted) * (adapted - other), 0.0)
        divergence += as_float(apart.sum())
        loss += _loss(other, row)
    return Compared(max(divergence, 0.0) / witness.tokens, loss / witness.tokens)


def judge(tuning: float, difference: float, noise: float) -> tuple[float | None, bool]:
    """The share of the tuning that is left, and whether that will do.

    Of a tuning within the noise no share can be told: all that can be asked is that nothing was added.
    """
    if tuning <= noise:
        return None, difference <= noise
    return 1 - difference / tuning, difference <= max((1 - KEPT_SHARE) * tuning, noise)


def report(held_out: HeldOut, witness: Witness, base: Compared, fused: Compared, dtype: str) -> Fidelity:
    """The figures of one comparison; `dtype` is what the models were computed in."""
    kept, is_kept = judge(base.divergence, fused.divergence, NOISE[dtype])
    return Fidelity(
        origin=held_out.origin,
        is_generated=held_out.is_generated,
        rows=len(witness.rows),
        tokens=witness.tokens,
        base_loss=base.loss,
        adapted_loss=witness.loss,
        fused_loss=fused.loss,
        tuning=base.divergence,
        difference=fused.divergence,
        kept=kept,
        is_kept=is_kept,
    )


def _pairs(witness: Witness) -> Iterator[tuple[TokenRow, mx.array]]:
    return iter(zip(witness.rows, witness.log_probabilities, strict=True))


def _log_probabilities(model: nn.Module, row: TokenRow) -> mx.array:
    logits: mx.array = model(mx.array(row.tokens[None, :-1]))[0]
    learned = logits[mx.array(np.flatnonzero(row.learned[1:]))].astype(mx.float32)
    return learned - mx.logsumexp(learned, axis=-1, keepdims=True)


def _loss(log_probabilities: mx.array, row: TokenRow) -> float:
    targets = mx.array(row.tokens[1:][row.learned[1:]])
    return -as_float(mx.take_along_axis(log_probabilities, targets[:, None], axis=-1).sum())
