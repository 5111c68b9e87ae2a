"""What safetensors files hold, read from their headers alone: names, shapes, dtypes, bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from graft_scheduler.errors import InvalidInput

LENGTH_BYTES = 8
"""A file starts with the length of its JSON header, as a little-endian integer."""
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header."""

    dtype: str
    """In the format's words: `BF16`, `F32`, `U32`, ..."""
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_headers(files: list[Path]) -> dict[str, Tensor]:
    """Every tensor in these files by name.

    Raises:
        InvalidInput: a file is missing, cut short or not in the safetensors format.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors.update(_read_header(path))
    return tensors


def _read_header(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        tensors = {name: _tensor(entry) for name, entry in header.items() if name != "__metadata__"}
        size_bytes = path.stat().st_size
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(f"{path} is not a safetensors file; download it again") from error
    expected = LENGTH_BYTES + length + sum(tensor.size_bytes for tensor in tensors.values())
    if size_bytes < expected:
        raise InvalidInput(f"{path} is cut short: {size_bytes} bytes of {expected}; download it again")
    return tensors


def _tensor(entry: dict[str, list[int]]) -> Tensor:
    start, end = entry["data_offsets"]
    return Tensor(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]), int(end) - int(start))
