"""Which rows a step sees, and how they are cut."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graft_worker.engine.batches import MicroBatch, RowOrder, build, plan_order
from graft_worker.engine.rows import TokenRow

ROWS = st.integers(1, 60)
BATCH_SIZES = st.integers(1, 20)
SEEDS = st.integers(0, 2**31 - 1)


def row(tokens: list[int], learned: list[bool] | None = None) -> TokenRow:
    mask = learned if learned is not None else [True] * len(tokens)
    return TokenRow(np.array(tokens, dtype=np.int32), np.array(mask, dtype=np.bool_))


@given(rows=ROWS, batch_size=BATCH_SIZES, epochs=st.integers(1, 4), seed=SEEDS)
def test_each_row_is_seen_exactly_once_an_epoch(rows: int, batch_size: int, epochs: int, seed: int) -> None:
    order = plan_order([1] * rows, batch_size, float(epochs), None, seed)

    stream = [number for step in range(order.steps) for number in order.at(step)]

    for epoch in range(epochs):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert len(stream) == epochs * rows


@given(rows=ROWS, batch_size=BATCH_SIZES, steps=st.integers(1, 30), seed=SEEDS)
def test_with_steps_every_step_sees_a_whole_batch(rows: int, batch_size: int, steps: int, seed: int) -> None:
    order = plan_order([1] * rows, batch_size, None, steps, seed)

    assert order.steps == steps
    assert all(len(order.at(step)) == batch_size for step in range(steps))


def test_one_epoch_is_the_default_and_the_last_step_may_be_smaller() -> None:
    order = plan_order([1] * 10, 4, None, None, seed=0)

    assert [len(order.at(step)) for step in range(order.steps)] == [4, 4, 2]


def test_part_of_an_epoch_is_rounded_to_rows() -> None:
    order = plan_order([1] * 10, 4, 0.55, None, seed=0)

    assert [len(order.at(step)) for step in range(order.steps)] == [4, 2]


def test_epochs_have_different_orders_that_only_the_seed_decides() -> None:
    widths = [1] * 30
    order = plan_order(widths, 30, 2.0, None, seed=5)

    assert order.at(0) != order.at(1)
    assert order.at(1) == plan_order(widths, 30, 2.0, None, seed=5).at(1)
    assert order.at(1) != plan_order(widths, 30, 2.0, None, seed=6).at(1)


@given(
    widths=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    batch_size=BATCH_SIZES,
    window=st.integers(2, 8),
    epochs=st.integers(1, 3),
)
def test_a_length_window_changes_the_order_and_leaves_none_out(
    widths: list[int], batch_size: int, window: int, epochs: int
) -> None:
    order = plan_order(widths, batch_size, float(epochs), None, 3, window)

    stream = [number for step in range(order.steps) for number in order.at(step)]
    for epoch in range(epochs):
        seen = stream[epoch * len(widths) : (epoch + 1) * len(widths)]
        assert sorted(seen) == list(range(len(widths)))


def test_a_length_window_puts_rows_of_like_length_into_a_step() -> None:
    widths = [int(width) for width in np.random.default_rng(0).integers(10, 500, 400)]

    def spread(order: RowOrder) -> float:
        steps = [[widths[row] for row in order.at(step)] for step in range(order.steps)]
        return float(np.mean([max(step) - min(step) for step in steps]))

    mixed = plan_order(widths, 8, 3.0, None, 0)
    sorted_within = plan_order(widths, 8, 3.0, None, 0, window=10)
    assert spread(sorted_within) < spread(mixed) / 5


@given(lengths=st.lists(st.integers(2, 80), min_size=1, max_size=6))
def test_no_target_past_the_end_of_a_row_is_learned(lengths: list[int]) -> None:
    rows = [row(list(range(1, length + 1))) for length in lengths]
    lines = tuple((number,) for number in range(len(rows)))

    batch = build(rows, MicroBatch(lines, max(lengths) + 5, len(rows) + 1, sum(lengths)))

    assert batch.tokens == batch.read_tokens == sum(length - 1 for length in lengths)
    assert batch.computed_tokens == (max(lengths) + 5) * (len(rows) + 1)
    for place, length in enumerate(lengths):
        learned = np.array(batch.arrays["learned"][place])
        assert learned[: length - 1].all()
        assert not learned[length - 1 :].any()


def test_a_target_is_the_token_after_its_input() -> None:
    rows = [row([5, 6, 7, 8], [False, False, True, True])]

    arrays = build(rows, MicroBatch(((0,),), 32, 1, 4)).arrays

    assert mx.array_equal(arrays["inputs"][0, :3], mx.array([5, 6, 7]))
    assert mx.array_equal(arrays["targets"][0, :3], mx.array([6, 7, 8]))
    assert np.array(arrays["learned"][0]).nonzero()[0].tolist() == [1, 2]
    assert np.array(arrays["slots"]).tolist() == [1, 2, -1, -1]
    assert "documents" not in arrays


def test_packed_rows_lie_end_to_end_and_are_numbered() -> None:
    rows = [row([5, 6, 7]), row([8, 9, 10, 11])]

    arrays = build(rows, MicroBatch(((0, 1),), 7, 1, 5, is_packed=True)).arrays

    assert np.array(arrays["inputs"][0]).tolist() == [5, 6, 8, 9, 10, 0, 0]
    assert np.array(arrays["targets"][0]).tolist() == [6, 7, 9, 10, 11, 0, 0]
    assert np.array(arrays["documents"][0]).tolist() == [0, 0, 1, 1, 1, -1, -1]
