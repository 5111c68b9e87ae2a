"""MLX's optimizers from a job's settings, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import mlx.core as mx
from mlx.optimizers import SGD, Adam, AdamW, Optimizer
from mlx.utils import tree_flatten

from graft_scheduler.jobs import (
    OptimizerConfig,
    OptimizerName,
    ScheduleConfig,
    ScheduleName,
)
from graft_worker.engine.adapters import Parameters

EPSILON = 1e-6
"""Keeps the clipping of a zero gradient finite."""


def build_optimizer(config: OptimizerConfig, parameters: Parameters) -> Optimizer:
    """The optimizer with its state made for `parameters`. Adam's moments are bias-corrected."""
    rate = config.learning_rate
    optimizer: Optimizer
    match config.name:
        case OptimizerName.ADAMW:
            optimizer = AdamW(rate, weight_decay=config.weight_decay, bias_correction=True)
        case OptimizerName.ADAM:
            optimizer = Adam(rate, bias_correction=True)
        case OptimizerName.SGD:
            optimizer = SGD(rate)
    optimizer.init(parameters)
    return optimizer


def learning_rate(config: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: never 0 at first, `final` at the last."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    match config.name:
        case ScheduleName.CONSTANT:
            return peak
        case ScheduleName.LINEAR:
            return peak * (1.0 - (1.0 - config.final) * share)
        case ScheduleName.COSINE:
            return peak * (config.final + (1.0 - config.final) * (1.0 + math.cos(math.pi * share)) / 2)


def clip(gradient: Parameters, norm: float, max_norm: float | None) -> Parameters:
    """`gradient`, of length `norm`, made no longer than `max_norm`."""
    if max_norm is None or norm <= max_norm:
        return gradient
    return {name: value * (max_norm / (norm + EPSILON)) for name, value in gradient.items()}


def dump_state(optimizer: Optimizer) -> dict[str, mx.array]:
    """The state as named arrays."""
    return dict(tree_flatten(optimizer.state))


def load_state(optimizer: Optimizer, arrays: dict[str, mx.array]) -> None:
    """Put back what `dump_state` made of an optimizer of the same kind and parameters.

    Raises:
        ValueError: other names or shapes than this optimizer has.
    """
    own = {name: array.shape for name, array in dump_state(optimizer).items()}
    given = {name: array.shape for name, array in arrays.items()}
    if own != given:
        wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
        raise ValueError(
            f"the optimizer's {wrong[0]} has shape {given.get(wrong[0])}, not {own.get(wrong[0])}"
        )
    for name, array in arrays.items():
        parameter, _, leaf = name.rpartition(".")
        (optimizer.state[parameter] if parameter else optimizer.state)[leaf] = array
