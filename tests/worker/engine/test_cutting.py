"""How a step is cut: every row once, within the budget, in few shapes, with little padding."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_scheduler.hyperparameters import Batching
from graft_scheduler.memory.cuts import OVERHEAD_TOKENS, largest_cuts, padded, width_multiple
from graft_scheduler.memory.shape import Backend, Shape
from graft_worker.engine.batches import MicroBatch, build, plan_order
from graft_worker.engine.compilation import MAX_SHAPES
from graft_worker.engine.cutting import Budget, choose_widths, exact_cutter, plan_cutter
from graft_worker.engine.rows import TokenRow
from tests.scheduler.models import make_model
from tests.scheduler.plans import job

WIDTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def make_rows(widths: list[int]) -> list[TokenRow]:
    return [
        TokenRow(np.ones(width + 1, dtype=np.int32), np.ones(width + 1, dtype=np.bool_)) for width in widths
    ]


def skewed_widths(count: int) -> list[int]:
    lengths = np.random.default_rng(0).lognormal(np.log(180), 0.8, count)
    return [int(length) for length in np.clip(lengths, 8, 2000)]


def padding(micro_batches: list[MicroBatch], widths: list[int]) -> float:
    computed = sum(one.width * one.height for one in micro_batches)
    return 1 - sum(widths[row] for one in micro_batches for line in one.lines for row in line) / computed


@given(widths=WIDTHS, tokens=st.integers(1, 2000), batching=st.sampled_from(Batching))
def test_a_cut_holds_every_row_once_within_the_budget(
    widths: list[int], tokens: int, batching: Batching
) -> None:
    cutter = exact_cutter(make_rows(widths), Budget(tokens, overhead_tokens=16), batching)

    micro_batches = cutter.cut(range(len(widths)))

    rows = Counter(row for one in micro_batches for line in one.lines for row in line)
    assert rows == Counter(range(len(widths)))
    for one in micro_batches:
        assert all(sum(widths[row] for row in line) <= one.width for line in one.lines)
        assert one.height == 1 or one.height * one.width <= tokens
        assert one.slots >= sum(widths[row] for line in one.lines for row in line)


@settings(deadline=None)
@given(
    longest=st.integers(1, 300),
    spread=st.integers(0, 40),
    batch_size=st.integers(2, 12),
    backend=st.sampled_from(Backend),
    batching=st.sampled_from([Batching.BUCKETED, Batching.PADDED]),
    dice=st.randoms(use_true_random=False),
)
def test_a_step_that_the_estimate_takes_for_whole_is_not_parted(
    longest: int, spread: int, batch_size: int, backend: Backend, batching: Batching, dice: Random
) -> None:
    shortest = max(1, longest - spread)
    tokens = batch_size * padded(longest, backend)
    compute = {"batching": batching, "compile": False}
    spec = job(batch_size=batch_size, micro_batch_tokens=tokens, compute=compute)
    whole = largest_cuts(Shape(make_model(), spec, backend), longest, shortest)
    widths = [longest, *(dice.randint(shortest, longest) for _ in range(batch_size - 1))]
    budget = Budget(tokens, width_multiple(backend), OVERHEAD_TOKENS[backend])

    parts = exact_cutter(make_rows(widths), budget, batching).cut(range(batch_size))

    assert len(parts) == 1 or max(cut.held_gradients for cut in whole) == 2


@settings(deadline=None)
@given(
    widths=st.lists(st.integers(1, 900), min_size=1, max_size=80),
    batching=st.sampled_from([Batching.BUCKETED, Batching.PACKED]),
    batch_size=st.integers(1, 16),
)
def test_a_compiled_job_has_few_shapes_that_hold_every_step(
    widths: list[int], batching: Batching, batch_size: int
) -> None:
    rows = make_rows(widths)
    order = plan_order(widths, batch_size, 3.0, None, 0)
    cutter = plan_cutter(rows, order, Budget(2048), batching, compiled=True)
    shapes = set()

    for step in range(order.steps):
        for one in cutter.cut(order.at(step)):
            batch = build(rows, one)
            assert batch.tokens == sum(widths[row] for line in one.lines for row in line)
            shapes.add((batch.arrays["inputs"].shape, batch.arrays["slots"].shape))

    assert len(shapes) <= MAX_SHAPES


def test_buckets_have_far_less_padding_than_whole_batches() -> None:
    widths = skewed_widths(16)

    def cut(batching: Batching, multiple: int) -> float:
        budget = Budget(4096, multiple, overhead_tokens=48)
        return padding(exact_cutter(make_rows(widths), budget, batching).cut(range(16)), widths)

    assert cut(Batching.PADDED, 1) > 0.45
    assert cut(Batching.BUCKETED, 1) < 0.12
    assert cut(Batching.BUCKETED, 32) < 0.18
    assert cut(Batching.PACKED, 1) < 0.1


def test_few_shapes_cost_little_padding() -> None:
    widths = skewed_widths(2000)
    order = plan_order(widths, 8, 1.0, None, 0)
    budget = Budget(4096, overhead_tokens=48)
    cutter = plan_cutter(make_rows(widths), order, budget, Batching.BUCKETED, compiled=True)

    cut = [one for step in range(order.steps) for one in cutter.cut(order.at(step))]

    assert padding(cut, widths) < 0.3


def test_widths_are_multiples_of_32() -> None:
    assert [Budget(1).padded(width) for width in (1, 31, 32, 33, 2047)] == [32, 32, 32, 64, 2048]


@pytest.mark.parametrize("overhead", [0, 1000])
def test_what_a_micro_batch_costs_besides_decides_how_many_there_are(overhead: int) -> None:
    widths = [10, 50, 100]
    cutter = exact_cutter(make_rows(widths), Budget(4096, 1, overhead), Batching.BUCKETED)

    assert len(cutter.cut(range(3))) == (3 if overhead == 0 else 1)


def test_widths_are_chosen_where_padding_costs_least() -> None:
    assert choose_widths([10] * 50 + [11] * 50 + [100] * 50 + [101] * 50 + [400], 3) == (11, 101, 400)
    assert choose_widths([5, 7], 3) == (5, 7)
