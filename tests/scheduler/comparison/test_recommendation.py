"""Which variant is recommended, by what rule, and what keeps figures from being compared."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.comparison.caveats import caveats_of
from graft_scheduler.comparison.recommendation import (
    LOSS_TOLERANCE,
    RULE,
    RULE_ACROSS_DEVICES,
    recommend,
)
from graft_scheduler.comparison.row import Row
from graft_scheduler.states import JobId, JobState

MB = 1 << 20


def row(variant: str, loss: float | None, memory: int | None = 100, **changes: Any) -> Row:
    """A completed variant: loss in nats, memory in megabytes."""
    plain = Row(
        variant=variant,
        job=JobId(variant),
        state=JobState.COMPLETED,
        host="mac",
        device="M4",
        initial_loss=3.0,
        validation_loss=loss,
        training_seconds=60.0,
        peak_memory_bytes=None if memory is None else memory * MB,
    )
    return replace(plain, **changes)


def chosen(*rows: Row) -> str | None:
    return recommend(rows).variant


def test_a_much_better_loss_wins_whatever_it_costs() -> None:
    found = recommend([row("lora", 1.5), row("full", 1.4, 900, training_seconds=900)])

    assert found.variant == "full"
    assert found.reason.endswith("is the lowest, and no other comes within 1% of it")
    assert found.rule == RULE


def test_of_equally_good_ones_the_leanest_is_taken_and_the_others_are_told() -> None:
    found = recommend([row("lora", 1.500, 200), row("qlora", 1.505, 120), row("full", 1.6, 50)])

    assert found.variant == "qlora"
    assert "0.5% above the lowest, that of lora; it took 120 MB and 60 s" in found.reason
    assert "lora 200 MB" in found.reason
    assert "full" not in found.reason


def test_of_equally_good_and_lean_ones_the_fastest_is_taken() -> None:
    assert chosen(row("lora", 1.5, 100), row("dora", 1.5, 104, training_seconds=30.0)) == "dora"
    assert chosen(row("lora", 1.5, 100), row("dora", 1.5, 106, training_seconds=30.0)) == "lora"


def test_where_devices_differ_times_are_not_compared_and_the_rule_says_so() -> None:
    found = recommend([row("lora", 1.5), row("dora", 1.504, device="M1", training_seconds=1.0)])

    assert found.variant == "lora"
    assert found.rule == RULE_ACROSS_DEVICES


def test_memory_that_is_not_known_of_each_is_not_compared() -> None:
    assert chosen(row("lora", 1.5, None), row("dora", 1.5, 50, training_seconds=90.0)) == "lora"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("lora", 1.5)],
        [row("lora", 1.5), row("dora", 1.4, state=JobState.RUNNING)],
        [row("lora", 1.5), row("dora", None)],
    ],
)
def test_with_fewer_than_two_results_nothing_is_recommended(rows: list[Row]) -> None:
    found = recommend(rows)

    assert found.variant is None
    assert "it takes two to compare" in found.reason


def test_where_nothing_was_learned_nothing_is_recommended() -> None:
    found = recommend([row("lora", 3.2), row("dora", 3.0)])

    assert found.variant is None
    assert "nothing useful was learned" in found.reason


def test_a_variant_that_has_learned_nothing_is_not_taken_for_being_lean() -> None:
    rows = [row("lora", 1.500, 200), row("qlora", 1.505, 50)]

    assert chosen(*(replace(one, initial_loss=1.503) for one in rows)) == "lora"


def test_losses_of_jobs_that_differ_in_their_data_are_not_compared() -> None:
    found = recommend([row("lora", 1.5), row("dora", 1.4)], ("data", "seed"))

    assert found.variant is None
    assert found.reason == "the losses are not comparable: the jobs differ in `data`, `seed`"


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 1000), st.floats(1, 1e5)), min_size=2, max_size=6)
)
def test_what_is_recommended_is_as_good_as_the_best_and_none_as_good_is_much_leaner(
    figures: list[tuple[float, int, float]],
) -> None:
    rows = [
        row(str(place), loss, memory, training_seconds=seconds, initial_loss=9.0)
        for place, (loss, memory, seconds) in enumerate(figures)
    ]

    taken = next(one for one in rows if one.variant == chosen(*rows))

    assert taken.validation_loss is not None
    assert taken.peak_memory_bytes is not None
    lowest = min(loss for loss, _, _ in figures)
    assert math.exp(taken.validation_loss) <= math.exp(lowest) * 1.01 * (1 + 1e-9)
    for loss, memory, _ in figures:
        assert loss > lowest + LOSS_TOLERANCE or taken.peak_memory_bytes <= memory * MB * 1.05


def test_a_fair_comparison_has_no_caveats() -> None:
    rows = [
        row("lora", 1.5, started_at=0.0, finished_at=5.0),
        row("dora", 1.5, started_at=5.0, finished_at=9.0),
    ]

    assert list(caveats_of(rows)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"device": "M1"}, "ran on different devices (M1, M4)"),
        ({"started_at": 4.0, "finished_at": 9.0}, "lora and dora ran on one host at the same time"),
        ({"gradient_checkpointing": True}, "dora had to be computed with gradient checkpointing"),
        ({"stopped_early": True}, "dora stopped early"),
    ],
)
def test_what_makes_figures_differ_besides_the_method_is_told(changes: dict[str, Any], told: str) -> None:
    rows = [row("lora", 1.5, started_at=0.0, finished_at=5.0), row("dora", 1.5, **changes)]

    (caveat,) = caveats_of(rows)

    assert told in caveat
