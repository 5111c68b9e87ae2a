"""MLX's optimizers from a job's settings, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx.optimizers import SGD, Adafactor, Adam, AdamW, Lion, Muon, Optimizer
from mlx.utils import tree_flatten

from graft_scheduler.hyperparameters import (
    OptimizerConfig,
    OptimizerName,
    ScheduleConfig,
    ScheduleName,
)
from graft_worker.engine.adapters import Parameters

EPSILON = 1e-6
"""Keeps the clipping of a zero gradient finite."""
B_LEAF = "lora_b"
MUON_MOMENTUM = 0.95


Update = Callable[[Parameters, Parameters, mx.array, mx.array, mx.array], Parameters]
"""Of (summed gradient, parameters, tokens, norm of the mean gradient, rate): the new parameters."""


class GroupedOptimizer:
    """One MLX optimizer, or two with LoRA+: the B matrices learn at a rate of their own."""

    def __init__(self, config: OptimizerConfig, parameters: Parameters) -> None:
        names = list(parameters)
        self._groups: list[tuple[list[str], Optimizer, float]] = []
        plus = config.lora_plus
        if plus is None:
            self._add(config, parameters, names, 1.0)
        else:
            second = [name for name in names if name.rpartition(".")[2] == B_LEAF]
            self._add(config, parameters, [name for name in names if name not in set(second)], 1.0)
            self._add(config, parameters, second, plus)

    @property
    def state(self) -> list[Any]:
        """The trees of arrays that `mx.compile` and checkpoints have to know."""
        return [optimizer.state for _, optimizer, _ in self._groups]

    def apply(self, gradient: Parameters, parameters: Parameters, rate: mx.array) -> Parameters:
        """The parameters after a step at the peak group's `rate`, in the order they came in."""
        updated: Parameters = {}
        for names, optimizer, ratio in self._groups:
            optimizer.learning_rate = rate * ratio
            ours = {name: gradient[name] for name in names}
            updated |= optimizer.apply_gradients(ours, {name: parameters[name] for name in names})
        return {name: updated[name] for name in parameters}

    def updater(self, max_norm: float | None) -> Update:
        """A function that makes a step from a sum of gradients; compiled where MLX compiles.

        It keeps hold of this optimizer's state as it is: restore that before asking for it.
        """

        def update(
            total: Parameters, parameters: Parameters, tokens: mx.array, norm: mx.array, rate: mx.array
        ) -> Parameters:
            share = 1.0 / tokens
            if max_norm is not None:
                share = share * mx.minimum(1.0, max_norm / (norm + EPSILON))
            mean = {name: value * share for name, value in total.items()}
            return self.apply(mean, parameters, rate)

        compiled: Update = mx.compile(update, inputs=self.state, outputs=self.state)
        return compiled

    def dump(self) -> dict[str, mx.array]:
        """The state as named arrays."""
        named: dict[str, mx.array] = {}
        for place, (_, optimizer, _) in enumerate(self._groups):
            arrays: dict[str, mx.array] = dict(tree_flatten(optimizer.state))
            named |= {f"{place}.{name}": array for name, array in arrays.items()}
        return named

    def load(self, arrays: Mapping[str, mx.array]) -> None:
        """Put back what `dump` made of an optimizer of the same kind and parameters.

        Raises:
            ValueError: other names or shapes than this optimizer has.
        """
        own = {name: array.shape for name, array in self.dump().items()}
        given = {name: array.shape for name, array in arrays.items()}
        if own != given:
            wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
            raise ValueError(
                f"the optimizer's {wrong[0]} has shape {given.get(wrong[0])}, not {own.get(wrong[0])}"
            )
        for full_name, array in arrays.items():
            place, _, name = full_name.partition(".")
            parameter, _, leaf = name.rpartition(".")
            state = self._groups[int(place)][1].state
            (state[parameter] if parameter else state)[leaf] = array

    def _add(self, config: OptimizerConfig, parameters: Parameters, names: list[str], ratio: float) -> None:
        if not names:
            return
        optimizer = _optimizer(config)
        optimizer.init({name: parameters[name] for name in names})
        self._groups.append((names, optimizer, ratio))


def learning_rate(config: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: never 0 at first, `final` at the last."""
    warmup = round(config.warmup * steps) if config.warmup_steps is None else config.warmup_steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    after = step - warmup
    length = max(1, steps - 1 - warmup) if config.decay_steps is None else config.decay_steps
    share = min(1.0, after / length)
    match config.name:
        case ScheduleName.CONSTANT:
            return peak
        case ScheduleName.LINEAR:
            return peak * (1.0 - (1.0 - config.final) * share)
        case ScheduleName.COSINE:
            return peak * (config.final + (1.0 - config.final) * (1.0 + math.cos(math.pi * share)) / 2)
        case ScheduleName.EXPONENTIAL:
            return peak * (config.decay_rate or 1.0) ** after
        case ScheduleName.STEP:
            return peak * (config.decay_rate or 1.0) ** (after // (config.decay_every or 1))


def _optimizer(config: OptimizerConfig) -> Optimizer:
    """Its rate is set at every step. Adam's moments are bias-corrected unless the job says otherwise."""
    adam: dict[str, Any] = {"bias_correction": config.bias_correction}
    if config.betas is not None:
        adam["betas"] = list(config.betas)
    if config.eps is not None:
        adam["eps"] = config.eps
    decay = config.weight_decay
    match config.name:
        case OptimizerName.ADAMW:
            return AdamW(0.0, weight_decay=decay, **adam)
        case OptimizerName.ADAM:
            return Adam(0.0, **adam)
        case OptimizerName.ADAFACTOR:
            # With a rate of our own: its relative steps and scaling by parameters do not suit adapters,
            # whose B matrices start at 0.
            return Adafactor(
                0.0, relative_step=False, scale_parameter=False, warmup_init=False, weight_decay=decay
            )
        case OptimizerName.MUON:
            momentum = MUON_MOMENTUM if config.momentum is None else config.momentum
            return Muon(0.0, momentum=momentum, weight_decay=decay)
        case OptimizerName.SGD:
            return SGD(0.0, momentum=config.momentum or 0.0, weight_decay=decay)
        case OptimizerName.LION:
            betas = {} if config.betas is None else {"betas": list(config.betas)}
            return Lion(0.0, weight_decay=decay, **betas)
