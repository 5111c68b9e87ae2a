"""What of a base model is trained: adapters on its layers or its own weights, and their files.

The files are mlx-lm's: stock `mlx_lm.load(adapter_path=...)` reads every folder written here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from graft_scheduler.basemodels import looks_like_path
from graft_scheduler.cards import public_name
from graft_scheduler.hyperparameters import BranchDtype, Method
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import is_target
from graft_scheduler.states import FailureClass
from graft_worker.engine.dropout import KeyedDropout
from graft_worker.engine.layers import share_inputs, speed_up
from graft_worker.link import JobError

Parameters = dict[str, mx.array]
"""Trainable arrays by their path in the model."""

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
LINEAR_LAYERS = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)


@dataclass(frozen=True, slots=True)
class Adapted:
    """A base model with what is trained of it: adapters, or its own weights."""

    model: nn.Module
    method: Method
    blocks: Sequence[nn.Module]
    """Those that have adapters, or that learn."""
    modules: tuple[str, ...]
    """The adapted modules, by their path inside a block; none in a full fine-tune."""
    dropouts: tuple[KeyedDropout, ...]
    masters: Parameters
    """The trainable arrays as they start, in float32, until `take` hands them over."""
    shapes: dict[str, tuple[int, ...]]
    """Of the trainable arrays."""
    dtypes: dict[str, mx.Dtype]
    """What each of them is computed in."""
    adds_nothing: bool = False
    """As they start: every product is zero, and the model its base to the last bit."""

    @property
    def size(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def frozen_blocks(self) -> list[nn.Module]:
        """Those below the first that has adapters, or that learns."""
        every: list[nn.Module] = list(self.model.layers)
        return every[: len(every) - len(self.blocks)]

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What decides how they are computed, but for their rank and their numbers."""
        return self.method, self.modules, len(self.blocks), frozenset(self.dtypes.values())

    def take(self) -> Parameters:
        """The masters, which are the caller's from now on: a copy here would live as long as the job."""
        masters = dict(self.masters)
        self.masters.clear()
        return masters

    def computed(self, parameters: Parameters) -> Parameters:
        """`parameters` in the dtypes they are computed in; a gradient goes through."""
        return {name: value.astype(self.dtypes[name]) for name, value in parameters.items()}

    def put(self, parameters: Parameters) -> None:
        """Make `parameters` the model's own, in the dtypes they are computed in."""
        self.model.update(tree_unflatten(list(self.computed(parameters).items())))


def attach(model: nn.Module, spec: TrainJob, base_dtype: mx.Dtype) -> Adapted:
    """Make of a frozen `model` what `spec` trains; adapters start from its seed alone.

    Raises:
        JobError: a target or a number of layers that the model does not have; class `config`.
    """
    blocks = _last_blocks(model, spec.adapter.layers)
    if spec.method is Method.FULL:
        return _unfreeze(model, blocks, everything=spec.adapter.layers is None)
    modules = choose_modules(_linear_modules(blocks), spec.adapter.targets)
    is_dora = spec.method is Method.DORA
    if is_dora:
        _check_dora(blocks, modules)
    mx.random.seed(spec.seed)
    linear_to_lora_layers(model, len(blocks), lora_parameters(spec, modules), use_dora=is_dora)
    speed_up(model)
    dropouts = _key_dropouts(model, spec.adapter.dropout)
    if not dropouts:
        share_inputs(model)
    branch = _branch_dtype(spec.compute.branch_dtype, base_dtype)
    trainable: Parameters = dict(tree_flatten(model.trainable_parameters()))
    masters = {name: value.astype(mx.float32) for name, value in trainable.items()}
    # DoRA's magnitudes stay in float32: they are divided by norms, and are few.
    dtypes = {name: mx.float32 if name.endswith(".m") else branch for name in masters}
    shapes = _shapes(masters)
    is_base = not is_dora and _is_zero(masters)
    return _ready(Adapted(model, spec.method, blocks, modules, dropouts, masters, shapes, dtypes, is_base))


def _is_zero(masters: Parameters) -> bool:
    """Whether these are pairs of A and B, and every B is zero."""
    if not all(name.endswith(("lora_a", "lora_b")) for name in masters):
        return False
    return (
        not mx.stack([value.any() for name, value in masters.items() if name.endswith("lora_b")]).any().item()
    )


def _ready(adapted: Adapted) -> Adapted:
    mx.eval(adapted.masters)
    adapted.put(adapted.masters)
    # Also for gradients before the first step: models choose kernels without one when they evaluate.
    adapted.model.train()
    return adapted


def _unfreeze(model: nn.Module, blocks: list[nn.Module], *, everything: bool) -> Adapted:
    """Every weight learns, embeddings and norms too; with fewer blocks than all, those blocks'."""
    for module in [model] if everything else blocks:
        module.unfreeze()
    arrays: Parameters = dict(tree_flatten(model.trainable_parameters()))
    trainable = {name: value for name, value in arrays.items() if mx.issubdtype(value.dtype, mx.floating)}
    masters = {name: value.astype(mx.float32) for name, value in trainable.items()}
    dtypes = {name: value.dtype for name, value in trainable.items()}
    return _ready(Adapted(model, Method.FULL, blocks, (), (), masters, _shapes(masters), dtypes))


def _shapes(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in parameters.items()}


def _branch_dtype(asked: BranchDtype, base: mx.Dtype) -> mx.Dtype:
    if asked is BranchDtype.FLOAT32 or (asked is BranchDtype.AUTO and base == mx.float16):
        return mx.float32
    return base


def _check_dora(blocks: Sequence[nn.Module], modules: Sequence[str]) -> None:
    for block in blocks:
        for path, module in block.named_modules():
            if path in modules and not isinstance(module, (nn.Linear, nn.QuantizedLinear)):
                text = f"dora does not fit `{path}` ({type(module).__name__}); use lora, or leave it out of"
                raise JobError(FailureClass.CONFIG, f"{text} `adapter.targets`")


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


def adapter_config(
    adapted: Adapted, spec: TrainJob, quantization: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `adapter_config.json` says: how mlx-lm has to attach the adapters, and to which base.

    A base that is a folder is called by its name: adapters go to others, and mlx-lm is told where it is.
    `quantization` is what the base was quantised to when it was loaded; mlx-lm passes over it.
    """
    is_full = adapted.method is Method.FULL
    return {
        "fine_tune_type": "lora" if adapted.method is Method.QLORA else adapted.method.value,
        "num_layers": len(adapted.blocks),
        "lora_parameters": None if is_full else lora_parameters(spec, adapted.modules),
        "model": public_name(spec.model.source, is_local=_is_local(spec)),
        "revision": spec.model.revision,
        "model_digest": spec.model.digest,
        "base_quantization": quantization,
    }


def _is_local(spec: TrainJob) -> bool:
    return spec.model.digest is not None or looks_like_path(spec.model.source)


def write_adapter(folder: Path, parameters: Parameters, config: dict[str, Any]) -> None:
    """Write the two files into `folder`, which exists."""
    mx.save_safetensors(str(folder / WEIGHTS_FILE), parameters, {"format": "mlx"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def lora_parameters(spec: TrainJob, modules: Sequence[str]) -> dict[str, Any]:
    """The adapters' shape in mlx-lm's words."""
    return {
        "rank": spec.adapter.trained_rank,
        "scale": spec.adapter.multiplier,
        "dropout": spec.adapter.dropout,
        "keys": list(modules),
    }


def _last_blocks(model: nn.Module, layers: int | None) -> list[nn.Module]:
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
