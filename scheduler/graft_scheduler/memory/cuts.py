"""How large the micro-batches of a step may be; the engine cuts them by the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

from graft_scheduler.hyperparameters import Batching
from graft_scheduler.memory.shape import Backend, Shape

WIDTH_MULTIPLE = 32
"""Rows are padded to a multiple of this on a GPU."""
HEIGHTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""How many rows a compiled micro-batch may have."""
PACKED_WIDTH = 1024
"""Packed lines are filled up to this, or to the longest row: longer ones pay for attention they do
not use."""
OVERHEAD_TOKENS: dict[Backend, int] = {Backend.METAL: 48, Backend.CUDA: 256, Backend.CPU: 8}
"""What one more micro-batch costs, in tokens: rows are computed apart where that spares more padding.
About where a chip has enough to do: 26-38 tokens on M1-M4, 98 on an M5, 165 on an H200, by a roofline
of public figures."""
CHUNK_LOGITS = 1 << 24
"""Logits that the chunked loss makes at once: 64 MiB in float32."""
MIN_CHUNK_TOKENS, MAX_CHUNK_TOKENS = 32, 512


@dataclass(frozen=True, slots=True)
class Cut:
    """One micro-batch. Of rows that are not all of one length it may hold more or fewer lines than
    here, but no more tokens and no wider ones: so its lines need not be a whole number.
    """

    tokens: int
    """Padding and empty lines included; at least one line."""
    width: int
    """Tokens in a line."""
    held_gradients: int = 1
    """Its own, and the sum of those of earlier ones."""
    is_packed: bool = False

    @property
    def rows(self) -> float:
        return self.tokens / self.width


def largest_cuts(shape: Shape, longest: int, shortest: int = 1) -> list[Cut]:
    """The micro-batches of which one is the dearest: a whole step, or most of one that was parted.

    `longest` and `shortest` are widths of rows. Rows of different lengths may be computed apart
    though they fit together, and more of them at once where they are shorter.
    """
    job, width = shape.job, padded(longest, shape.backend)
    budget, rows = token_budget(shape, longest), job.batch_rows
    cuts = [_filled(shape, width, rows, budget, 1)]
    if rows > 1 and not (width * rows <= budget and _never_parts(shape, width, shortest)):
        cuts.append(_filled(shape, width, rows - 1, budget, 2))
    if job.compute.batching is Batching.PACKED:  # or not packed, where the model does not allow it
        cuts.append(_packed_cut(shape, longest, budget))
    return list(dict.fromkeys(cuts))


def evaluated_cut(shape: Shape, longest: int) -> Cut:
    """Validation rows are as many as the token budget allows, whatever the batch."""
    width, budget = padded(longest, shape.backend), token_budget(shape, longest)
    asked = shape.job.evaluation.rows
    return Cut(budget, width) if asked is None else _filled(shape, width, max(1, asked), budget, 1)


def _never_parts(shape: Shape, width: int, shortest: int) -> bool:
    """Whether any rows that fit together are computed together: they are about as wide, and nothing else
    than their width tells them apart, as it may where shapes are compiled.
    """
    batching, spared = shape.job.compute.batching, width - padded(shortest, shape.backend)
    if batching is Batching.BUCKETED:
        is_whole = spared * (shape.job.batch_rows - 1) < OVERHEAD_TOKENS[shape.backend]
    else:
        is_whole = batching is Batching.PADDED
    return is_whole and not _compiles(shape)


def _filled(shape: Shape, width: int, rows: int, budget: int, held: int) -> Cut:
    """As many of the longest rows as the budget has room for, the last in part."""
    return Cut(min(_rounded_up(shape, rows) * width, budget), width, held)


def _packed_cut(shape: Shape, longest: int, budget: int) -> Cut:
    """Every line holds at least as many rows as if all were the longest."""
    rows = shape.job.batch_rows
    line = padded(max(longest, min(PACKED_WIDTH, budget)), shape.backend)
    budget, held = max(budget, line), 1 if rows == 1 else 2
    if _compiles(shape):  # then all have one shape
        return Cut(budget, line, held, is_packed=True)
    lines = -(-rows // (line // longest))
    width = min(line, rows * longest)
    return Cut(min(lines * width, budget), width, held, is_packed=True)


def _compiles(shape: Shape) -> bool:
    return shape.job.compute.compile and shape.backend is not Backend.CPU


def _rounded_up(shape: Shape, rows: int) -> int:
    if not _compiles(shape):
        return rows
    return next((height for height in HEIGHTS if height >= rows), rows)


def chunk_tokens(vocabulary: int) -> int:
    """How many tokens' logits the chunked loss computes at once."""
    return int(most_chunk_tokens(vocabulary))


def most_chunk_tokens(vocabulary: int) -> float:
    """The same before it is rounded down: so that a larger vocabulary has no smaller chunk of logits."""
    return min(max(MIN_CHUNK_TOKENS, CHUNK_LOGITS / vocabulary), MAX_CHUNK_TOKENS)


def token_budget(shape: Shape, longest: int) -> int:
    """Most padded tokens at once: as the job says, or a whole step's; always enough for the longest row."""
    asked = shape.job.micro_batch_tokens or longest * shape.job.batch_rows
    return max(asked, padded(longest, shape.backend))


def padded(width: int, backend: Backend) -> int:
    """The width that rows of so many tokens are computed in."""
    multiple = width_multiple(backend)
    return -(-width // multiple) * multiple


def width_multiple(backend: Backend) -> int:
    """On the CPU, where nothing is compiled, rows are not padded beyond the longest beside them."""
    return 1 if backend is Backend.CPU else WIDTH_MULTIPLE
