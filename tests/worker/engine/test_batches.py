"""Which rows a step sees, and how they are cut."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graft_worker.engine.batches import Budget, MicroBatch, build, cut, plan_order
from graft_worker.engine.rows import TokenRow

ROWS = st.integers(1, 60)
BATCH_SIZES = st.integers(1, 20)
SEEDS = st.integers(0, 2**31 - 1)


def row(tokens: list[int], learned: list[bool] | None = None) -> TokenRow:
    mask = learned if learned is not None else [True] * len(tokens)
    return TokenRow(np.array(tokens, dtype=np.int32), np.array(mask, dtype=np.bool_))


@given(rows=ROWS, batch_size=BATCH_SIZES, epochs=st.integers(1, 4), seed=SEEDS)
def test_each_row_is_seen_exactly_once_an_epoch(rows: int, batch_size: int, epochs: int, seed: int) -> None:
    order = plan_order(rows, batch_size, float(epochs), None, seed)

    stream = [number for step in range(order.steps) for number in order.at(step)]

    for epoch in range(epochs):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert len(stream) == epochs * rows


@given(rows=ROWS, batch_size=BATCH_SIZES, steps=st.integers(1, 30), seed=SEEDS)
def test_with_steps_every_step_sees_a_whole_batch(rows: int, batch_size: int, steps: int, seed: int) -> None:
    order = plan_order(rows, batch_size, None, steps, seed)

    assert order.steps == steps
    assert all(len(order.at(step)) == batch_size for step in range(steps))


def test_one_epoch_is_the_default_and_the_last_step_may_be_smaller() -> None:
    order = plan_order(10, 4, None, None, seed=0)

    assert [len(order.at(step)) for step in range(order.steps)] == [4, 4, 2]


def test_part_of_an_epoch_is_rounded_to_rows() -> None:
    order = plan_order(10, 4, 0.55, None, seed=0)

    assert [len(order.at(step)) for step in range(order.steps)] == [4, 2]


def test_epochs_have_different_orders_that_only_the_seed_decides() -> None:
    order = plan_order(30, 30, 2.0, None, seed=5)

    assert order.at(0) != order.at(1)
    assert order.at(1) == plan_order(30, 30, 2.0, None, seed=5).at(1)
    assert order.at(1) != plan_order(30, 30, 2.0, None, seed=6).at(1)


@given(widths=st.lists(st.integers(1, 300), min_size=1, max_size=40), budget=st.integers(1, 2000))
def test_a_cut_holds_every_row_once_within_the_budget(widths: list[int], budget: int) -> None:
    micro_batches = cut(widths, range(len(widths)), Budget(budget))

    rows = Counter(number for micro_batch in micro_batches for number in micro_batch.rows)
    assert rows == Counter(range(len(widths)))
    for micro_batch in micro_batches:
        assert micro_batch.width == Budget(budget).padded(max(widths[number] for number in micro_batch.rows))
        assert len(micro_batch.rows) == 1 or len(micro_batch.rows) * micro_batch.width <= budget


def test_widths_are_multiples_of_32() -> None:
    assert [Budget(1).padded(width) for width in (1, 31, 32, 33, 2047)] == [32, 32, 32, 64, 2048]


@given(lengths=st.lists(st.integers(2, 80), min_size=1, max_size=6))
def test_no_target_past_the_end_of_a_row_is_learned(lengths: list[int]) -> None:
    rows = [row(list(range(1, length + 1))) for length in lengths]
    micro_batch = MicroBatch(tuple(range(len(rows))), Budget(1).padded(max(lengths) - 1))

    batch = build(rows, micro_batch)

    assert batch.tokens == sum(length - 1 for length in lengths)
    for place, length in enumerate(lengths):
        learned = np.array(batch.learned[place])
        assert learned[: length - 1].all()
        assert not learned[length - 1 :].any()


def test_a_target_is_the_token_after_its_input() -> None:
    batch = build([row([5, 6, 7, 8], [False, False, True, True])], MicroBatch((0,), 32))

    assert mx.array_equal(batch.inputs[0, :3], mx.array([5, 6, 7]))
    assert mx.array_equal(batch.targets[0, :3], mx.array([6, 7, 8]))
    assert np.array(batch.learned[0]).nonzero()[0].tolist() == [1, 2]
