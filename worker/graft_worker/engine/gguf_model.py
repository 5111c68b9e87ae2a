"""A model's folder as one GGUF file for llama.cpp: its names, its sizes, its order of rotary halves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from graft_scheduler.basemodels import CONFIG_FILE
from graft_scheduler.cards import BaseCard
from graft_scheduler.states import FailureClass
from graft_worker.engine.base_files import read_tensors
from graft_worker.engine.gguf_tokenizer import OTHER_WAY, ByteTokenizer, read_tokenizer
from graft_worker.link import JobError

ARCHITECTURES: dict[str, gguf.MODEL_ARCH] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""Families whose files llama.cpp was seen to load, with the same probabilities (docs/exporting.md)."""
KINDS: dict[mx.Dtype, tuple[GGMLQuantizationType, LlamaFileType]] = {
    mx.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    mx.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    mx.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
INTERLEAVED = gguf.MODEL_ARCH.LLAMA
"""llama.cpp turns neighbouring numbers of a head in this architecture, where others turn its two halves."""
DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """What is known of the file before anything is computed."""

    architecture: gguf.MODEL_ARCH
    config: Mapping[str, Any]
    tokenizer: ByteTokenizer

    @property
    def heads(self) -> int:
        return int(self.config["num_attention_heads"])

    @property
    def kv_heads(self) -> int:
        return int(self.config.get("num_key_value_heads") or self.heads)

    @property
    def head_size(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)

    @property
    def rope(self) -> Mapping[str, Any]:
        """How positions are scaled; newer configs have the base of the frequencies in there too."""
        found: Mapping[str, Any] = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        return found

    @property
    def theta(self) -> float:
        return float(self.rope.get("rope_theta") or self.config.get("rope_theta") or DEFAULT_THETA)

    @property
    def scaling(self) -> str:
        return str(self.rope.get("rope_type") or self.rope.get("type") or "default")


def plan_gguf(base: Path) -> GgufPlan:
    """What the file of a model with this base will be.

    Raises:
        JobError: llama.cpp would load something else, or the family is not known here; class `config`.
    """
    config = json.loads((base / CONFIG_FILE).read_bytes())
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise JobError(
            FailureClass.CONFIG,
            f"the base is of the family `{family}`, and GGUF files are written of {known}. {OTHER_WAY}",
        )
    plan = GgufPlan(ARCHITECTURES[family], config, read_tokenizer(base))
    if plan.scaling not in {"default", "linear", "llama3"}:
        text = f"the base scales its positions by `{plan.scaling}`, which is not written to GGUF files here"
        raise JobError(FailureClass.CONFIG, text)
    return plan


def write_model(plan: GgufPlan, fused: Path, path: Path, base: BaseCard, dtype: mx.Dtype | None) -> int:
    """Write the model in the folder `fused` to `path`, tensor by tensor; how many bytes those have."""
    tensors = read_tensors(fused)
    kind = dtype or next(array.dtype for array in tensors.values() if array.ndim > 1)
    writer = GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[plan.architecture])
    _write_origin(writer, path.stem, base)
    _write_sizes(writer, plan, kind)
    plan.tokenizer.write(writer, int(tensors["model.embed_tokens.weight"].shape[0]))
    entries = list(_entries(plan, tensors, kind))
    for entry in entries:
        writer.add_tensor_info(
            entry.name, entry.shape, np.dtype(np.uint16), entry.size_bytes, raw_dtype=entry.kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        writer.write_tensor_data(entry.take())
        mx.clear_cache()
    writer.close()
    return sum(entry.size_bytes for entry in entries)


@dataclass(slots=True)
class _Entry:
    """A tensor on its way into the file."""

    name: str
    array: mx.array | None
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    size_bytes: int

    def take(self) -> NDArray[Any]:
        """Its numbers; they are gone from here, or all that were read would stay in memory."""
        array, self.array = self.array, None
        assert array is not None
        if array.dtype == mx.bfloat16:  # numpy has no such dtype
            array = array.view(mx.uint16)
        return np.ascontiguousarray(np.array(array))


def _entries(plan: GgufPlan, tensors: dict[str, mx.array], kind: mx.Dtype) -> Iterator[_Entry]:
    names = gguf.get_tensor_name_map(plan.architecture, int(plan.config["num_hidden_layers"]))
    if (factors := _frequency_factors(plan)) is not None:
        yield _entry("rope_freqs.weight", factors, mx.float32)
    for own in list(tensors):
        if own.endswith("rotary_emb.inv_freq"):
            continue
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise JobError(
                FailureClass.CONFIG, f"`{own}` has no name in llama.cpp's files of this architecture"
            )
        array = _interleaved(plan, own, tensors.pop(own))
        yield _entry(
            name, array, mx.float32 if array.ndim == 1 else kind
        )  # vectors are float32 in every file


def _entry(name: str, array: mx.array, dtype: mx.Dtype) -> _Entry:
    return _Entry(name, array.astype(dtype), KINDS[dtype][0], array.shape, array.size * dtype.size)


def _interleaved(plan: GgufPlan, name: str, array: mx.array) -> mx.array:
    """Queries and keys with the two halves of each head's rows interleaved, where llama.cpp turns those."""
    if plan.architecture is not INTERLEAVED:
        return array
    heads = {"q_proj": plan.heads, "k_proj": plan.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return array
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _frequency_factors(plan: GgufPlan) -> mx.array | None:
    """What each rotary frequency is divided by since Llama 3.1: long waves by the factor, short ones by 1."""
    if plan.scaling != "llama3":
        return None
    rope = plan.rope
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    factors = []
    for place in range(0, plan.head_size, 2):
        wave = 2 * math.pi * plan.theta ** (place / plan.head_size)
        if wave < context / high:
            factors.append(1.0)
        elif wave > context / low:
            factors.append(factor)
        else:
            smooth = (context / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return mx.array(factors)


def _write_origin(writer: GGUFWriter, name: str, base: BaseCard) -> None:
    """What a card would say, which this one file has not."""
    writer.add_name(name)
    writer.add_license(base.licence)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base.name)


def _write_sizes(writer: GGUFWriter, plan: GgufPlan, kind: mx.Dtype) -> None:
    config = plan.config
    writer.add_file_type(KINDS[kind][1])
    writer.add_context_length(int(config.get("max_position_embeddings") or 2048))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(plan.heads)
    writer.add_head_count_kv(plan.kv_heads)
    writer.add_key_length(plan.head_size)
    writer.add_value_length(plan.head_size)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_dimension_count(plan.head_size)
    writer.add_rope_freq_base(plan.theta)
    if plan.scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(plan.rope["factor"]))
