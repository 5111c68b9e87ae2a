"""A model's folder: weights in shards with an index, its config, and what lay beside the base's weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx

from graft_scheduler.basemodels import CONFIG_FILE, INDEX_FILE
from graft_scheduler.errors import Conflict

SHARD_BYTES = 2 << 30
"""Where one file of weights ends and the next begins. No more than this is in memory while writing."""
SPARE_BYTES = 256 << 20
"""What a disk must have beyond the weights."""
LEFT_BEHIND = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".md")
"""Files of a base that are not copied: weights in whatever form, and what was written about the base."""
QUANTIZATION_KEYS = ("quantization", "quantization_config")

Named = tuple[str, mx.array]


def write_weights(folder: Path, tensors: Iterable[Named], layout: str) -> int:
    """Compute and write `tensors` one after the other; how many bytes they have.

    `layout` says whose names they have, in the words of the files' metadata: `pt` or `mlx`.
    """
    shards: list[Path] = []
    shard: dict[str, mx.array] = {}
    where: dict[str, int] = {}
    size = total = 0

    def close() -> None:
        nonlocal size
        path = folder / f".shard-{len(shards)}.safetensors"
        mx.save_safetensors(str(path), shard, {"format": layout})
        where.update(dict.fromkeys(shard, len(shards)))
        shards.append(path)
        shard.clear()
        size = 0
        mx.clear_cache()

    for name, array in tensors:
        if shard and size + array.nbytes > SHARD_BYTES:
            close()
        mx.eval(array)
        shard[name] = array
        size += array.nbytes
        total += array.nbytes
        del array
    close()
    _name_shards(folder, shards, where, total)
    return total


def copy_beside(source: Path, folder: Path) -> None:
    """Copy what lies beside a base's weights: its tokenizer, templates and code; no config, no weights."""
    for path in sorted(source.iterdir()):
        is_weight = path.suffix in LEFT_BEHIND or path.name == INDEX_FILE
        if path.is_file() and not is_weight and not path.name.startswith(".") and path.name != CONFIG_FILE:
            shutil.copyfile(path, folder / path.name)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write the model's config."""
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def whole_config(config: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """`config` of a model that is not quantised, and whose weights are in `dtype` if that is another now."""
    kept = {name: value for name, value in config.items() if name not in QUANTIZATION_KEYS}
    text = kept.get("text_config")
    if isinstance(text, dict):
        kept["text_config"] = {name: value for name, value in text.items() if name not in QUANTIZATION_KEYS}
    names = [name for name in ("dtype", "torch_dtype") if name in kept] or ["dtype"]
    return kept if dtype is None else {**kept, **dict.fromkeys(names, dtype)}


def check_room(folder: Path, size: int) -> None:
    """Go on if the disk of `folder`, which need not exist, has room for `size` bytes of weights.

    Raises:
        Conflict: it has not; says how much is missing.
    """
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < size + SPARE_BYTES:
        needed, has = ((value + (1 << 20) - 1) >> 20 for value in (size + SPARE_BYTES, free))
        raise Conflict(f"{folder} needs {needed} MiB on a disk that has {has} MiB left; name another output")


def _name_shards(folder: Path, shards: list[Path], where: dict[str, int], total: int) -> None:
    """Give the files the names that everybody looks for, now that their number is known."""
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [
            f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
        ]
    for path, name in zip(shards, names, strict=True):
        path.rename(folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {tensor: names[number] for tensor, number in sorted(where.items())},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
