"""PEFT's files against PEFT's own arithmetic, in numpy: names, shapes, and what each layer then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from graft_scheduler.errors import Conflict, GraftError, InvalidInput, NotFound
from graft_scheduler.peft_export import export_peft

Array = NDArray[np.float32]
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
INPUTS, OUTPUTS, SCALE = 12, 8, 2.5
rng = np.random.default_rng(5)


def numbers(*shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def lora(path: str, rank: int = 4, used: int | None = None) -> dict[str, Array]:
    """A layer's A and B, of whose columns only the first `used` are not zero."""
    a, b = numbers(INPUTS, rank), numbers(rank, OUTPUTS)
    a[:, used or rank :], b[used or rank :] = 0, 0
    return {f"{path}.lora_a": a, f"{path}.lora_b": b}


def write_base(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = {"model_type": "llama", "tie_word_embeddings": True, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_adapter(folder: Path, base: str, arrays: dict[str, Array], **changes: Any) -> Path:
    folder.mkdir()
    save_file(arrays, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 4, "scale": SCALE, "dropout": 0.1, "keys": ["self_attn.q_proj"]},
        "model": base,
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def peft_layer(folder: Path, path: str, weight: Array, x: Array) -> Array:
    """What PEFT 0.21 computes in a linear layer of this weight, from its files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    arrays = load_file(folder / "adapter_model.safetensors")
    stem = f"base_model.model.{path}"
    a, b = arrays[f"{stem}.lora_A.weight"], arrays[f"{stem}.lora_B.weight"]
    rank = config["rank_pattern"].get(path, config["r"])
    assert (a.shape, b.shape) == ((rank, weight.shape[1]), (weight.shape[0], rank))
    scaling = config["alpha_pattern"].get(path, config["lora_alpha"]) / rank
    update = (x @ a.T) @ b.T * scaling
    if not config["use_dora"]:
        return np.asarray(x @ weight.T + update)
    norms = np.linalg.norm(weight + scaling * (b @ a), axis=1)
    share = arrays[f"{stem}.lora_magnitude_vector"] / norms
    return np.asarray(share * (x @ weight.T + update))


def test_layers_compute_the_same_also_where_ranks_were_cut(tmp_path: Path) -> None:
    arrays = {**lora(Q), **lora(V, used=1), **lora("model.layers.1.self_attn.q_proj")}
    adapter = write_adapter(tmp_path / "adapter", str(write_base(tmp_path / "base")), arrays)

    found = export_peft(adapter, tmp_path / "peft", base_name="org/base")

    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (found.modules, found.ranks, found.base) == (3, (1, 4), "org/base")
    assert config["base_model_name_or_path"] == "org/base"
    assert config["target_modules"] == sorted({name.rpartition(".")[0] for name in arrays})
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 10, {V: 1})
    for path in (Q, V):
        weight, x = numbers(OUTPUTS, INPUTS), numbers(3, INPUTS)
        mlx = x @ weight.T + SCALE * (x @ arrays[f"{path}.lora_a"]) @ arrays[f"{path}.lora_b"]
        np.testing.assert_allclose(peft_layer(tmp_path / "peft", path, weight, x), mlx, rtol=1e-4, atol=1e-5)


def test_magnitudes_of_dora_travel_too(tmp_path: Path) -> None:
    arrays = {**lora(Q), f"{Q}.m": np.abs(numbers(OUTPUTS))}
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", str(base), arrays, fine_tune_type="dora")

    export_peft(adapter, tmp_path / "peft")

    weight, x = numbers(OUTPUTS, INPUTS), numbers(3, INPUTS)
    adapted = weight + SCALE * (arrays[f"{Q}.lora_a"] @ arrays[f"{Q}.lora_b"]).T
    mlx = x @ (arrays[f"{Q}.m"][:, None] * adapted / np.linalg.norm(adapted, axis=1, keepdims=True)).T
    np.testing.assert_allclose(peft_layer(tmp_path / "peft", Q, weight, x), mlx, rtol=1e-4, atol=1e-5)


EXPERTS = "model.layers.0.mlp.switch_mlp.up_proj"
STACKED = {f"{EXPERTS}.lora_a": numbers(2, 4, 12), f"{EXPERTS}.lora_b": numbers(2, 8, 4)}


@pytest.mark.parametrize(
    ("arrays", "base", "config", "kind", "words"),
    [
        (STACKED, {}, {}, InvalidInput, f"`{EXPERTS}` is a layer of experts"),
        (lora("model.layers.0.mlp.gate"), {}, {}, InvalidInput, "`model.layers.0.mlp.gate` chooses experts"),
        (lora("model.embed_tokens"), {}, {}, InvalidInput, "`model.embed_tokens` lies outside the blocks"),
        (lora("lm_head"), {}, {}, InvalidInput, "`lm_head` lies outside the blocks"),
        (lora(Q), {"model_type": "gpt2"}, {}, InvalidInput, "is of the family `gpt2`"),
        (lora(Q), {"quantization": {"bits": 4}}, {}, InvalidInput, "name its full-precision original"),
        (lora(Q), {}, {"fine_tune_type": "full"}, InvalidInput, "`graft fuse` makes a model of it"),
        (lora(Q), {}, {"model": None}, InvalidInput, "name it with `--model`"),
        (lora(Q), {}, {"model": "./gone"}, NotFound, "gone/config.json does not exist"),
        (lora(Q), {}, {"lora_parameters": {}}, InvalidInput, "has no `lora_parameters.scale`"),
        ({f"{Q}.lora_a": numbers(4, 2)}, {}, {}, InvalidInput, f"`{Q}` has no A and B"),
    ],
)
def test_what_peft_cannot_express_is_refused_in_words(
    tmp_path: Path,
    arrays: dict[str, Array],
    base: dict[str, Any],
    config: dict[str, Any],
    kind: type[GraftError],
    words: str,
) -> None:
    adapter = write_adapter(
        tmp_path / "adapter", str(write_base(tmp_path / "base", **base)), arrays, **config
    )

    with pytest.raises(kind) as error:
        export_peft(adapter, tmp_path / "peft")

    assert words in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", str(write_base(tmp_path / "base")), lora(Q))

    with pytest.raises(Conflict, match="exists and is not empty"):
        export_peft(adapter, tmp_path / "base")
    with pytest.raises(NotFound, match=r"it has no adapter_config.json"):
        export_peft(tmp_path, tmp_path / "peft")
