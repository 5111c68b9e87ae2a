"""What finished jobs teach: kept with the job's end, of the newest jobs, and never trusted too far."""

from __future__ import annotations

import pytest
from redis import Redis

from graft_scheduler.demand import Request
from graft_scheduler.lessons import Lesson, LessonKey, Measured, factor_of, measured, read_lessons
from graft_scheduler.messages import TrainResult
from graft_scheduler.states import JobState
from graft_scheduler.transitions import Ending, Transitions
from tests.scheduler.test_transitions import HOST, run, submit

KEY = LessonKey("llama", "lora", "Apple M3 Max", "0.32.4")
GIB = 1 << 30
REQUEST = Request(store_id="s", family="llama", method="lora", flops=1e15)


@pytest.fixture
def transitions(redis: Redis) -> Transitions:
    return Transitions(redis)


def finish(transitions: Transitions, number: int, factor: float | None, speed: float | None = None) -> None:
    hold = run(transitions, submit(transitions, f"job{number}"))
    ending = Ending(JobState.COMPLETED, "completed", measured=Measured(KEY, factor, speed))
    transitions.finish(hold, HOST, ending)
    transitions.finish(hold, HOST, ending)  # an answer that was lost is asked for again


def test_a_job_teaches_once_however_often_its_end_is_told(transitions: Transitions, redis: Redis) -> None:
    finish(transitions, 1, 1.25, 2e12)

    assert read_lessons(redis) == {KEY: Lesson(memory_factor=1.25, flops_per_second=2e12, samples=1)}


def test_nine_in_ten_of_the_newest_jobs_stay_below_the_factor(transitions: Transitions, redis: Redis) -> None:
    for number in range(25):
        finish(transitions, number, 5.0 if number < 5 else 1.0 + number / 100, 1e12 + number)

    lesson = read_lessons(redis)[KEY]
    assert lesson.samples == 25
    assert lesson.memory_factor == pytest.approx(1.22)  # the 18th of the newest 20
    assert lesson.flops_per_second == 1e12 + 14


def test_a_job_may_teach_its_speed_alone(transitions: Transitions, redis: Redis) -> None:
    finish(transitions, 1, None, 1e12)

    assert read_lessons(redis)[KEY] == Lesson(memory_factor=1.0, flops_per_second=1e12, samples=1)


def test_an_estimate_is_never_lowered_by_more_than_a_fifth() -> None:
    assert factor_of(None) == 1.0
    assert factor_of(Lesson(memory_factor=0.3)) == 0.8
    assert factor_of(Lesson(memory_factor=1.7)) == 1.7


def result(peak: int, predicted: int, seconds: float = 100.0, **facts: object) -> TrainResult:
    return TrainResult(
        steps=10,
        peak_memory_bytes=peak,
        predicted_peak_bytes=predicted,
        training_seconds=seconds,
        facts=dict(facts),
    )


def test_a_result_is_measured_against_what_was_predicted() -> None:
    assert measured(REQUEST, result(3 * GIB, 2 * GIB), KEY.chip, KEY.mlx) == Measured(KEY, 1.5, 1e13)


def test_small_and_short_jobs_teach_nothing() -> None:
    assert measured(REQUEST, result(GIB // 1024, GIB // 1024, 5.0), KEY.chip, KEY.mlx) is None
    assert measured(REQUEST.model_copy(update={"family": ""}), result(GIB, GIB), KEY.chip, KEY.mlx) is None


def test_a_cut_that_was_given_up_teaches_by_its_trial() -> None:
    found = measured(REQUEST, result(9 * GIB, 2 * GIB, memory={"probe_factor": 2.5}), KEY.chip, KEY.mlx)

    assert found is not None
    assert found.memory_factor == 2.5


def test_a_lesson_that_cannot_be_understood_is_passed_over(redis: Redis) -> None:
    redis.hset("graft:v1:lessons", mapping={"llama|lora": "{}", "a|b|c|d": "no json", KEY.field: "{}"})

    assert read_lessons(redis) == {KEY: Lesson()}
