"""Where a model's last hidden states become logits: found by trying, for any of mlx-lm's models.

mlx-lm's models end in an output matrix, or in the embeddings used once more, and some scale or
soft-cap what comes out. The chunked loss needs the hidden states before, and the rest as a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx import nn

from graft_worker.engine.scalars import as_float

HEAD_NAMES = frozenset({"lm_head", "output", "embed_out", "head"})
PROBES = 17
PROBE_RANGE = 50.0
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Head:
    """The output matrix, and what the model does to the logits after it."""

    module: nn.Module
    path: str
    """Of the module in the model."""
    method: str
    """What the model calls: `__call__`, or `as_linear` of its embeddings."""
    owner: type[nn.Module]
    """The module's class; while the module is captured it has another."""
    scale: float = 1.0
    softcap: float | None = None

    def raw(self, hidden: mx.array) -> mx.array:
        """What the output matrix makes of `hidden`, in its own dtype."""
        product: mx.array = getattr(self.owner, self.method)(self.module, hidden)
        return product

    def logits(self, hidden: mx.array) -> mx.array:
        """float32 logits, (n, vocabulary), of hidden states (n, width)."""
        raw = self.raw(hidden).astype(mx.float32)
        if self.scale != 1.0:
            raw = raw * self.scale
        return raw if self.softcap is None else mx.tanh(raw / self.softcap) * self.softcap


class Captured:
    """What the head was last given, while `captured` holds."""

    def __init__(self) -> None:
        self.hidden: mx.array | None = None
        self.reply: mx.array | None = None
        """What it answers instead; its input without one."""


def find_head(model: nn.Module) -> Head | None:
    """The head of `model`; `None` for a model that ends in a way not known here."""
    for path, module, method in _candidates(model):
        head = Head(module, path, method, type(module))
        with captured(head) as capture:
            probe = mx.linspace(-PROBE_RANGE, PROBE_RANGE, PROBES).reshape(1, 1, PROBES)
            capture.reply = probe
            try:
                after = model(mx.zeros((1, 1), dtype=mx.int32))
            except Exception:  # foreign code, given what it does not expect  # noqa: S112
                continue
            if capture.hidden is None or after.shape != probe.shape:
                continue
            return _describe(head, model, probe.reshape(-1), after.astype(mx.float32).reshape(-1))
    return None


@contextmanager
def captured(head: Head) -> Iterator[Captured]:
    """The model's call computes no logits until the context ends: it leaves the hidden states here."""
    module, cls = head.module, head.owner
    capture = Captured()

    def keep(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        capture.hidden = x
        return x if capture.reply is None else capture.reply

    try:
        module.__class__ = type(cls.__name__, (cls,), {head.method: keep})
        yield capture
    finally:
        module.__class__ = cls


def _candidates(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Output matrices first: a model that has one uses it."""
    modules = list(model.named_modules())
    heads = [
        (path, module, "__call__")
        for path, module in modules
        if path.rpartition(".")[2] in HEAD_NAMES and isinstance(module, (nn.Linear, nn.QuantizedLinear))
    ]
    embeddings = [(path, module, "as_linear") for path, module in modules if hasattr(module, "as_linear")]
    return heads + embeddings


def _describe(head: Head, model: nn.Module, before: mx.array, after: mx.array) -> Head | None:
    """`head` with what the model did to the probe, if that is a known function."""
    slope = (after[-1] - after[0]) / (before[-1] - before[0])
    scale = as_float(slope)
    if _is_close(before * scale, after):
        return replace(head, scale=1.0 if abs(scale - 1) < TOLERANCE else scale)
    for cap in _softcaps(model):
        if _is_close(mx.tanh(before / cap) * cap, after):
            return replace(head, softcap=cap)
    return None


def _softcaps(model: nn.Module) -> list[float]:
    """Every number among the model's settings that may be one."""
    found = []
    for holder in (model, getattr(model, "args", None), *(module for _, module in model.named_modules())):
        for name in dir(holder) if holder is not None else ():
            if "softcap" in name or "soft_cap" in name:
                value = getattr(holder, name, None)
                if isinstance(value, (int, float)) and value > 0:
                    found.append(float(value))
    return list(dict.fromkeys(found))


def _is_close(one: mx.array, other: mx.array) -> bool:
    return bool(mx.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE).item())
