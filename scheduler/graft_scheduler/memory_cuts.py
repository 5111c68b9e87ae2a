"""How large the micro-batches of a step may be; the engine cuts them by the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

from graft_scheduler.hyperparameters import Batching
from graft_scheduler.memory_shape import Backend, Shape

WIDTH_MULTIPLE = 32
"""Rows are padded to a multiple of this on a GPU."""
HEIGHTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""How many rows a compiled micro-batch may have."""
PACKED_WIDTH = 1024
"""Packed lines are filled up to this, or to the longest row: longer ones pay for attention they do
not use."""
CHUNK_LOGITS = 1 << 24
"""Logits that the chunked loss makes at once: 64 MiB in float32."""
MIN_CHUNK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Cut:
    """One micro-batch."""

    width: int
    """Tokens in a line, padding included."""
    tokens: int
    """In all lines."""
    held_gradients: int
    """Its own, and the sum of those of earlier ones."""
    is_packed: bool = False


def largest_cuts(shape: Shape, longest: int) -> list[Cut]:
    """The micro-batches of which one is the dearest: a whole step, or most of one that was parted.

    Rows of different lengths may be computed apart though they fit together.
    """
    job, width = shape.job, padded(shape, longest)
    budget, rows = max(job.micro_batch_tokens, width), job.batch_size
    cuts = [Cut(width, min(_rounded_up(shape, rows) * width, budget), 1)]
    if rows > 1:
        cuts.append(Cut(width, min(_rounded_up(shape, rows - 1) * width, budget), 2))
    if job.compute.batching is Batching.PACKED:  # or not packed, where the model does not allow it
        cuts.append(_packed_cut(shape, longest))
    return cuts


def _packed_cut(shape: Shape, longest: int) -> Cut:
    """Every line holds at least as many rows as if all were the longest."""
    job = shape.job
    line = padded(shape, max(longest, min(PACKED_WIDTH, job.micro_batch_tokens)))
    budget, held = max(job.micro_batch_tokens, line), 1 if job.batch_size == 1 else 2
    if _compiles(shape):  # then all have one shape
        return Cut(line, budget, held, is_packed=True)
    lines = -(-job.batch_size // (line // longest))
    width = min(line, job.batch_size * longest)
    return Cut(width, min(width * lines, budget), held, is_packed=True)


def _compiles(shape: Shape) -> bool:
    return shape.job.compute.compile and shape.backend is not Backend.CPU


def _rounded_up(shape: Shape, rows: int) -> int:
    if not _compiles(shape):
        return rows
    return next((height for height in HEIGHTS if height >= rows), rows)


def chunk_tokens(vocabulary: int) -> int:
    """How many tokens' logits the chunked loss computes at once."""
    return max(MIN_CHUNK_TOKENS, CHUNK_LOGITS // vocabulary)


def padded(shape: Shape, width: int) -> int:
    multiple = 1 if shape.backend is Backend.CPU else WIDTH_MULTIPLE
    return -(-width // multiple) * multiple
