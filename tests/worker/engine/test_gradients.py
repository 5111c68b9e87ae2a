"""Token-weighted gradients: the same for any cut, with and without recomputation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from graft_scheduler.jobs import AdapterConfig, ModelRef, Precision
from graft_worker.engine.adapters import Adapted, Parameters, attach
from graft_worker.engine.batches import Budget, MicroBatch, build, cut
from graft_worker.engine.dropout import micro_batch_key
from graft_worker.engine.loading import load_base
from graft_worker.engine.loss import GradientOfSum, StepGradient, norm, step_gradient
from graft_worker.engine.recompute import recomputed
from graft_worker.engine.rows import TokenRow

Attach = Callable[..., tuple[Adapted, Parameters]]


@pytest.fixture
def adapters(base: Path) -> Attach:
    """The tiny model with adapters whose two halves are both random, so that both learn."""

    def make(dropout: float = 0.0) -> tuple[Adapted, Parameters]:
        model = load_base(ModelRef(source=str(base)), None, Precision.AUTO).model
        adapted = attach(model, AdapterConfig(rank=4, scale=2.0, dropout=dropout), seed=1)
        model.train()
        parameters = {
            name: mx.random.normal(value.shape, key=mx.random.key(place)) * 0.1
            for place, (name, value) in enumerate(adapted.parameters().items())
        }
        return adapted, parameters

    return make


def random_rows(lengths: Sequence[int]) -> list[TokenRow]:
    random = np.random.default_rng(3)
    return [
        TokenRow(random.integers(6, 260, length).astype(np.int32), random.random(length) < 0.6)
        for length in lengths
    ]


def gradient_in(
    adapted: Adapted, parameters: Parameters, rows: Sequence[TokenRow], micro_batches: Sequence[MicroBatch]
) -> StepGradient:
    batches = [
        (build(rows, micro_batch), micro_batch_key(0, 0, place))
        for place, micro_batch in enumerate(micro_batches)
    ]
    return step_gradient(GradientOfSum(adapted), parameters, batches)


def relative_difference(one: Parameters, other: Parameters) -> float:
    difference = {name: one[name] - other[name] for name in one}
    return norm(difference) / norm(one)


def test_any_cut_into_micro_batches_gives_the_same_gradient(adapters: Attach) -> None:
    adapted, parameters = adapters()
    rows = random_rows([5, 9, 17, 40, 41, 63, 70])
    widths = [row.width for row in rows]
    everything = range(len(rows))
    whole = gradient_in(adapted, parameters, rows, cut(widths, everything, Budget(10_000)))

    for budget in (Budget(1), Budget(70), Budget(200), Budget(200, width_multiple=1)):
        parts = gradient_in(adapted, parameters, rows, cut(widths, everything, budget))

        assert parts.tokens == whole.tokens
        assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
        assert relative_difference(whole.gradient, parts.gradient) <= 1e-5


def test_padding_changes_neither_loss_nor_gradient(adapters: Attach) -> None:
    adapted, parameters = adapters()
    rows = random_rows([12])

    narrow = gradient_in(adapted, parameters, rows, [MicroBatch((0,), 32)])
    wide = gradient_in(adapted, parameters, rows, [MicroBatch((0,), 96)])

    assert narrow.tokens == wide.tokens
    assert narrow.loss == pytest.approx(wide.loss, rel=1e-6)
    assert relative_difference(narrow.gradient, wide.gradient) <= 1e-5


def test_the_gradient_is_that_of_the_mean_over_tokens(adapters: Attach) -> None:
    adapted, parameters = adapters()
    rows = random_rows([12, 30])
    found = gradient_in(adapted, parameters, rows, [MicroBatch((0, 1), 32)])
    name = next(iter(parameters))
    step = 1e-2
    direction = mx.sign(found.gradient[name])

    def mean_loss(shift: float) -> float:
        shifted = {**parameters, name: parameters[name] + shift * direction}
        sums = gradient_in(adapted, shifted, rows, [MicroBatch((0, 1), 32)])
        return sums.loss / sums.tokens

    slope = (mean_loss(step) - mean_loss(-step)) / (2 * step)
    assert slope == pytest.approx(mx.abs(found.gradient[name]).sum().item(), rel=1e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputed_activations_give_the_same_gradient(adapters: Attach, dropout: float) -> None:
    adapted, parameters = adapters(dropout)
    rows = random_rows([12, 30])
    kept = gradient_in(adapted, parameters, rows, [MicroBatch((0, 1), 32)])

    with recomputed(adapted.blocks):
        again = gradient_in(adapted, parameters, rows, [MicroBatch((0, 1), 32)])

    assert again.loss == pytest.approx(kept.loss, rel=1e-6)
    assert relative_difference(kept.gradient, again.gradient) <= 1e-5


def test_recomputation_changes_no_class_and_is_undone(adapters: Attach) -> None:
    adapted, _ = adapters()
    block_class = type(adapted.blocks[0])
    call = block_class.__call__

    with recomputed(adapted.blocks[:1]):
        assert type(adapted.blocks[0]) is not block_class
        assert type(adapted.blocks[1]) is block_class

    assert type(adapted.blocks[0]) is block_class
    assert block_class.__call__ is call


def test_dropout_depends_on_the_key_and_not_on_the_global_random_state(adapters: Attach) -> None:
    adapted, parameters = adapters(0.4)
    rows = random_rows([12, 30])
    first = gradient_in(adapted, parameters, rows, [MicroBatch((0, 1), 32)])
    mx.random.seed(99)
    again = gradient_in(adapted, parameters, rows, [MicroBatch((0, 1), 32)])
    batch = build(rows, MicroBatch((0, 1), 32))
    other = step_gradient(GradientOfSum(adapted), parameters, [(batch, micro_batch_key(0, 1, 0))])

    assert again.loss == first.loss
    assert other.loss != first.loss
