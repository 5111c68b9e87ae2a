"""Which variant to take, by a rule that is told with the answer. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graft_scheduler.comparison.caveats import has_several_devices
from graft_scheduler.comparison.row import Row
from graft_scheduler.memory import format_bytes
from graft_scheduler.waiting import about

PERPLEXITY_TOLERANCE = 0.01
"""Variants whose perplexity is higher by no more than this share, 0.01 nats of loss, are taken for equally
good: one seed each tells them apart no better."""
LOSS_TOLERANCE = math.log1p(PERPLEXITY_TOLERANCE)
"""The same, added to a loss."""
MEMORY_TOLERANCE = 0.05
"""The same of peak memory, of which so much is chance."""
_GOOD = f"of the variants whose perplexity is within {PERPLEXITY_TOLERANCE:.0%} of the lowest"
_LEAN = f"those whose peak memory is within {MEMORY_TOLERANCE:.0%} of the least"
RULE = f"{_GOOD}, {_LEAN}; of these the one that trained in the least time"
RULE_ACROSS_DEVICES = f"{_GOOD}, {_LEAN}; of these the one of the lowest perplexity, as devices differ"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An answer, and how it was come by."""

    variant: str | None
    """Absent where the rule has no answer; `reason` says why."""
    reason: str
    rule: str = RULE


def recommend(rows: Sequence[Row], differing: Sequence[str] = ()) -> Recommendation:
    """The variant to take; `differing` names settings that the jobs should have in common and have not."""
    done = [row for row in rows if row.is_completed and row.validation_loss is not None]
    if why := _why_not(done, differing):
        return Recommendation(None, why)
    learned = [row for row in done if _has_learned(row)]
    if not learned:
        return Recommendation(
            None,
            "no variant has a lower validation loss than the base before training: nothing useful was "
            "learned; try another learning rate, more steps or other data",
        )
    best = min(learned, key=_loss)
    good = [row for row in learned if _loss(row) <= _loss(best) + LOSS_TOLERANCE]
    lean = _lean(good)
    if has_several_devices(good):
        chosen = min(lean, key=_loss)
        return Recommendation(chosen.variant, _reason(chosen, best, good), RULE_ACROSS_DEVICES)
    chosen = min(lean, key=lambda row: (row.training_seconds or 0.0, _loss(row)))
    return Recommendation(chosen.variant, _reason(chosen, best, good))


def _why_not(done: Sequence[Row], differing: Sequence[str]) -> str | None:
    if differing:
        listed = ", ".join(f"`{name}`" for name in differing)
        return f"the losses are not comparable: the jobs differ in {listed}"
    if len(done) < 2:
        count = "one variant has" if done else "no variant has"
        return f"{count} completed with a validation loss; it takes two to compare"
    return None


def _has_learned(row: Row) -> bool:
    return row.initial_loss is None or _loss(row) < row.initial_loss


def _lean(rows: Sequence[Row]) -> list[Row]:
    """Those that need the least memory; all, where that is not known of each."""
    sizes = [row.peak_memory_bytes for row in rows if row.peak_memory_bytes is not None]
    if len(sizes) < len(rows):
        return list(rows)
    most = min(sizes) * (1 + MEMORY_TOLERANCE)
    return [row for row in rows if (row.peak_memory_bytes or 0) <= most]


def _reason(chosen: Row, best: Row, good: Sequence[Row]) -> str:
    standing = f"its perplexity on the validation rows is {_standing(chosen, best)}"
    if len(good) == 1:
        return f"{standing}, and no other comes within {PERPLEXITY_TOLERANCE:.0%} of it"
    others = ", ".join(_costs(row) for row in good if row is not chosen)
    return f"{standing}; it took {_amounts(chosen)}, and others that are as good: {others}"


def _standing(chosen: Row, best: Row) -> str:
    if chosen is best:
        return "the lowest"
    return f"{math.expm1(_loss(chosen) - _loss(best)):.1%} above the lowest, that of {best.variant}"


def _costs(row: Row) -> str:
    """`dora 2.8 GB and 12 min`."""
    return f"{row.variant} {_amounts(row)}"


def _amounts(row: Row) -> str:
    known = [] if row.peak_memory_bytes is None else [format_bytes(row.peak_memory_bytes)]
    return " and ".join([*known, about(row.training_seconds or 0.0)])


def _loss(row: Row) -> float:
    assert row.validation_loss is not None  # only such rows are asked
    return row.validation_loss
