"""What a base model is, read from its files without its weights: shape, size, dtype, tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from graft_scheduler.anatomy import Anatomy
from graft_scheduler.anatomy_families import UNGROUPED
from graft_scheduler.anatomy_reading import read_anatomy
from graft_scheduler.errors import InvalidInput
from graft_scheduler.tensors import Tensor, read_headers

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_PATTERN = "model*.safetensors"
"""The files that mlx-lm loads; others in the folder, such as adapters, are not the base."""
TOKENIZER_FILES = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json"})
TEMPLATE_FILES = frozenset({"chat_template.jinja", "chat_template.json"})
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Dtypes that a model computes in, by their safetensors names."""
HEAD_NAMES = ("lm_head", "embed_out", "output")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    "head_dim": ("head_dim",),
    "intermediate_size": ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "vocab_size": ("vocab_size",),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token"),
}
"""Our names, and the names that model families use in `config.json`."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How most of the weights are quantised; single layers may differ."""

    bits: int
    group_size: int


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The facts about a base that memory, placement and checks need."""

    model_type: str
    architecture: str | None
    """The class named in the config, such as `LlamaForCausalLM`."""
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    """Of one expert, where there are several."""
    vocab_size: int
    num_experts: int
    """1 for a dense model."""
    experts_per_token: int
    is_tied: bool
    """Input and output embeddings are one matrix."""
    quantization: Quantization | None
    weight_bytes: int
    """As stored; quantised weights stay so in memory."""
    parameters: int
    """Before quantisation."""
    dtype: str
    """What it computes in: `bfloat16`, `float16` or `float32`."""
    has_tokenizer: bool
    has_chat_template: bool
    anatomy: Anatomy
    """What its blocks compute."""
    largest_module: int
    """Parameters of the largest modules, which are loaded whole: the embeddings and one layer."""


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """What the weights add to the config."""

    size_bytes: int
    parameters: int
    dtype: str
    tensors: tuple[str, ...] = ()
    """Their names, as far as they are known."""
    has_head: bool | None = None
    """Whether there is an output matrix beside the embeddings; absent when only the config can tell."""


def looks_like_path(source: str) -> bool:
    """Whether a person means a folder here, rather than a hub id `org/name`."""
    if source.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(source):
        return True
    return Path(source).exists()


def local_folder(source: str) -> Path | None:
    """The model folder that `source` means; `None` for a hub id.

    Raises:
        InvalidInput: it means a folder that does not exist; names the nearest that does.
    """
    if not looks_like_path(source):
        return None
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InvalidInput(f"`model` is {source!r}, a file; give the folder that holds {CONFIG_FILE}")
    hint = "" if "/" in source else "; a hub id is written `org/name`"
    raise InvalidInput(f"`model` is {source!r}, and there is no such folder{_nearest_folder(folder)}{hint}")


def read_base_model(folder: Path) -> BaseModel:
    """What the model in `folder` is.

    Raises:
        InvalidInput: no folder, config or weights, or not to be understood; says which and what to do.
    """
    if not folder.is_dir():
        raise InvalidInput(f"model folder {folder} does not exist{_nearest_folder(folder)}")
    config = read_json(folder / CONFIG_FILE, "a model folder needs the config.json of its model")
    tensors = read_headers(_weight_files(folder))
    names = {path.name for path in folder.iterdir()}
    has_template = bool(names & TEMPLATE_FILES) or _has_inline_template(folder)
    return describe(config, weigh(tensors, config), names, has_template, str(folder))


def weight_names(folder: Path) -> tuple[str, ...]:
    """The names of the model's arrays.

    Raises:
        InvalidInput: there are no weights, or they cannot be read.
    """
    return tuple(read_headers(_weight_files(folder)))


def describe(
    config: Mapping[str, Any], weights: WeightFacts, names: set[str], has_chat_template: bool, place: str
) -> BaseModel:
    """The model with this config, these weights and these files; `place` is for messages.

    Raises:
        InvalidInput: the config lacks a size, or one is no positive number.
    """
    if not isinstance(config.get("model_type"), str):
        raise InvalidInput(
            f"{place}: {CONFIG_FILE} has no `model_type`; it must name the architecture, e.g. llama"
        )
    flat = _flatten(config)
    hidden = _required(flat, "hidden_size", place)
    heads = _size(flat, "num_heads", max(1, hidden // 64), place)
    architectures = config.get("architectures")
    is_ungrouped = config["model_type"] in UNGROUPED
    sizes = {
        "hidden_size": hidden,
        "num_layers": _required(flat, "num_layers", place),
        "num_heads": heads,
        "num_kv_heads": heads if is_ungrouped else _size(flat, "num_kv_heads", heads, place),
        "head_dim": _size(flat, "head_dim", max(1, hidden // heads), place),
        "intermediate_size": _size(flat, "intermediate_size", 4 * hidden, place),
        "vocab_size": _required(flat, "vocab_size", place),
        "num_experts": _size(flat, "num_experts", 1, place),
        "experts_per_token": _size(flat, "experts_per_token", 1, place),
    }
    is_tied = weights.has_head is False or (
        weights.has_head is None and bool(flat.get("tie_word_embeddings", False))
    )
    embeddings = sizes["vocab_size"] * hidden * (1 if is_tied else 2)
    return BaseModel(
        model_type=config["model_type"],
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else None,
        **sizes,
        is_tied=is_tied,
        quantization=_quantization(config),
        weight_bytes=weights.size_bytes,
        parameters=weights.parameters,
        dtype=weights.dtype,
        has_tokenizer=bool(names & TOKENIZER_FILES),
        has_chat_template=has_chat_template,
        anatomy=read_anatomy(flat, sizes, weights.tensors, is_tied=is_tied),
        largest_module=embeddings + hidden * sizes["intermediate_size"] * sizes["num_experts"],
    )


def weigh(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> WeightFacts:
    """Bytes, parameters and dtype of these weights; packed ones count as what they stand for."""
    quantization = _quantization(config)
    parameters, by_dtype = 0, {"float32": 0}
    for name, tensor in tensors.items():
        parameters += _parameters(name, tensor, tensors, quantization)
        if dtype := DTYPES.get(tensor.dtype):
            by_dtype[dtype] = by_dtype.get(dtype, 0) + tensor.size_bytes
    return WeightFacts(
        size_bytes=sum(tensor.size_bytes for tensor in tensors.values()),
        parameters=parameters,
        dtype=max(by_dtype, key=lambda dtype: by_dtype[dtype]),
        tensors=tuple(tensors),
        has_head=any(name.removesuffix(".weight").endswith(HEAD_NAMES) for name in tensors),
    )


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Raises:
        InvalidInput: missing, unreadable, or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist; {remedy}") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"{path} is not valid JSON: {error}; download the model again") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} holds no JSON object; download the model again")
    return value


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: those the index names, or all that mlx-lm would load."""
    if (folder / INDEX_FILE).exists():
        named = read_json(folder / INDEX_FILE, "download the model again").get("weight_map")
        if isinstance(named, dict) and named:
            return [folder / Path(str(name)).name for name in sorted(set(named.values()))]
    if files := sorted(folder.glob(WEIGHTS_PATTERN)):
        return files
    others = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".gguf"})
    found = (
        f"it has {others[0]}, which must be converted first (mlx_lm.convert)" if others else "download them"
    )
    raise InvalidInput(f"model folder {folder} has no weights ({WEIGHTS_PATTERN}); {found}")


