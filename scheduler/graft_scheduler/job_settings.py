"""From the settings that people type to a `TrainJob`: dotted and short names, and what they must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from graft_scheduler.complaints import explain
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import TrainJob

SHORT_NAMES: dict[str, str] = {
    "rank": "adapter.rank",
    "max_rank": "adapter.max_rank",
    "alpha": "adapter.alpha",
    "rslora": "adapter.rslora",
    "scale": "adapter.scale",
    "dropout": "adapter.dropout",
    "targets": "adapter.targets",
    "layers": "adapter.layers",
    "learning_rate": "optimizer.learning_rate",
    "lr": "optimizer.learning_rate",
    "lora_plus": "optimizer.lora_plus",
    "weight_decay": "optimizer.weight_decay",
    "betas": "optimizer.betas",
    "eps": "optimizer.eps",
    "momentum": "optimizer.momentum",
    "max_grad_norm": "optimizer.max_grad_norm",
    "warmup": "schedule.warmup",
    "warmup_steps": "schedule.warmup_steps",
    "decay_steps": "schedule.decay_steps",
    "patience": "evaluation.patience",
    "bits": "quantization.bits",
    "group_size": "quantization.group_size",
}
"""Spellings people type for nested settings, in `--set` and in search spaces."""


def build_train_job(values: Mapping[str, Any]) -> TrainJob:
    """A job from nested or dotted settings, by any of the names people use.

    Raises:
        InvalidInput: names the setting, the value and what would be right.
    """
    nested = nest(values)
    try:
        return TrainJob.model_validate(nested)
    except ValidationError as error:
        raise InvalidInput(explain(error, setting_names(TrainJob))) from error


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"adapter.rank": 8}` and `{"rank": 8}` as `{"adapter": {"rank": 8}}`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *path, leaf = SHORT_NAMES.get(name, name).split(".")
        level = nested
        for part in path:
            below = level.setdefault(part, {})
            if below is None:  # a group that is left out
                below = level[part] = {}
            if isinstance(below, str) and part in {"model", "data"}:
                below = level[part] = {"source": below}
            if not isinstance(below, dict):
                raise InvalidInput(
                    f"`{name}` is set, but `{part}` is {below!r}: it has no settings of its own"
                )
            level = below
        existing = level.get(leaf)
        if isinstance(existing, dict) and isinstance(value, str) and leaf in {"model", "data"}:
            existing["source"] = value
        elif isinstance(existing, dict) and isinstance(value, dict):
            existing.update(value)
        else:
            level[leaf] = value
    return nested


def setting_names(model: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    """Every dotted name that `model` understands, nested ones included, and the short ones."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += setting_names(inner, f"{prefix}{name}.")
    return tuple(names) if prefix else (*names, *SHORT_NAMES)
