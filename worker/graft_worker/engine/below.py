"""The blocks below the first adapted one: what they make of a micro-batch is kept for the next time it comes.

They learn nothing, so the hidden states that leave them follow from base, rows and shape alone: the same
for every trial of a study, and for every evaluation. What is kept was computed by the same code from
arrays of the same shapes, so that nothing changes by as much as a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx import nn

from graft_worker.engine.batches import Arrays, Batch, MicroBatch

TRAINING, VALIDATION = "training", "validation"
"""Names of the rows that micro-batches are made of."""
BELOW = "below"
"""The name of such hidden states among the arrays of a micro-batch."""
LEAST_SHARE = 0.2
"""Of the blocks: where fewer are frozen, keeping what they make costs memory for little."""


class Kept:
    """Hidden states by what they were made of, up to so many bytes; the oldest stay."""

    def __init__(self) -> None:
        self._limit_bytes = 0
        self._arrays: dict[Hashable, mx.array] = {}

    @property
    def held_bytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())

    def limit(self, limit_bytes: int) -> None:
        """Hold no more than this from now on.

        The newest go first: micro-batches come in the same order in every trial, and of those that came
        longest ago the first are needed next.
        """
        self._limit_bytes = limit_bytes
        while self._arrays and self.held_bytes > limit_bytes:
            self._arrays.popitem()

    def find(self, made_of: Hashable) -> mx.array | None:
        return self._arrays.get(made_of)

    def has_room(self, size_bytes: int) -> bool:
        return self.held_bytes + size_bytes <= self._limit_bytes

    def add(self, made_of: Hashable, array: mx.array) -> None:
        self._arrays[made_of] = array

    def clear(self) -> None:
        self._arrays.clear()


class _EnoughError(Exception):
    """Leaves a call of the model once the blocks have been computed."""


class Below:
    """The frozen blocks below the adapted ones of a model.

    While `passed` lasts, a call of the model that is `given` their outputs goes past them.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = tuple(blocks)
        self._given: mx.array | None = None
        self._is_recording = False
        self._recorded: Any = None

    @contextmanager
    def passed(self) -> Iterator[None]:
        """The blocks can be passed by until the context ends."""
        classes = [type(block) for block in self.blocks]
        try:
            for place, (block, cls) in enumerate(zip(self.blocks, classes, strict=True)):
                block.__class__ = self._passing(cls, is_last=place == len(self.blocks) - 1)
            yield
        finally:
            for block, cls in zip(self.blocks, classes, strict=True):
                block.__class__ = cls

    @contextmanager
    def given(self, hidden: mx.array | None) -> Iterator[None]:
        """Calls of the model go on from `hidden`, where there is one."""
        self._given = hidden
        try:
            yield
        finally:
            self._given = None

    def outputs(self, call: Callable[[], object]) -> mx.array | None:
        """What leaves the blocks when `call` calls the model; nothing if it is no array.

        Nothing of the model above them is computed.
        """
        self._is_recording = True
        try:
            call()
        except _EnoughError:
            pass
        finally:
            found, self._recorded, self._is_recording = self._recorded, None, False
        if not isinstance(found, mx.array):
            return None
        mx.eval(found)
        return found

    def _passing(self, cls: type[nn.Module], *, is_last: bool) -> type[nn.Module]:
        def call(block: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
            if self._given is not None:
                return self._given if is_last else x
            made = cls.__call__(block, x, *args, **kwargs)
            if is_last and self._is_recording:
                self._recorded = made
                raise _EnoughError
            return made

        return type(cls.__name__, (cls,), {"__call__": call})


class Reuse:
    """Adds to micro-batches what the frozen blocks make of them, as far as there is room to keep it."""

    def __init__(
        self,
        below: Below,
        kept: Kept,
        call: Callable[[Arrays], object],
        token_bytes: float,
        rows: Set[str],
    ) -> None:
        """`call` calls the model; only of these `rows` is anything kept, so many bytes for each token."""
        self._below, self._kept, self._call = below, kept, call
        self._token_bytes, self._rows = token_bytes, rows

    def extend(self, rows: str, micro_batch: MicroBatch, batch: Batch) -> Batch:
        """`batch`, made of these `rows`, with the outputs of the blocks if they are kept."""
        if rows not in self._rows:
            return batch
        made_of = (len(self._below.blocks), rows, micro_batch)
        hidden = self._kept.find(made_of)
        if hidden is None and self._kept.has_room(round(self._token_bytes * batch.computed_tokens)):
            hidden = self._below.outputs(lambda: self._call(batch.arrays))
            if hidden is not None:
                self._kept.add(made_of, hidden)
        return batch if hidden is None else replace(batch, arrays={**batch.arrays, BELOW: hidden})

    def give_up(self) -> None:
        """Memory runs short: keep nothing, now and from now on."""
        self._kept.limit(0)
