"""The adapted layers in an adapter's file, as plain arrays; nothing of MLX is needed for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft_scheduler.errors import InvalidInput, NotFound

Array = NDArray[np.float32]

WEIGHTS = "adapters.safetensors"
PARTS = ("lora_a", "lora_b", "m")


@dataclass(frozen=True, slots=True)
class Layer:
    """One adapted layer."""

    path: str
    a: Array
    """(inputs, rank)"""
    b: Array
    """(rank, outputs)"""
    magnitude: Array | None

    @property
    def rank(self) -> int:
        return int(self.a.shape[1])

    def trimmed(self) -> Layer:
        """Without the columns that are zero in both, as rank `auto` leaves them behind."""
        used = np.flatnonzero(self.a.any(axis=0) | self.b.any(axis=1))
        rank = max(int(used[-1]) + 1 if len(used) else 1, 1)
        return Layer(self.path, self.a[:, :rank], self.b[:rank], self.magnitude)


def read_layers(adapter: Path) -> list[Layer]:
    arrays = _read_arrays(adapter / WEIGHTS)
    by_path: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        path, _, part = name.rpartition(".")
        if part not in PARTS:
            raise InvalidInput(f"`{name}` is no part of an adapter that PEFT knows")
        by_path.setdefault(path, {})[part] = array
    modules = []
    for path, parts in by_path.items():
        if not {"lora_a", "lora_b"} <= parts.keys():
            raise InvalidInput(f"`{path}` has no A and B; the adapter is not complete")
        if parts["lora_a"].ndim != 2:
            raise InvalidInput(
                f"`{path}` is a layer of experts, and PEFT has no adapters for each expert; leave it out of "
                "`adapter.targets`, or use `graft fuse`"
            )
        modules.append(Layer(path, parts["lora_a"], parts["lora_b"], parts.get("m")))
    if not modules:
        raise InvalidInput(f"{adapter / WEIGHTS} holds no adapted layer")
    return modules


def _read_arrays(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError, deserialize

    try:
        found = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist; pull the adapter again") from error
    except SafetensorError as error:
        raise InvalidInput(f"{path} is not a safetensors file: {error}; pull the adapter again") from error
    return {name: _as_float32(name, entry) for name, entry in found}


def _as_float32(name: str, entry: Mapping[str, Any]) -> Array:
    data, shape = bytes(entry["data"]), entry["shape"]
    match entry["dtype"]:
        case "F32":
            array = np.frombuffer(data, np.float32)
        case "F16":
            array = np.frombuffer(data, np.float16).astype(np.float32)
        case "BF16":  # the upper half of a float32
            array = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        case other:
            raise InvalidInput(f"`{name}` has the dtype {other}; adapters are float32, float16 or bfloat16")
    return array.reshape(shape)
