"""The rates and optimizers that an mlx-lm configuration becomes, against those mlx-lm builds itself."""

from __future__ import annotations

import inspect
from typing import Any

import mlx.core as mx
import mlx.optimizers
import pytest
from mlx_lm.tuner.utils import build_schedule

from graft_scheduler.job_settings import build_train_job
from graft_scheduler.mlx_lm_config import from_mlx_lm
from graft_scheduler.mlx_lm_keys import OPTIMIZERS, SCHEDULES
from graft_worker.engine.optimizers import learning_rate
from graft_worker.engine.scalars import as_float

STEPS = 60
FLOAT32_SHARE = 1e-5
"""By how much mlx-lm's rates, computed in float32, may differ from ours, as a share of the peak."""
CLASSES = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon", "sgd": "SGD", "adafactor": "Adafactor"}


def rates(schedule: dict[str, Any]) -> tuple[float, list[float], list[float]]:
    """The peak, our rates and mlx-lm's."""
    values = {"model": "m", "data": "d", "iters": STEPS, "lr_schedule": schedule}
    job = build_train_job(from_mlx_lm(values).settings)
    ours = [learning_rate(job.schedule, job.learning_rate, step, STEPS) for step in range(STEPS)]
    built = build_schedule(schedule)
    theirs = [as_float(mx.array(built(mx.array(step)))) for step in range(STEPS)]
    return job.learning_rate, ours, theirs


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cosine_decay", [1e-4, 40, 1e-6]),
        ("cosine_decay", [1e-4, 200]),
        ("linear_schedule", [1e-4, 1e-5, 30]),
        ("exponential_decay", [1e-4, 0.97]),
        ("step_decay", [1e-4, 0.5, 7]),
    ],
)
def test_after_the_warm_up_the_rates_are_mlx_lms_and_within_it_they_are_near(
    name: str, arguments: list[float], warmup: int
) -> None:
    peak, ours, theirs = rates({"name": name, "arguments": arguments, "warmup": warmup})

    after = warmup + 1 if warmup else 0
    assert ours[after:] == pytest.approx(theirs[after:], abs=FLOAT32_SHARE * peak)
    assert ours[:after] == pytest.approx(theirs[:after], abs=peak / (warmup + 2) + FLOAT32_SHARE * peak)
    assert ours[0] > 0


def test_every_schedule_takes_the_arguments_of_mlxs() -> None:
    for name, (_, keys) in SCHEDULES.items():
        assert list(inspect.signature(getattr(mlx.optimizers, name)).parameters) == list(keys)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_option_of_mlxs_optimizers_is_known_with_its_default(name: str) -> None:
    signature = inspect.signature(getattr(mlx.optimizers, CLASSES[name]).__init__)
    options = {
        option: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for option, parameter in signature.parameters.items()
        if option not in {"self", "learning_rate"}
    }

    assert {option: key.default for option, key in OPTIMIZERS[name].items()} == options
