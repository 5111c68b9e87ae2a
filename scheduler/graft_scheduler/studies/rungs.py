"""Successive halving with promotion: at each rung the better trials go on, and the others stay. Pure.

After Li et al., "A System for Massively Parallel Hyperparameter Tuning" (arXiv 1810.05934); here a trial
that will not be promoted any more is pruned at once. A driver that begins all trials before it promotes
any, and promotes from lower rungs first, gets the synchronous algorithm. Hyperband (Li et al., JMLR
2018) runs several such brackets, which begin to prune later and later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from graft_scheduler.studies.spec import PrunerName

REDUCTION = 3
"""Of the trials at a rung one in so many goes on, and then trains so many times as long."""
RUNGS = 2
"""Below the end: at 1/9 and 1/3 of the training."""


class Standing(StrEnum):
    """Where a trial is on its way up."""

    CLIMBS = "climbs"
    WAITS = "waits"
    """At the last rung that it has come to, for a verdict."""
    LEFT = "left"
    """Pruned there."""
    ENDED = "ended"
    """At the end of the training."""


@dataclass(frozen=True, slots=True)
class Climber:
    """One trial of a bracket. Those that failed are none: others take their places."""

    number: int
    losses: tuple[float, ...] = ()
    """At the rungs that it has come to, the lowest first."""
    standing: Standing = Standing.CLIMBS

    def has_passed(self, rung: int) -> bool:
        """Whether it was sent on from there."""
        if self.standing in {Standing.CLIMBS, Standing.ENDED}:
            return len(self.losses) > rung
        return len(self.losses) > rung + 1

    def is_past(self, rung: int) -> bool:
        """Whether it was sent on from there and has come to rest for good."""
        return self.has_passed(rung) and self.standing in {Standing.LEFT, Standing.ENDED}

    def waits_at(self, rung: int) -> bool:
        return self.standing is Standing.WAITS and len(self.losses) == rung + 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of trials that wait, by number."""

    promoted: tuple[tuple[int, ...], ...] = ()
    """May go on: of each rung, the lowest first, and of one rung the best first."""
    pruned: tuple[int, ...] = ()


def brackets(pruner: PrunerName) -> tuple[tuple[Fraction, ...], ...]:
    """The rungs of each bracket, as shares of the training; the end is not among them."""
    rungs = tuple(Fraction(1, REDUCTION**place) for place in range(RUNGS, 0, -1))
    match pruner:
        case PrunerName.HALVING:
            return (rungs,)
        case PrunerName.HYPERBAND:
            return tuple(rungs[skipped:] for skipped in range(RUNGS + 1))
        case _:
            return ((),)


def bracket_of(number: int, pruner: PrunerName) -> int:
    """Which bracket a trial is of; those that prune early get more, so that each costs about the same."""
    if pruner is not PrunerName.HYPERBAND:
        return 0
    # Of 7 trials 4 begin at the lowest rung, 2 at the next, 1 trains to its end.
    return (0, 0, 1, 0, 0, 1, 2)[number % 7]


def rung_step(share: Fraction, steps: int) -> int:
    """The optimizer step that ends at so much of the training, at least one."""
    return max(1, math.ceil(share * steps))


def judge(climbers: Sequence[Climber], rungs: int, unborn: int) -> Verdict:
    """Who goes on and who is pruned, in one bracket; `unborn` trials of it are still to come.

    While more may come to a rung, the best third of those that came may go on; once none can come, the best
    third of all. Whoever is not among the best third even if no better one comes any more is pruned, but for
    as many as may take the places of those that went on and may yet fail.
    """
    promoted: list[tuple[int, ...]] = []
    pruned: set[int] = set()
    arrivals = unborn + len(climbers)
    for rung in range(rungs):
        here = sorted((one.losses[rung], one.number) for one in climbers if len(one.losses) > rung)
        waiting = {one.number for one in climbers if one.waits_at(rung)}
        passed = sum(one.has_passed(rung) for one in climbers)
        places = max(1, arrivals // REDUCTION)
        is_open = unborn > 0 or any(_will_come(one, rung, promoted) for one in climbers)
        best = len(here) // REDUCTION if is_open else places
        going = [n for rank, (_, n) in enumerate(here) if n in waiting and rank < best]
        spare = max(0, places - sum(one.is_past(rung) for one in climbers))
        pruned |= {n for rank, (_, n) in enumerate(here) if n in waiting and rank >= places + spare}
        promoted.append(tuple(going))
        arrivals = max(places, passed + len(going))
    return Verdict(tuple(promoted), tuple(sorted(pruned)))


def _will_come(one: Climber, rung: int, promoted: Sequence[tuple[int, ...]]) -> bool:
    """Whether the trial is on its way to that rung, or may go there now."""
    if len(one.losses) > rung:
        return False
    return one.standing is Standing.CLIMBS or any(one.number in numbers for numbers in promoted)
