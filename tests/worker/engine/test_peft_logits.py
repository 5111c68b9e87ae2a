"""Adapters in PEFT's format give the same logits in transformers and peft as in MLX, family by family.

Neither torch nor peft is installed for the other tests: a gigabyte, for what changes only when this does.
With both in the environment (`pip install torch peft`), these run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from graft_scheduler.peft_export import SAME_NAMES, export_peft
from tests.worker.engine.families import build_family

TOKENS = [1, 40, 50, 60, 70, 80, 90, 41]


def save_base(folder: Path, family: str) -> None:
    """A random model of the family, as mlx-lm and transformers both read it."""
    mx.random.seed(3)
    model, config = build_family(family)
    model.update(tree_map_with_path(_drawn, model.parameters()))
    whole: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    arrays = dict(own for name, value in whole.items() for own in unstacked(family, name, value))
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 0, "dtype": "float32", **config}))


def save_adapter(base: Path, folder: Path, *, dora: bool, layers: int) -> mx.array:
    """A random adapter of all dense layers; the logits of the base with it, in MLX."""
    model, _ = load_model(base)
    keys = sorted(
        path
        for path, module in model.layers[-1].named_modules()
        if isinstance(module, nn.Linear) and is_dense(path)
    )
    settings = {"rank": 3, "scale": 2.5, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, layers, settings, use_dora=dora)
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    adapter = {
        name: value + 0.3 * mx.random.normal(value.shape)
        for name, value in arrays.items()
        if name.rpartition(".")[2] in {"lora_a", "lora_b", "m"}
    }
    model.load_weights(list(adapter.items()), strict=False)
    mx.save_safetensors(str(folder / "adapters.safetensors"), adapter)
    kind = "dora" if dora else "lora"
    config = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": settings, "model": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    logits: mx.array = model(mx.array([TOKENS]))
    return logits


def unstacked(family: str, name: str, value: mx.array) -> list[tuple[str, mx.array]]:
    """The experts of a layer one by one, as the hub has them; anything else as it is."""
    if ".switch_mlp." not in name:
        return [(name, value)]
    own = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"} if family == "mixtral" else {}
    block, _, matrix = name.removesuffix(".weight").partition(".switch_mlp.")
    return [(f"{block}.experts.{n}.{own.get(matrix, matrix)}.weight", one) for n, one in enumerate(value)]


def is_dense(path: str) -> bool:
    """Whether it is no router: those of mlx-lm have other names."""
    return not path.endswith((".gate", "router.layer", ".router"))


def _drawn(path: str, value: mx.array) -> mx.array:
    return value + 0.1 * mx.random.normal(value.shape) if value.ndim == 1 else value


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", sorted(SAME_NAMES))
def test_peft_gives_the_logits_of_mlx(tmp_path: Path, family: str, dora: bool) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed: PEFT is not run")
    peft: Any = pytest.importorskip("peft", reason="peft is not installed: PEFT is not run")
    from transformers import AutoModelForCausalLM

    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    save_base(tmp_path / "base", family)
    plain = np.array(load_model(tmp_path / "base")[0](mx.array([TOKENS])))
    expected = np.array(save_adapter(tmp_path / "base", tmp_path / "adapter", dora=dora, layers=1))

    export_peft(tmp_path / "adapter", tmp_path / "peft")

    base = AutoModelForCausalLM.from_pretrained(str(tmp_path / "base"), dtype=torch.float32)
    with torch.no_grad():
        before = base(torch.tensor([TOKENS])).logits.numpy()
        tuned = peft.PeftModel.from_pretrained(base, str(tmp_path / "peft"))
        found = tuned(torch.tensor([TOKENS])).logits.numpy()
    apart, bases_apart = np.abs(found - expected).max(), np.abs(before - plain).max()
    sys.stdout.write(
        f"{family} {'dora' if dora else 'lora'}: {apart:.1e} apart, the bases {bases_apart:.1e}\n"
    )
    assert bases_apart < 3e-3  # the two libraries approximate gelu differently
    assert np.abs(found - before).max() > 20 * apart
    assert apart < max(1e-4, 4 * bases_apart)
