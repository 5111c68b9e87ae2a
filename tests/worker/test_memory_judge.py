"""What is done about memory that runs short: in order, once, and never for a moment's sake."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from graft_worker.memory_judge import (
    CALM_SAMPLES,
    FUTILE_SHRINKS,
    LASTING_SAMPLES,
    PATIENCE_SECONDS,
    Action,
    Budget,
    History,
    Sample,
    judge,
)
from graft_worker.pressure import Cgroup, Level, Pressure

GIB = 1 << 30
WHOLE_HOST = Budget(None)
CALM = Pressure(total_bytes=32 * GIB, available_bytes=20 * GIB)
LOW = replace(CALM, available_bytes=2 * GIB)
"""Tight: less than a tenth is left."""
SHORT = replace(CALM, available_bytes=GIB)
NEED = replace(CALM, available_bytes=GIB // 4)

PRESSURES = st.builds(
    Pressure,
    total_bytes=st.just(32 * GIB),
    available_bytes=st.integers(0, 32 * GIB),
    swap_used_bytes=st.integers(0, 8 * GIB),
    level=st.sampled_from(Level),
    stalled_percent=st.floats(0, 100),
    cgroup=st.none() | st.builds(Cgroup, st.just(16 * GIB), st.integers(0, 16 * GIB)),
)
HISTORIES = st.builds(
    History,
    first_swap_bytes=st.integers(0, 8 * GIB),
    lasting=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)),
    shrinks=st.integers(0, FUTILE_SHRINKS),
    shrunk_at=st.floats(-100, 90),
)


def run(
    pressures: list[Pressure],
    footprint: int = 8 * GIB,
    budget: Budget = WHOLE_HOST,
    device: int | None = None,
) -> list[Action]:
    """The actions on samples of every second."""
    history, actions = History(), []
    for second, pressure in enumerate(pressures):
        verdict = judge(Sample(float(second), footprint, pressure, device), history, budget)
        history = verdict.history
        actions.append(verdict.action)
    return actions


def acted(actions: list[Action]) -> list[Action]:
    return [action for action in actions if action is not Action.OK]


def test_nothing_is_done_about_a_calm_machine() -> None:
    assert acted(run([CALM] * 100)) == []


@given(bad=PRESSURES)
def test_a_moment_of_need_is_passed_over(bad: Pressure) -> None:
    moments = [CALM, *[bad] * (LASTING_SAMPLES - 1), CALM]

    assert acted(run(moments * 5)) == []


def test_memory_in_need_is_answered_by_a_shrink_and_then_a_stop_and_no_more() -> None:
    actions = run([CALM, *[NEED] * 60])

    assert acted(actions) == [Action.SHRINK, Action.STOP]
    assert actions.index(Action.SHRINK) == LASTING_SAMPLES
    assert actions.index(Action.STOP) - actions.index(Action.SHRINK) == PATIENCE_SECONDS


def test_a_shrink_that_helps_is_the_end_of_it() -> None:
    assert acted(run([*[NEED] * (LASTING_SAMPLES + 2), *[CALM] * 100])) == [Action.SHRINK]


def test_a_new_need_after_a_calm_time_is_answered_by_a_shrink_first() -> None:
    need, calm = [NEED] * (LASTING_SAMPLES + 2), [CALM] * 60

    assert acted(run([*need, *calm, *need, *calm])) == [Action.SHRINK] * 2


def test_memory_that_is_short_is_answered_by_shrinking_and_never_by_a_stop() -> None:
    actions = acted(run([SHORT] * 300))

    assert actions == [Action.SHRINK] * FUTILE_SHRINKS


def test_tight_memory_is_warned_of_once_until_it_was_calm_again() -> None:
    flapping = [LOW, LOW, LOW, CALM] * 20

    assert acted(run(flapping)) == [Action.WARN]
    assert acted(run([*[LOW] * 9, *[CALM] * CALM_SAMPLES, *[LOW] * 9])) == [Action.WARN] * 2


@given(pressures=st.lists(PRESSURES, max_size=60))
def test_nothing_is_stopped_that_was_not_asked_to_shrink_before(pressures: list[Pressure]) -> None:
    actions = run(pressures)

    if Action.STOP in actions:
        assert Action.SHRINK in actions[: actions.index(Action.STOP)]
        assert actions.count(Action.STOP) == 1


@given(
    pressure=PRESSURES,
    history=HISTORIES,
    footprint=st.integers(0, 32 * GIB),
    more=st.integers(0, 8 * GIB),
    job=st.none() | st.integers(1, 32 * GIB),
)
def test_less_memory_is_never_answered_more_mildly(
    pressure: Pressure, history: History, footprint: int, more: int, job: int | None
) -> None:
    group = pressure.cgroup
    worse = replace(
        pressure,
        available_bytes=max(0, pressure.available_bytes - more),
        swap_used_bytes=pressure.swap_used_bytes + more,
        level=Level.CRITICAL if more else pressure.level,
        cgroup=group and replace(group, used_bytes=group.used_bytes + more),
    )

    mild = judge(Sample(100.0, footprint, pressure), history, Budget(job))
    harsh = judge(Sample(100.0, footprint + more, worse), history, Budget(job))

    assert harsh.action >= mild.action


def test_every_answer_gives_its_reason_in_numbers() -> None:
    history, reasons = History(), []
    for second in range(20):
        verdict = judge(Sample(float(second), 8 * GIB, NEED), history, WHOLE_HOST)
        history = verdict.history
        if verdict.action is not Action.OK:
            reasons.append(verdict.reason)

    assert reasons == ["the machine has 256 MB left; the runner holds 8 GB"] * 2


def test_a_runner_that_holds_little_is_not_stopped_for_what_others_take() -> None:
    assert acted(run([NEED] * 60, footprint=GIB)) == [Action.WARN]


def test_a_job_that_takes_more_than_it_was_given_is_asked_to_shrink() -> None:
    given_all, given_less = Budget(8 * GIB), Budget(6 * GIB)

    assert acted(run([CALM] * 10, budget=given_all)) == []
    assert acted(run([CALM] * 10, budget=given_less)) == [Action.SHRINK]


def test_on_a_card_of_its_own_the_memory_of_the_card_is_what_counts() -> None:
    card = Budget(6 * GIB, is_shared=False)

    assert acted(run([CALM] * 10, budget=card)) == []
    assert acted(run([CALM] * 10, budget=card, device=5 * GIB)) == []
    assert acted(run([CALM] * 10, budget=card, device=7 * GIB)) == [Action.SHRINK]


def test_a_cgroup_that_is_almost_full_counts_though_the_machine_has_plenty() -> None:
    full = replace(CALM, cgroup=Cgroup(4 * GIB, 4 * GIB - 1))

    assert acted(run([full] * 60, footprint=3 * GIB)) == [Action.SHRINK, Action.STOP]


def test_swap_that_grows_while_the_system_warns_is_answered_before_it_is_in_need() -> None:
    warned = replace(CALM, level=Level.WARNING)
    swapping = replace(warned, swap_used_bytes=2 * GIB)

    assert acted(run([warned] * 10)) == [Action.WARN]
    assert acted(run([warned, *[swapping] * 10])) == [Action.WARN, Action.SHRINK]
    assert acted(run([swapping] * 10)) == [Action.WARN]  # it was swapped out before the runner began
