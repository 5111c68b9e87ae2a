"""LoRA adapters on a base model: which layers get one, and the files that hold them.

The files are mlx-lm's: stock `mlx_lm.load(adapter_path=...)` reads every folder written here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from graft_scheduler.jobs import AdapterConfig, ModelRef
from graft_scheduler.memory import is_target
from graft_scheduler.states import FailureClass
from graft_worker.engine.dropout import KeyedDropout
from graft_worker.link import JobError

Parameters = dict[str, mx.array]
"""Trainable arrays by their path in the model."""

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
LINEAR_LAYERS = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)


@dataclass(frozen=True, slots=True)
class Adapted:
    """A base model with adapters on it."""

    model: nn.Module
    blocks: Sequence[nn.Module]
    """Those that have adapters."""
    modules: tuple[str, ...]
    """The adapted modules, by their path inside a block."""
    dropouts: tuple[KeyedDropout, ...]

    def parameters(self) -> Parameters:
        """The adapters' arrays as they are in the model now."""
        return dict(tree_flatten(self.model.trainable_parameters()))

    def put(self, parameters: Parameters) -> None:
        """Make `parameters` the model's own."""
        self.model.update(tree_unflatten(list(parameters.items())))


def attach(model: nn.Module, config: AdapterConfig, seed: int) -> Adapted:
    """Put fresh adapters on a frozen `model`; their start depends on `seed` alone.

    Raises:
        JobError: a target or a number of layers that the model does not have; class `config`.
    """
    blocks = _adapted_blocks(model, config.layers)
    modules = choose_modules(_linear_modules(blocks), config.targets)
    mx.random.seed(seed)
    linear_to_lora_layers(model, len(blocks), _lora_parameters(config, modules))
    dropouts = _key_dropouts(model, config.dropout)
    adapted = Adapted(model, _adapted_blocks(model, config.layers), modules, dropouts)
    adapted.put({name: value.astype(mx.float32) for name, value in adapted.parameters().items()})
    mx.eval(model.trainable_parameters())
    return adapted


def choose_modules(available: Sequence[str], targets: Sequence[str] | None) -> tuple[str, ...]:
    """The modules that `targets` name by path, end of path or pattern; all without targets.

    Raises:
        JobError: a target that names none of them; class `config`.
    """
    if targets is None:
        return tuple(available)
    for target in targets:
        if not any(is_target(target, module) for module in available):
            text = f"`adapter.targets` has `{target}`, which is none of the model's linear layers"
            raise JobError(FailureClass.CONFIG, f"{text}: {', '.join(available)}")
    return tuple(module for module in available if any(is_target(target, module) for target in targets))


def adapter_config(adapted: Adapted, config: AdapterConfig, model: ModelRef) -> dict[str, Any]:
    """What `adapter_config.json` says: how mlx-lm has to attach the adapters, and to which base."""
    return {
        "fine_tune_type": "lora",
        "num_layers": len(adapted.blocks),
        "lora_parameters": _lora_parameters(config, adapted.modules),
        "model": model.source,
        "revision": model.revision,
        "model_digest": model.digest,
    }


def write_adapter(folder: Path, parameters: Parameters, config: dict[str, Any]) -> None:
    """Write the two files into `folder`, which exists."""
    mx.save_safetensors(str(folder / WEIGHTS_FILE), parameters, {"format": "mlx"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def _adapted_blocks(model: nn.Module, layers: int | None) -> list[nn.Module]:
    blocks: list[nn.Module] = list(model.layers)
    if layers is not None and layers > len(blocks):
        text = f"`adapter.layers` is {layers}; the model has {len(blocks)} blocks"
        raise JobError(FailureClass.CONFIG, text)
    return blocks if layers is None else blocks[-layers:]


def _linear_modules(blocks: Sequence[nn.Module]) -> list[str]:
    """Paths inside a block of everything an adapter fits on, each once, in the model's order."""
    found: dict[str, None] = {}
    for block in blocks:
        for path, module in block.named_modules():
            if isinstance(module, LINEAR_LAYERS) or hasattr(module, "to_lora"):
                found[path] = None
    return sorted(found)


def _lora_parameters(config: AdapterConfig, modules: Sequence[str]) -> dict[str, Any]:
    return {
        "rank": config.rank,
        "scale": config.multiplier,
        "dropout": config.dropout,
        "keys": list(modules),
    }


def _key_dropouts(model: nn.Module, probability: float) -> tuple[KeyedDropout, ...]:
    """Replace the dropout of every adapter by one that is drawn from a key."""
    if probability == 0.0:
        return ()
    dropouts = []
    for _, module in model.named_modules():
        if "lora_a" in module:
            module.dropout = KeyedDropout(probability)
            dropouts.append(module.dropout)
    return tuple(dropouts)
