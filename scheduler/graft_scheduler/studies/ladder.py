"""Where the trials of a study stand on the rungs, told from Optuna's state and their jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from optuna.trial import FrozenTrial, TrialState

from graft_scheduler.studies.best import is_feasible
from graft_scheduler.studies.proposals import RUNG_LOSSES
from graft_scheduler.studies.rungs import Climber, Standing, Verdict, bracket_of, brackets, judge, rung_step
from graft_scheduler.studies.spec import PrunerName
from graft_scheduler.studies.telling import DUPLICATE_OF


class Ladder:
    """The rungs of one study."""

    def __init__(self, pruner: PrunerName) -> None:
        self._pruner = pruner
        self._brackets = brackets(pruner)
        self._settled: dict[int, Climber | None] = {}
        """Of trials that are told."""

    def steps(self, number: int, steps: int) -> list[int]:
        """The steps of the rungs below the end, of a trial with so many; those that meet count once."""
        rungs = sorted({rung_step(share, steps) for share in self._shares(number)})
        return [step for step in rungs if step < steps]

    def judge(self, trials: Sequence[FrozenTrial], waiting: set[int], unborn: Sequence[int]) -> Verdict:
        """Who goes on and who is pruned; `waiting` are the numbers of those that wait at a rung.

        The lists of `Verdict.promoted` are those of all brackets together, by rung from the end: rungs that
        are as far below it are as long.
        """
        promoted: dict[int, list[int]] = {}
        pruned: list[int] = []
        for place, rungs in enumerate(self._brackets):
            mine = [one for one in trials if bracket_of(one.number, self._pruner) == place]
            climbers = [one for one in (self._climber(trial, waiting) for trial in mine) if one is not None]
            born = sum(bracket_of(number, self._pruner) == place for number in unborn)
            verdict = judge(climbers, len(rungs), born)
            pruned += verdict.pruned
            for rung, numbers in enumerate(verdict.promoted):
                promoted.setdefault(rung - len(rungs), []).extend(numbers)
        return Verdict(tuple(tuple(promoted[rung]) for rung in sorted(promoted)), tuple(sorted(pruned)))

    def _climber(self, trial: FrozenTrial, waiting: set[int]) -> Climber | None:
        if trial.number in self._settled:
            return self._settled[trial.number]
        climber = _climber(trial, waiting)
        if trial.state.is_finished():
            self._settled[trial.number] = climber
        return climber

    def _shares(self, number: int) -> tuple[Fraction, ...]:
        return self._brackets[bracket_of(number, self._pruner)]


def _climber(trial: FrozenTrial, waiting: set[int]) -> Climber | None:
    """The trial on its way; nothing for those that failed, cannot be had, or are another's double."""
    attributes: Mapping[str, object] = trial.user_attrs
    if DUPLICATE_OF in attributes or trial.state in {TrialState.FAIL, TrialState.WAITING}:
        return None
    losses = attributes.get(RUNG_LOSSES)
    known = tuple(float(one) for one in losses) if isinstance(losses, list) else ()
    match trial.state:
        case TrialState.COMPLETE:
            return Climber(trial.number, known, Standing.ENDED)
        case TrialState.PRUNED:
            return Climber(trial.number, known, Standing.LEFT) if is_feasible(trial) and known else None
        case _:
            standing = Standing.WAITS if trial.number in waiting else Standing.CLIMBS
            return Climber(trial.number, known, standing)
