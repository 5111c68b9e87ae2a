"""The learning rate, clipping, and an optimizer's state as arrays."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.hyperparameters import OptimizerConfig, OptimizerName, ScheduleConfig, ScheduleName
from graft_worker.engine.adapters import Parameters
from graft_worker.engine.gradients import norm
from graft_worker.engine.optimizers import GroupedOptimizer, learning_rate
from graft_worker.engine.scalars import as_float

PARAMETERS: Parameters = {
    "layers.0.lora_a": mx.array([[1.0, 2.0], [0.5, -1.0]]),
    "layers.0.lora_b": mx.array([[3.0, -2.0], [1.0, 4.0]]),
}


def rates(config: ScheduleConfig, steps: int) -> list[float]:
    return [learning_rate(config, 1.0, step, steps) for step in range(steps)]


@pytest.mark.parametrize("name", [ScheduleName.LINEAR, ScheduleName.COSINE])
def test_a_decaying_rate_ends_at_its_final_share(name: ScheduleName) -> None:
    found = rates(ScheduleConfig(name=name, warmup=0.0, final=0.1), 11)

    assert found[0] == 1.0
    assert found[5] == pytest.approx(0.55)
    assert found[10] == pytest.approx(0.1)


def test_a_constant_rate_stays_after_its_warm_up() -> None:
    found = rates(ScheduleConfig(name=ScheduleName.CONSTANT, warmup=0.3), 10)

    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4:] == [1.0] * 6


def test_steps_win_over_shares() -> None:
    found = rates(ScheduleConfig(name=ScheduleName.LINEAR, warmup_steps=2, decay_steps=4, final=0.0), 10)

    assert found == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0])


def test_exponential_and_step_rates_fall_by_their_own_factor() -> None:
    exponential = ScheduleConfig(name=ScheduleName.EXPONENTIAL, warmup=0.0, decay_rate=0.5)
    by_steps = ScheduleConfig(name=ScheduleName.STEP, warmup=0.0, decay_rate=0.5, decay_every=2)

    assert rates(exponential, 4) == pytest.approx([1.0, 0.5, 0.25, 0.125])
    assert rates(by_steps, 5) == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.25])


@given(
    name=st.sampled_from(ScheduleName),
    warmup=st.floats(0, 0.99),
    final=st.floats(0, 1),
    steps=st.integers(1, 50),
)
def test_the_rate_is_never_above_its_peak_and_never_zero_at_first(
    name: ScheduleName, warmup: float, final: float, steps: int
) -> None:
    config = ScheduleConfig(name=name, warmup=warmup, final=final, decay_rate=0.9, decay_every=3)

    found = rates(config, steps)

    assert found[0] > 0
    assert all(0 <= rate <= 1.0 + 1e-12 for rate in found)


@pytest.mark.parametrize(("max_norm", "length"), [(1.0, 1.0), (10.0, 5.0), (None, 5.0)])
def test_a_long_gradient_is_clipped_and_a_short_one_is_not(max_norm: float | None, length: float) -> None:
    parameters = {"a": mx.array([0.0]), "b": mx.array([0.0])}
    optimizer = GroupedOptimizer(OptimizerConfig(name=OptimizerName.SGD), parameters)
    summed = {"a": mx.array([6.0]), "b": mx.array([8.0])}

    updated = step(optimizer, parameters, summed, tokens=2, rate=1.0, max_norm=max_norm)

    assert as_float(norm(updated)) == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize("name", list(OptimizerName))
@pytest.mark.parametrize("lora_plus", [None, 4.0])
def test_a_restored_optimizer_goes_on_as_the_first_would_have(
    name: OptimizerName, lora_plus: float | None
) -> None:
    decay = 0.0 if name is OptimizerName.ADAM else 0.1
    config = OptimizerConfig(name=name, weight_decay=decay, lora_plus=lora_plus)
    first, second = GroupedOptimizer(config, PARAMETERS), GroupedOptimizer(config, PARAMETERS)
    gradient = {path: value * 0.5 for path, value in PARAMETERS.items()}
    parameters = step(first, PARAMETERS, gradient)

    second.load(first.dump())

    one, other = step(first, parameters, gradient), step(second, parameters, gradient)
    assert all(mx.array_equal(one[path], other[path]) for path in PARAMETERS)
    assert list(one) == list(PARAMETERS)


@pytest.mark.parametrize("name", list(OptimizerName))
def test_every_optimizer_goes_down_a_slope(name: OptimizerName) -> None:
    config = OptimizerConfig(name=name)
    optimizer, parameters = GroupedOptimizer(config, PARAMETERS), PARAMETERS
    for _ in range(20):
        parameters = step(optimizer, parameters, dict(parameters), rate=0.01)

    assert as_float(norm(parameters)) < as_float(norm(PARAMETERS))


def test_lora_plus_multiplies_the_rate_of_b_alone() -> None:
    plain = step(GroupedOptimizer(OptimizerConfig(), PARAMETERS), PARAMETERS, PARAMETERS)
    config = OptimizerConfig(lora_plus=16.0)
    plus = step(GroupedOptimizer(config, PARAMETERS), PARAMETERS, PARAMETERS)

    a, b = PARAMETERS
    assert mx.array_equal(plus[a], plain[a])
    moved, moved_more = plain[b] - PARAMETERS[b], plus[b] - PARAMETERS[b]
    assert mx.allclose(moved_more, 16.0 * moved, rtol=1e-4)


def test_a_job_says_what_adam_is_made_of() -> None:
    first = step(GroupedOptimizer(OptimizerConfig(), PARAMETERS), PARAMETERS, PARAMETERS)
    uncorrected = OptimizerConfig(bias_correction=False, betas=(0.5, 0.5), eps=1e-3)
    other = step(GroupedOptimizer(uncorrected, PARAMETERS), PARAMETERS, PARAMETERS)

    gradient = next(iter(PARAMETERS.values()))
    expected = gradient - 0.1 * 0.5 * gradient / (mx.sqrt(0.5 * gradient**2) + 1e-3)
    assert mx.allclose(next(iter(other.values())), expected)
    assert not mx.allclose(next(iter(first.values())), expected)


def test_the_state_of_other_parameters_is_refused() -> None:
    state = GroupedOptimizer(OptimizerConfig(), {"lora_a": mx.zeros((2, 2))}).dump()
    optimizer = GroupedOptimizer(OptimizerConfig(), {"lora_a": mx.zeros((2, 4))})

    with pytest.raises(ValueError, match=r"lora_a\.m has shape \(2, 2\), not \(2, 4\)"):
        optimizer.load(state)


def step(
    optimizer: GroupedOptimizer,
    parameters: Parameters,
    summed: Parameters,
    tokens: int = 1,
    rate: float = 0.1,
    max_norm: float | None = None,
) -> Parameters:
    length = as_float(norm(summed)) / tokens
    update = optimizer.updater(max_norm)
    return update(summed, parameters, mx.array(float(tokens)), mx.array(length), mx.array(rate))
