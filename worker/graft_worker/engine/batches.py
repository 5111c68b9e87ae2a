"""Which rows an optimizer step sees, and the arrays of what is computed at once.

Pure functions of row lengths, seed and step number: the step number alone says where the data is.
How a step is cut into micro-batches is in `cutting`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from graft_scheduler.data.splitting import permutation
from graft_worker.engine.rows import TokenRow

KEPT_EPOCHS = 2
"""A step may reach from one epoch into the next."""

Arrays = dict[str, mx.array]
"""`inputs, targets, learned` of (lines, width), `slots` (n), and `documents` (lines, width) if packed."""


@dataclass(frozen=True, slots=True)
class RowOrder:
    """The stream of rows: one permutation of all rows after another, cut into steps.

    With a `window` above 1, the rows of that many steps are drawn together, sorted by length and
    cut into steps of like length, which are then shuffled.
    """

    widths: tuple[int, ...]
    """Of every row, in tokens; their number is that of the rows."""
    batch_size: int
    total_rows: int
    """Where the stream ends; the last step alone may be smaller."""
    seed: int
    window: int = 1
    _epochs: dict[int, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    """The newest epochs' orders."""

    @property
    def rows(self) -> int:
        return len(self.widths)

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
        if epoch not in self._epochs:
            while len(self._epochs) >= KEPT_EPOCHS:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = _epoch_order(self, epoch)
        return self._epochs[epoch][offset]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that are computed at once, by number: lines of one row, or of several end to end."""

    lines: tuple[tuple[int, ...], ...]
    width: int
    """What every line is padded to."""
    height: int
    """Lines, empty ones included."""
    slots: int
    """Room for tokens that are learned."""
    is_packed: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch as arrays."""

    arrays: Arrays
    tokens: int
    """How many are learned."""
    read_tokens: int
    """How many the model reads, padding left out."""
    computed_tokens: int
    """Padding included."""


def plan_order(
    widths: Sequence[int],
    batch_size: int,
    epochs: float | None,
    steps: int | None,
    seed: int,
    window: int = 1,
) -> RowOrder:
    """The order for `steps` optimizer steps, or for `epochs` passes; one pass without either."""
    total = max(1, round((epochs or 1.0) * len(widths))) if steps is None else steps * batch_size
    return RowOrder(tuple(widths), batch_size, total, seed, window)


def build_alone(row: TokenRow) -> Batch:
    """One row, with no padding."""
    return build([row], MicroBatch(((0,),), row.width, 1, row.targets))


def build(rows: Sequence[TokenRow], micro_batch: MicroBatch) -> Batch:
    """The arrays of one micro-batch."""
    shape = (micro_batch.height, micro_batch.width)
    inputs, targets = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    learned, documents = np.zeros(shape, dtype=np.bool_), np.full(shape, -1, dtype=np.int32)
    read = 0
    for line, numbers in enumerate(micro_batch.lines):
        start = 0
        for document, number in enumerate(numbers):
            row = rows[number]
            place = slice(start, start + row.width)
            inputs[line, place], targets[line, place] = row.tokens[:-1], row.tokens[1:]
            learned[line, place], documents[line, place] = row.learned[1:], document
            start += row.width
        read += start
    found = np.flatnonzero(learned)
    slots = np.full(max(micro_batch.slots, 1), -1, dtype=np.int32)
    slots[: len(found)] = found
    arrays = {"inputs": inputs, "targets": targets, "learned": learned, "slots": slots}
    if micro_batch.is_packed:
        arrays["documents"] = documents
    return Batch(
        {name: mx.array(value) for name, value in arrays.items()},
        tokens=len(found),
        read_tokens=read,
        computed_tokens=inputs.size,
    )


def _epoch_order(order: RowOrder, epoch: int) -> tuple[int, ...]:
    shuffled = permutation(order.rows, f"epoch/{order.seed}/{epoch}")
    if order.window == 1:
        return tuple(shuffled)
    return tuple(_by_length(order, epoch, shuffled))


def _by_length(order: RowOrder, epoch: int, shuffled: Sequence[int]) -> list[int]:
    """Steps of like length; the first ones complete the step that the epoch before left open."""
    size = order.batch_size
    head = -(epoch * order.rows) % size
    result = list(shuffled[:head])
    whole = len(shuffled) - (len(shuffled) - head) % size
    for start in range(head, whole, size * order.window):
        rows = sorted(
            shuffled[start : min(start + size * order.window, whole)],
            key=lambda row: (order.widths[row], row),
        )
        steps = [rows[place : place + size] for place in range(0, len(rows), size)]
        for number in permutation(len(steps), f"window/{order.seed}/{epoch}/{start}"):
            result += steps[number]
    return result + list(shuffled[whole:])
