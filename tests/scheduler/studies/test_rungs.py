"""Who goes on from a rung and who stays, whatever the order in which trials come."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.studies.rungs import Climber, Standing, Verdict, bracket_of, brackets, judge, rung_step
from graft_scheduler.studies.spec import PrunerName


def waiting(number: int, *losses: float) -> Climber:
    return Climber(number, losses, Standing.WAITS)


def run_bracket(
    trials: int, parallel: int, seed: int, *, failing: float = 0.0, is_eager: bool = False
) -> tuple[list[Climber], int]:
    """A bracket to its end, trials coming in any order: how they stand, and how many failed."""
    dice = random.Random(seed)
    curves = {n: [dice.random() for _ in range(2)] for n in range(trials)}
    climbers: dict[int, Climber] = {}
    born = failed = 0
    for _ in range(10_000):
        verdict = judge(list(climbers.values()), 2, trials - born)
        for number in verdict.pruned:
            climbers[number] = replace(climbers[number], standing=Standing.LEFT)
        free = parallel - sum(one.standing is Standing.CLIMBS for one in climbers.values())
        new = list(range(born, trials))
        rungs = reversed(verdict.promoted) if is_eager else verdict.promoted
        promoted = [number for rung in rungs for number in rung]
        going = [*promoted, *new] if is_eager else [*new, *promoted]
        for number in going[:free]:
            climbers[number] = replace(climbers.get(number, Climber(number)), standing=Standing.CLIMBS)
            born = max(born, number + 1)
        running = [one for one in climbers.values() if one.standing is Standing.CLIMBS]
        if not running and verdict.pruned:
            continue  # who stays below may be told now
        if not running:
            return list(climbers.values()), failed
        one = dice.choice(running)
        if dice.random() < failing:
            del climbers[one.number]
            failed += 1
        elif len(one.losses) == 2:
            climbers[one.number] = replace(one, standing=Standing.ENDED)
        else:
            loss = curves[one.number][len(one.losses)]
            climbers[one.number] = replace(one, losses=(*one.losses, loss), standing=Standing.WAITS)
    raise AssertionError("it does not end")


@given(trials=st.integers(1, 40), parallel=st.integers(1, 6), seed=st.integers(0, 1000))
def test_every_bracket_ends_and_promotes_as_many_as_synchronous_halving(
    trials: int, parallel: int, seed: int
) -> None:
    climbers, _ = run_bracket(trials, parallel, seed)
    assert len(climbers) == trials
    assert {one.standing for one in climbers} <= {Standing.LEFT, Standing.ENDED}
    second = sum(len(one.losses) > 1 for one in climbers)
    ended = sum(one.standing is Standing.ENDED for one in climbers)
    assert second >= max(1, trials // 3)
    assert ended >= 1
    if parallel == 1:
        assert (second, ended) == (max(1, trials // 3), max(1, second // 3))


@given(trials=st.integers(1, 30), parallel=st.integers(1, 6), seed=st.integers(0, 1000))
def test_trials_that_fail_leave_their_places_to_others(trials: int, parallel: int, seed: int) -> None:
    climbers, failed = run_bracket(trials, parallel, seed, failing=0.2)
    assert len(climbers) + failed == trials
    assert all(one.standing in {Standing.LEFT, Standing.ENDED} for one in climbers)
    if climbers and failed < 2:
        assert any(one.standing is Standing.ENDED for one in climbers)


@given(
    trials=st.integers(1, 40), parallel=st.integers(1, 6), seed=st.integers(0, 1000), is_eager=st.booleans()
)
def test_the_best_of_the_lowest_rung_is_never_pruned_there(
    trials: int, parallel: int, seed: int, is_eager: bool
) -> None:
    climbers, _ = run_bracket(trials, parallel, seed, is_eager=is_eager)
    best = min(climbers, key=lambda one: one.losses[0])
    assert len(best.losses) == 2


def test_while_more_may_come_only_the_best_third_goes_on() -> None:
    two = [waiting(0, 0.5), waiting(1, 0.4)]
    assert judge(two, 2, unborn=22) == Verdict(((), ()))
    three = [*two, waiting(2, 0.6)]
    assert judge(three, 2, unborn=21) == Verdict(((1,), ()))


def test_who_cannot_be_among_the_best_any_more_is_pruned_at_once() -> None:
    came = [Climber(n, (0.1 * n,), Standing.WAITS) for n in range(7)]
    # Of 9 trials 3 will go on, and all of these may fail: the seventh of seven has no hope.
    assert judge(came, 2, unborn=2).pruned == (6,)
    assert judge(came, 2, unborn=5).pruned == ()


def test_a_trial_that_fails_after_it_was_promoted_leaves_its_place_to_the_next() -> None:
    came = [Climber(0, (0.1, 0.1))] + [Climber(n, (0.1 + n, 0.1 + n), Standing.WAITS) for n in (1, 2)]
    assert judge(came, 2, unborn=0) == Verdict(((), ()), (2,))
    assert judge(came[1:], 2, unborn=0).promoted == ((), (1,))
    ended = [Climber(0, (0.1, 0.1), Standing.ENDED), came[1]]
    assert judge(ended, 2, unborn=0).pruned == (1,)


def test_each_rung_is_judged_by_those_that_came_to_it() -> None:
    came = [waiting(n, 0.1 * n) for n in range(6)] + [waiting(10 + n, 0.01, 0.1 * n) for n in range(3)]
    assert judge(came, 2, unborn=30).promoted == ((0,), (10,))


def test_a_bracket_without_rungs_judges_nobody() -> None:
    assert judge([Climber(0), Climber(1)], 0, unborn=3) == Verdict()


def test_hyperband_has_brackets_that_begin_later_and_later() -> None:
    shares = brackets(PrunerName.HYPERBAND)
    assert shares == ((Fraction(1, 9), Fraction(1, 3)), (Fraction(1, 3),), ())
    assert {bracket_of(n, PrunerName.HYPERBAND) for n in range(7)} == {0, 1, 2}
    assert {bracket_of(n, PrunerName.HALVING) for n in range(7)} == {0}
    assert brackets(PrunerName.MEDIAN) == ((),)


@pytest.mark.parametrize(("steps", "step"), [(1, 1), (9, 1), (10, 2), (90, 10)])
def test_a_rung_is_a_whole_step(steps: int, step: int) -> None:
    assert rung_step(Fraction(1, 9), steps) == step
