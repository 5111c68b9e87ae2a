"""GGUF files, read back with the format's own reader. docs/exporting.md: what llama.cpp makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from mlx_lm.models.rope_utils import initialize_rope

import graft_worker
from graft_cli import samples
from graft_scheduler.errors import Conflict
from graft_scheduler.exports import FuseOrder, GgufOrder
from graft_scheduler.jobs import TrainJob
from graft_worker.engine.gguf_model import plan_gguf
from graft_worker.exporting import make
from graft_worker.link import JobError
from tests.worker.engine.test_exporting import Trained, order_of, quiet, tensors
from tests.worker.engine.tiny import make_model

MakeJob = Callable[..., TrainJob]
SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TOKENIZER = Path(samples.__file__).parent / "samples" / "base"


def make_base(folder: Path, **changes: Any) -> Path:
    """A tiny Llama with a tokenizer that has merges."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    settings = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500.0, "vocab_size": 1540}
    make_model(folder, **{**settings, "rope_scaling": SCALING, "max_position_embeddings": 2048, **changes})
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> tuple[GGUFReader, dict[str, Any], Path]:
    """A file, the fused tensors that it is made of, and its base."""
    folder = tmp_path_factory.mktemp("gguf")
    base = make_base(folder / "base")
    settings = {"model": str(base), "data": str(texts), "batch_size": 4, "steps": 4, "adapter": {"rank": 4}}
    graft_worker.train(TrainJob.model_validate(settings), folder / "out", tell=lambda message: None)
    adapter = Trained(folder / "out" / "adapter", str(base))
    make(order_of(FuseOrder, adapter, folder / "fused", texts), quiet)

    report = make(order_of(GgufOrder, adapter, folder / "m.gguf", texts), quiet)

    assert sorted(path.name for path in folder.iterdir()) == ["base", "fused", "m.gguf", "out"]
    assert report.form == "float32"
    with pytest.raises(Conflict, match="exists"):
        make(order_of(GgufOrder, adapter, folder / "m.gguf", texts), quiet)
    fused = {name: np.array(value) for name, value in tensors(folder / "fused").items()}
    return GGUFReader(folder / "m.gguf"), fused, base


def test_every_tensor_is_there_with_the_halves_of_queries_and_keys_interleaved(
    written: tuple[GGUFReader, dict[str, Any], Path],
) -> None:
    reader, fused, _ = written
    found = {tensor.name: tensor for tensor in reader.tensors}

    assert len(found) == len(fused) + 1  # the factors of rotary frequencies
    assert found["token_embd.weight"].tensor_type is GGMLQuantizationType.F32
    np.testing.assert_array_equal(found["token_embd.weight"].data, fused["model.embed_tokens.weight"])
    np.testing.assert_array_equal(
        found["blk.1.ffn_down.weight"].data, fused["model.layers.1.mlp.down_proj.weight"]
    )
    for name, own, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        rows = fused[f"model.layers.0.self_attn.{own}.weight"]
        size = len(rows) // heads
        order = [
            head * size + half * size // 2 + n
            for head in range(heads)
            for n in range(size // 2)
            for half in (0, 1)
        ]
        np.testing.assert_array_equal(found[f"blk.0.{name}.weight"].data, rows[order])


def test_sizes_tokens_and_frequencies_are_those_of_the_base(
    written: tuple[GGUFReader, dict[str, Any], Path],
) -> None:
    reader, _, base = written
    values = {name: entry.contents() for name, entry in reader.fields.items()}
    vocabulary = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]

    assert values["general.architecture"] == "llama"
    assert values["general.base_model.0.name"] == "base"
    assert values["general.license"] == "unknown"
    assert values["llama.attention.head_count_kv"] == 2
    assert values["llama.rope.freq_base"] == 500.0
    assert values["tokenizer.ggml.pre"] == "gpt-2"
    assert values["tokenizer.ggml.tokens"][vocabulary["Ġt"]] == "Ġt"
    assert values["tokenizer.ggml.tokens"][1539] == "[PAD1539]"
    kinds = values["tokenizer.ggml.token_type"]
    assert (kinds[0], kinds[300], kinds[1539]) == (TokenType.CONTROL, TokenType.NORMAL, TokenType.UNUSED)
    assert values["tokenizer.ggml.eos_token_id"] == 2
    rope = initialize_rope(8, 500.0, False, SCALING, 2048)
    plain = 500.0 ** (np.arange(0, 8, 2) / 8)
    factors = next(tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    np.testing.assert_allclose(factors, np.array(rope._freqs) / plain, rtol=1e-5)
    assert factors.max() > 2


@pytest.mark.parametrize(
    ("model", "tokenizer", "words"),
    [
        ({"model_type": "gpt2"}, {}, "is of the family `gpt2`, and GGUF files are written of llama, mistral"),
        ({"rope_scaling": {"type": "longrope"}}, {}, "scales its positions by `longrope`"),
        ({}, {"model": {"type": "BPE", "byte_fallback": True}}, "a tokenizer of the kind SentencePiece"),
        ({}, {"model": {"type": "BPE", "merges": []}}, "without merges"),
        ({}, {"pre_tokenizer": {"type": "Whitespace"}}, "whose way to cut text was not compared"),
        ({}, {"normalizer": {"type": "Lowercase"}}, "changes text before it cuts it"),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused_before_anything_is_computed(
    tmp_path: Path, model: dict[str, Any], tokenizer: dict[str, Any], words: str
) -> None:
    base = make_base(tmp_path / "base")
    edit(base / "config.json", **model)
    edit(base / "tokenizer.json", **tokenizer)

    with pytest.raises(JobError, match=words):
        plan_gguf(base)
