"""Computing less at once when memory runs short: the same steps, cut smaller."""

from __future__ import annotations

from dataclasses import replace

from graft_scheduler.hyperparameters import Batching
from graft_scheduler.recovery import CutReport
from graft_worker.engine.batches import RowOrder
from graft_worker.engine.cutting import Cutter, Exact, Fit, Laddered, Listed, Shape

SURVEYED_ROWS = 4096
"""So many rows are looked at for the largest micro-batch,"""
SURVEYED_STEPS = 256
"""in so many steps, taken evenly from all; the longest row is among them always."""


def cut_report(cutter: Cutter, order: RowOrder, *, checkpointing: bool) -> CutReport:
    """How the steps of `order` are cut, and the largest micro-batch that comes of it."""
    longest = cutter.budget.padded(max(cutter.widths))
    shapes = [(1, longest), *_shapes(cutter, order)]
    rows, width = max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))
    return CutReport(
        micro_batch_tokens=cutter.budget.tokens,
        gradient_checkpointing=checkpointing,
        rows=rows,
        width=width,
        is_smallest=rows == 1 and width <= longest,
    )


def shrunk(cutter: Cutter, order: RowOrder) -> Cutter | None:
    """A cutter that computes half as much at once; nothing when the longest row is alone already."""
    cut = cut_report(cutter, order, checkpointing=False)
    return None if cut.is_smallest else with_tokens(cutter, max(1, cut.tokens // 2))


def with_tokens(cutter: Cutter, tokens: int) -> Cutter:
    """The same cutter with another number of tokens at once, fewer than it has."""
    budget = replace(cutter.budget, tokens=tokens)
    bare = replace(cutter, budget=budget)
    fit: Fit
    match cutter.fit:
        case Listed() if cutter.batching is Batching.PACKED:
            height, width = bare.packed_height, bare.packed_width
            fit = Listed((Shape(height, width, height * width),))
        case Listed(shapes=shapes):
            fit = Listed(tuple(one for one in shapes if one.height == 1 or one.size <= tokens))
        case Laddered(widths=widths):
            fit = Laddered(widths, budget)
        case _:
            fit = Exact(budget)
    return replace(bare, fit=fit)


def _shapes(cutter: Cutter, order: RowOrder) -> list[tuple[int, int]]:
    count = max(1, min(order.steps, SURVEYED_STEPS, SURVEYED_ROWS // order.batch_size))
    steps = {number * order.steps // count for number in range(count)}
    cuts = (cutter.cut(order.at(step)) for step in sorted(steps))
    return [(one.height, one.width) for micro_batches in cuts for one in micro_batches]