def _has_inline_template(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    return path.exists() and bool(read_json(path, "").get("chat_template"))


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's settings on one level: multimodal configs nest them in `text_config`."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else dict(config)


def _size(flat: Mapping[str, Any], name: str, default: int, place: str) -> int:
    for alias in _ALIASES[name]:
        value = flat.get(alias)
        if isinstance(value, list) and value:  # a size for each layer, as in Gemma 3n: the largest counts
            value = max(value, key=lambda one: one if isinstance(one, int) else -1)
        if value is None or (value == 0 and default):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidInput(
                f"{place}: `{alias}` in {CONFIG_FILE} is {value!r}; it must be a whole number above 0"
            )
        return value
    return default


def _required(flat: Mapping[str, Any], name: str, place: str) -> int:
    if not (value := _size(flat, name, 0, place)):
        raise InvalidInput(
            f"{place}: {CONFIG_FILE} has no `{_ALIASES[name][0]}`; it must give the model's sizes"
        )
    return value


def _quantization(config: Mapping[str, Any]) -> Quantization | None:
    found = config.get("quantization") or config.get("quantization_config")
    if not isinstance(found, dict) or not isinstance(found.get("bits"), int):
        return None
    group_size = found.get("group_size")
    return Quantization(found["bits"], group_size if isinstance(group_size, int) and group_size > 0 else 64)


def _parameters(
    name: str, tensor: Tensor, tensors: Mapping[str, Tensor], quantization: Quantization | None
) -> int:
    """How many parameters a tensor stands for; scales and biases of a packed one stand for none."""
    stem, _, kind = name.rpartition(".")
    packed = tensors.get(f"{stem}.weight")
    if packed is None or packed.dtype != "U32" or f"{stem}.scales" not in tensors or quantization is None:
        return tensor.elements
    if kind != "weight":
        return 0 if kind in {"scales", "biases"} else tensor.elements
    return tensors[f"{stem}.scales"].elements * quantization.group_size


def _nearest_folder(folder: Path) -> str:
    """`; did you mean ...?` with a folder beside the one named, or nothing."""
    parent = folder.parent
    if not parent.is_dir():
        return f" (nor is there {parent})"
    siblings = [path.name for path in parent.iterdir() if path.is_dir()]
    close = get_close_matches(folder.name, siblings, n=1, cutoff=0.6)
    return f"; did you mean {parent / close[0]}?" if close else ""
