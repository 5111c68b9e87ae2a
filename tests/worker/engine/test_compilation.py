"""Which shapes earn their compiling back."""

from __future__ import annotations

from graft_worker.engine.compilation import FIRST_GUESS_SECONDS, GAIN, MAX_SHAPES, CompilePlan

SHAPE = ((4, 256), (1024,))


def used(steps: int, seconds: float, times: int = 10) -> CompilePlan:
    plan = CompilePlan(steps)
    for _ in range(times):
        assert not plan.wants(SHAPE)
        plan.took(SHAPE, seconds, was_compiled=False)
        plan.done += 1
    return plan


def test_a_shape_is_compiled_once_what_is_to_come_pays_for_it() -> None:
    assert not CompilePlan(10_000).wants(SHAPE)

    enough = 10 + int(FIRST_GUESS_SECONDS / (GAIN * 0.1)) + 1
    plan = CompilePlan(enough)
    plan.took(SHAPE, 0.1, was_compiled=False)
    plan.done += 1
    assert plan.wants(SHAPE)
    assert not used(100, 0.1).wants(SHAPE)


def test_the_price_is_that_of_the_newest_shape_compiled() -> None:
    plan = CompilePlan(1000)
    plan.took(SHAPE, 0.1, was_compiled=False)
    plan.done = 1
    assert plan.wants(SHAPE)
    plan.took(SHAPE, 60.1, was_compiled=True)

    other = ((1, 64), (64,))
    plan.took(other, 0.1, was_compiled=False)
    assert not plan.wants(other)
    assert plan.wants(SHAPE)


def test_without_steps_every_shape_is_compiled_up_to_the_limit() -> None:
    plan = CompilePlan(None)

    wanted = [plan.wants(((1, width), (width,))) for width in range(MAX_SHAPES + 3)]

    assert wanted == [True] * MAX_SHAPES + [False] * 3
