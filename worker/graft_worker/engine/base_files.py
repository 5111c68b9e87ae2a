"""A base's own files, with some of their tensors replaced: names, dtypes and order stay as they were.

What mlx-lm calls otherwise, stacks, shifts or leaves out (experts, vision towers, heads that predict further
tokens) is thereby kept as whoever made the base wrote it, and loads wherever the base does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx import nn

from graft_scheduler.basemodels import WEIGHTS_PATTERN
from graft_worker.engine.model_folder import Named

EXPERT_NAMES = {
    "gate_proj": ("gate_proj", "w1"),
    "down_proj": ("down_proj", "w2"),
    "up_proj": ("up_proj", "w3"),
}
"""What files call the matrices of one expert: qwen's and deepseek's names, and mixtral's."""
STACKED = re.compile(r"(.*)\.switch_mlp\.(\w+)\.weight")


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The tensors of a base as its files have them, none of them read yet."""

    tensors: dict[str, mx.array]
    replaced: dict[str, mx.array]
    """By the files' own names."""

    def size(self, dtype: mx.Dtype | None) -> int:
        """Bytes of what `hand_over` will give."""
        return sum(old.size * _dtype(old, dtype).size for old in self.tensors.values())

    def hand_over(self, dtype: mx.Dtype | None) -> Iterator[Named]:
        """All tensors, the new ones in their place and in the dtype of the old, or all in `dtype`.

        Each is the caller's, and gone from here: one that was read would stay in memory.
        """
        for name in list(self.tensors):
            old = self.tensors.pop(name)
            yield name, self.replaced.pop(name, old).astype(_dtype(old, dtype))


def read_tensors(folder: Path) -> dict[str, mx.array]:
    """All tensors of a model's files by name; nothing is read until it is computed with."""
    found: dict[str, mx.array] = {}
    for path in sorted(folder.glob(WEIGHTS_PATTERN)):
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        found.update(loaded)
    return found


def put_back(folder: Path, model: nn.Module, changed: Mapping[str, mx.array]) -> BaseFiles | None:
    """The files of the base in `folder` with what `changed` by the names of `model`.

    Nothing where they hold one of those in another form, which cannot be made of it.
    """
    tensors = read_tensors(folder)
    seen = _as_read(model, tensors)
    replaced: dict[str, mx.array] = {}
    for name, new in changed.items():
        # What a model passes on as it is, is the same object. An equal name and shape is no proof.
        if name in tensors and seen.get(name) is tensors[name]:
            replaced[name] = new
        elif experts := _experts(name, new, tensors):
            replaced |= experts
        else:
            return None
    if "lm_head.weight" in tensors and "lm_head.weight" not in seen:  # tied: what is there is not read
        tensors = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
    return BaseFiles(tensors, replaced)


def _dtype(old: mx.array, asked: mx.Dtype | None) -> mx.Dtype:
    is_float = mx.issubdtype(old.dtype, mx.floating)
    return old.dtype if asked is None or not is_float else asked


def _as_read(model: nn.Module, tensors: Mapping[str, mx.array]) -> Mapping[str, mx.array]:
    sanitize = getattr(model, "sanitize", None)
    found: Mapping[str, mx.array] = tensors if sanitize is None else sanitize(dict(tensors))
    return found


def _experts(name: str, new: mx.array, tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """A stack of experts by the names that each has in the files; nothing where they are not known there."""
    stacked = STACKED.fullmatch(name)
    if stacked is None:
        return {}
    for own in EXPERT_NAMES.get(stacked[2], ()):
        names = [f"{stacked[1]}.experts.{number}.{own}.weight" for number in range(new.shape[0])]
        if all(one in tensors and tensors[one].shape == new.shape[1:] for one in names):
            return {one: new[number] for number, one in enumerate(names)}
    return {}
