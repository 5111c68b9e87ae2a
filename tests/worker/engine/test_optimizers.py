"""The learning rate, clipping, and an optimizer's state as arrays."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.jobs import OptimizerConfig, OptimizerName, ScheduleConfig, ScheduleName
from graft_worker.engine.loss import norm
from graft_worker.engine.optimizers import build_optimizer, clip, dump_state, learning_rate, load_state


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


@given(
    name=st.sampled_from(ScheduleName),
    warmup=st.floats(0, 0.99),
    final=st.floats(0, 1),
    steps=st.integers(1, 50),
)
def test_the_rate_is_never_above_its_peak_and_never_zero_at_first(
    name: ScheduleName, warmup: float, final: float, steps: int
) -> None:
    found = rates(ScheduleConfig(name=name, warmup=warmup, final=final), steps)

    assert found[0] > 0
    assert all(0 <= rate <= 1.0 + 1e-12 for rate in found)


def test_a_long_gradient_is_clipped_and_a_short_one_is_not() -> None:
    gradient = {"a": mx.array([3.0]), "b": mx.array([4.0])}

    assert norm(gradient) == pytest.approx(5.0)
    assert norm(clip(gradient, 5.0, 1.0)) == pytest.approx(1.0, rel=1e-5)
    assert clip(gradient, 5.0, 10.0) is gradient
    assert clip(gradient, 5.0, None) is gradient


@pytest.mark.parametrize("name", list(OptimizerName))
def test_a_restored_optimizer_goes_on_as_the_first_would_have(name: OptimizerName) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.1)
    parameters = {"layers.0.lora_a": mx.array([1.0, 2.0]), "layers.0.lora_b": mx.array([[3.0]])}
    gradient = {path: value * 0.5 for path, value in parameters.items()}
    first, second = build_optimizer(config, parameters), build_optimizer(config, parameters)
    parameters = first.apply_gradients(gradient, parameters)

    load_state(second, dump_state(first))

    one, other = first.apply_gradients(gradient, parameters), second.apply_gradients(gradient, parameters)
    assert all(mx.array_equal(one[path], other[path]) for path in parameters)


def test_the_state_of_other_parameters_is_refused() -> None:
    config = OptimizerConfig()
    state = dump_state(build_optimizer(config, {"lora_a": mx.zeros((2, 2))}))
    optimizer = build_optimizer(config, {"lora_a": mx.zeros((2, 4))})

    with pytest.raises(ValueError, match=r"lora_a\.m has shape \(2, 2\), not \(2, 4\)"):
        load_state(optimizer, state)
