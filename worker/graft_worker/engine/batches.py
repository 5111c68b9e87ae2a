"""Which rows an optimizer step sees, and how they are cut into what is computed at once.

Pure functions of row lengths, seed and step number: the step number alone says where the data is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from graft_scheduler.datasets import permutation
from graft_worker.engine.rows import TokenRow

WIDTH_MULTIPLE = 32
"""Where shapes are compiled widths are rounded up to this: fewer of them for a little padding."""
KEPT_EPOCHS = 2
"""A step may reach from one epoch into the next."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be computed at once."""

    tokens: int
    """Padding included."""
    width_multiple: int = WIDTH_MULTIPLE

    def padded(self, width: int) -> int:
        """`width` rounded up to the next allowed one."""
        return -(-width // self.width_multiple) * self.width_multiple


@dataclass(frozen=True, slots=True)
class RowOrder:
    """The stream of rows: one permutation of all rows after another, cut into steps."""

    rows: int
    batch_size: int
    total_rows: int
    """Where the stream ends; the last step may be smaller."""
    seed: int

    @property
    def steps(self) -> int:
        return math.ceil(self.total_rows / self.batch_size)

    def at(self, step: int) -> list[int]:
        """The rows of optimizer step `step`, counted from 0."""
        first = step * self.batch_size
        places = range(first, min(first + self.batch_size, self.total_rows))
        return [self._at_place(place) for place in places]

    def _at_place(self, place: int) -> int:
        epoch, offset = divmod(place, self.rows)
        return _epoch_order(self.rows, self.seed, epoch)[offset]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that are computed at once, by number, and the width they are padded to."""

    rows: tuple[int, ...]
    width: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch as arrays of (rows, width)."""

    inputs: mx.array
    targets: mx.array
    learned: mx.array
    """Which targets count; never one past a row's end."""
    tokens: int
    """How many do."""


def plan_order(rows: int, batch_size: int, epochs: float | None, steps: int | None, seed: int) -> RowOrder:
    """The order for `steps` optimizer steps, or for `epochs` passes; one pass without either."""
    if steps is not None:
        return RowOrder(rows, batch_size, steps * batch_size, seed)
    return RowOrder(rows, batch_size, max(1, round((epochs or 1.0) * rows)), seed)


def cut(widths: Sequence[int], chosen: Sequence[int], budget: Budget) -> list[MicroBatch]:
    """Cut the `chosen` rows into micro-batches of like width within the budget.

    A row wider than the budget is a micro-batch of its own.
    """
    batches: list[MicroBatch] = []
    group: list[int] = []
    for row in sorted(chosen, key=lambda row: (widths[row], row)):
        if group and (len(group) + 1) * budget.padded(widths[row]) > budget.tokens:
            batches.append(MicroBatch(tuple(group), budget.padded(widths[group[-1]])))
            group = []
        group.append(row)
    if group:
        batches.append(MicroBatch(tuple(group), budget.padded(widths[group[-1]])))
    return batches


def build(rows: Sequence[TokenRow], micro_batch: MicroBatch) -> Batch:
    """The arrays of one micro-batch."""
    shape = (len(micro_batch.rows), micro_batch.width)
    inputs = np.zeros(shape, dtype=np.int32)
    targets = np.zeros(shape, dtype=np.int32)
    learned = np.zeros(shape, dtype=np.bool_)
    for place, number in enumerate(micro_batch.rows):
        row = rows[number]
        inputs[place, : row.width] = row.tokens[:-1]
        targets[place, : row.width] = row.tokens[1:]
        learned[place, : row.width] = row.learned[1:]
    return Batch(mx.array(inputs), mx.array(targets), mx.array(learned), int(learned.sum()))


@lru_cache(maxsize=KEPT_EPOCHS)
def _epoch_order(rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(permutation(rows, f"epoch/{seed}/{epoch}"))
