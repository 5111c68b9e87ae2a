"""Rows end to end in one line, none seeing another, on models that never heard of it.

mlx-lm's models ask the cache they are given for the attention mask. The one here holds nothing and
answers with a block-diagonal causal mask. Positions go on over a line: rotary embeddings only know
differences of positions, so that a row's are the same anywhere. Models that carry a state from token
to token, or know absolute positions, do not pass `difference`, and must not be packed.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from graft_worker.engine.scalars import as_float

DOCUMENT_LENGTHS = (11, 17, 6)
"""Of the documents that the check packs, behind one that fills the rest of the line."""
PACKING_TOLERANCES: dict[mx.Dtype, float] = {mx.float32: 1e-4, mx.float16: 5e-3, mx.bfloat16: 3e-2}
"""How far packed logits may be from those of each document alone, relatively: rounding."""


class PackedCache:
    """A cache for one layer of a packed forward pass."""

    offset = 0

    def __init__(self, documents: mx.array) -> None:
        self._documents = documents

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """True where a token, by row, may look at another, by column: (lines, 1, length, length)."""
        places = mx.arange(length)
        distance = places[:, None] - places[None]
        allowed = distance >= 0
        if window_size is not None:
            allowed = allowed & (distance < window_size)
        same = self._documents[:, :, None] == self._documents[:, None, :]
        return (same & allowed[None])[:, None]


def packed_caches(layers: int, documents: mx.array) -> list[PackedCache]:
    """One cache for every layer; `documents` (lines, width) numbers the document of each token."""
    return [PackedCache(documents) for _ in range(layers)]


def difference(model: nn.Module, vocabulary: int, width: int = 0) -> float:
    """How much packing changes the logits of some documents, relatively; infinite if it cannot be tried.

    They lie at the end of a line of `width` tokens: some models treat late positions otherwise.
    """
    key = mx.random.key(0)
    lengths = (max(1, width - sum(DOCUMENT_LENGTHS)), *DOCUMENT_LENGTHS)
    tokens = mx.random.randint(0, vocabulary, (1, sum(lengths)), key=key)
    documents = mx.array([[number for number, length in enumerate(lengths) for _ in range(length)]])
    try:
        together = model(tokens, cache=packed_caches(len(model.layers), documents)).astype(mx.float32)
        worst, place = 0.0, lengths[0]
        for length in lengths[1:]:
            alone = model(tokens[:, place : place + length]).astype(mx.float32)
            apart = mx.linalg.norm(together[:, place : place + length] - alone) / mx.linalg.norm(alone)
            worst = max(worst, as_float(apart))
            place += length
    except Exception:  # a model's own code, given a cache it does not know
        return float("inf")
    return worst if worst == worst else float("inf")  # NaN is no equality
