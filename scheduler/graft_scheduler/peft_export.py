"""An adapter in PEFT's format: other names, transposed matrices, and `alpha` in the place of the scale.

Needs no MLX: an adapter is small, and all that is done to it is arithmetic on a few arrays.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graft_scheduler.adapter_layers import Array, Layer, read_layers
from graft_scheduler.basemodels import CONFIG_FILE as MODEL_CONFIG
from graft_scheduler.basemodels import looks_like_path, read_json
from graft_scheduler.cards import BaseCard, Card, derived_card, is_hub_id, public_name, read_card, write_card
from graft_scheduler.errors import Conflict, InvalidInput, NotFound
from graft_scheduler.licences import UNKNOWN, find_licence

ADAPTER_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT's wrapper and the model inside it."""
BLOCK = re.compile(r"(.*?)\.(\d+)\.(.+)")
"""A module inside a block: what holds the blocks, the block's number, the path inside it."""

SAME_NAMES: frozenset[str] = frozenset(
    {
        "cohere",
        "ernie4_5",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "granite",
        "hunyuan_v1_dense",
        "llama",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo2",
        "olmoe",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
"""Families of models whose linear layers mlx-lm and transformers call and store the same: of each, an adapted
model gave the same logits in both (tests/worker/engine/test_peft_logits.py; transformers 5.23, peft 0.21)."""
ROUTERS = (".gate", ".router", ".router.layer")
"""Ends of the paths of what chooses experts. In transformers these are no linear layers."""


@dataclass(frozen=True, slots=True)
class PeftExport:
    """What was written."""

    output: Path
    base: str
    """What PEFT is told to load."""
    modules: int
    ranks: tuple[int, int]
    """The smallest and the largest."""
    size_bytes: int
    notes: tuple[str, ...]


def export_peft(
    adapter: Path, output: Path, model: str | None = None, base_name: str | None = None
) -> PeftExport:
    """Write the adapter in the folder `adapter` as PEFT has it to `output`, which appears whole.

    `model` is its base, as a folder or hub id, where the adapter's record does not say or that was quantised;
    `base_name` what PEFT shall load, where that is another name for it.

    Raises:
        NotFound: there is no adapter, or the base's config cannot be had.
        InvalidInput: PEFT or transformers cannot express it; names the module or the family.
        Conflict: the output exists.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise Conflict(f"{output} exists and is not empty; name another with `-o`, or remove it")
    config = _read_config(adapter)
    source = model or config.get("model")
    if not source:
        raise InvalidInput(
            f"the adapter in {adapter} does not say which base it belongs to; name it with `--model`"
        )
    base = _base_config(str(source), None if model else config.get("revision"))
    _check_base(str(source), base)
    name = base_name or public_name(str(source), is_local=looks_like_path(str(source)))
    modules = [module.trimmed() for module in read_layers(adapter)]
    _check_modules(modules, base)
    revision = None if model or base_name else config.get("revision")
    peft = _peft_config(modules, config["lora_parameters"], name, revision)
    notes = _notes(config, name)
    size = _write(output, modules, peft, _card(adapter, str(source), name, is_same=base_name is not None))
    ranks = [module.rank for module in modules]
    return PeftExport(output, name, len(modules), (min(ranks), max(ranks)), size, notes)


def _read_config(adapter: Path) -> dict[str, Any]:
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise NotFound(f"there is no adapter in {adapter}: it has no {ADAPTER_CONFIG}")
    config = read_json(adapter / ADAPTER_CONFIG, "train again, or pull it again")
    if config.get("fine_tune_type") == "full":
        raise InvalidInput(
            f"{adapter} is a full fine-tune: all weights changed, and PEFT has adapters only; `graft fuse` "
            "makes a model of it that transformers loads"
        )
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict) or not isinstance(parameters.get("scale"), int | float):
        raise InvalidInput(
            f"{adapter / ADAPTER_CONFIG} has no `lora_parameters.scale`; it is no adapter of mlx-lm's"
        )
    return config


def _base_config(source: str, revision: str | None) -> dict[str, Any]:
    """The `config.json` of the base, from its folder or the hub."""
    if looks_like_path(source):
        path = Path(source).expanduser() / MODEL_CONFIG
        if not path.is_file():
            raise NotFound(f"{path} does not exist; `--model` names the base where it is now")
        return read_json(path, "")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise NotFound(
            f"the config of {source} is on the hub; `pip install huggingface_hub`, or name a folder"
        ) from error
    try:
        return read_json(Path(hub.hf_hub_download(source, MODEL_CONFIG, revision=revision)), "")
    except InvalidInput:
        raise
    except Exception as error:  # offline, proxies, names refused: its errors change with the version
        line = str(error).strip().splitlines()[0]
        raise NotFound(
            f"the config of {source} cannot be had from the hub: {line}; name a folder with `--model`"
        ) from error


def _check_base(source: str, config: Mapping[str, Any]) -> None:
    family = config.get("model_type")
    if config.get("quantization") or config.get("quantization_config"):
        raise InvalidInput(
            f"{source} is quantised in MLX's form, which transformers does not load; name its full-precision "
            "original with `--model`"
        )
    if family not in SAME_NAMES:
        known = ", ".join(sorted(SAME_NAMES))
        raise InvalidInput(
            f"{source} is of the family `{family}`, whose layers were not compared with those of "
            f"transformers; `graft fuse` makes a model of it. Known are {known}"
        )


def _check_modules(modules: list[Layer], base: Mapping[str, Any]) -> None:
    for module in modules:
        if module.path.endswith(ROUTERS):
            raise InvalidInput(
                f"`{module.path}` chooses experts, which PEFT does not adapt in transformers; leave it out "
                "of `adapter.targets`, or use `graft fuse`"
            )
        if BLOCK.fullmatch(module.path):
            continue
        if module.path != "lm_head" or base.get("tie_word_embeddings"):
            raise InvalidInput(
                f"`{module.path}` lies outside the blocks, and PEFT adapts embeddings otherwise; leave it "
                "out of the adapter, or use `graft fuse`"
            )


def _peft_config(
    modules: list[Layer], parameters: Mapping[str, Any], base: str, revision: str | None
) -> dict[str, Any]:
    """Of one rank and alpha for most modules, with patterns for the others: alpha is scale times rank."""
    scale = float(parameters["scale"])
    ranks = [module.rank for module in modules]
    rank = max(set(ranks), key=lambda one: (ranks.count(one), one))
    others = {module.path: module.rank for module in modules if module.rank != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": _number(scale * rank),
        "rank_pattern": others,
        "alpha_pattern": {path: _number(scale * own) for path, own in others.items()},
        "target_modules": _targets(modules),
        "lora_dropout": float(parameters.get("dropout") or 0.0),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": modules[0].magnitude is not None,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _targets(modules: list[Layer]) -> list[str]:
    """Full paths: an end of one might fit a layer that was never trained."""
    return sorted(module.path for module in modules)


def _notes(config: Mapping[str, Any], base: str) -> tuple[str, ...]:
    notes = []
    if config.get("base_quantization"):
        notes.append("it was trained on a quantised base, and answers slightly otherwise on the whole one")
    if not is_hub_id(base):
        notes.append(
            f"it says that its base is called {base}, and not where that is; `--base-name org/name` writes "
            "its name on the hub"
        )
    return tuple(notes)


def _card(adapter: Path, source: str, name: str, *, is_same: bool) -> Card:
    """That of the adapter, with `name` for its base; `is_same` where that is no other base than its own."""
    own = read_card(adapter)
    method = str(read_json(adapter / ADAPTER_CONFIG, "").get("fine_tune_type") or "lora")
    if own is not None and (is_same or own.base.name == name):
        base = own.base.model_copy(update={"name": name})
    else:
        licence = find_licence(Path(source).expanduser()) if looks_like_path(source) else UNKNOWN
        base = BaseCard(name=name, licence=licence)
    return derived_card(own, "peft", base, method)


def _write(output: Path, modules: list[Layer], config: dict[str, Any], card: Card) -> int:
    from safetensors.numpy import save_file

    aside = output.parent / f".partial-{output.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        save_file(peft_arrays(modules), aside / PEFT_WEIGHTS, {"format": "pt"})
        (aside / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        write_card(aside, card)
        size = (aside / PEFT_WEIGHTS).stat().st_size
        if output.exists():
            output.rmdir()  # it is empty
        os.replace(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return size


def peft_arrays(modules: list[Layer]) -> dict[str, Array]:
    """The arrays by PEFT's names, as torch's linear layers have them: (outputs, inputs)."""
    arrays: dict[str, Array] = {}
    for module in modules:
        stem = f"{PREFIX}{module.path}."
        arrays[f"{stem}lora_A.weight"] = np.ascontiguousarray(module.a.T)
        arrays[f"{stem}lora_B.weight"] = np.ascontiguousarray(module.b.T)
        if module.magnitude is not None:
            arrays[f"{stem}lora_magnitude_vector"] = np.ascontiguousarray(module.magnitude)
    return arrays


def _number(value: float) -> int | float:
    """Whole numbers as such, which is how PEFT's own files have them."""
    return int(value) if math.isclose(value, round(value)) and value == round(value) else value
