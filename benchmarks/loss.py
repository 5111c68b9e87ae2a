"""The peak memory and time of the loss alone: chunked against mlx-lm's `default_loss`.

    python benchmarks/loss.py [--quick]

The gradient of the summed loss with respect to the last hidden states, for 2 x 1,024 tokens and a
vocabulary of 131,072 words (with --quick, 2 x 256). Explains itself on stderr; the last line of stdout
is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, whose `queue` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib import metadata

import mlx.core as mx
import psutil
from mlx import nn
from mlx_lm.tuner.trainer import default_loss

from graft_worker.engine.chunked import with_gradient
from graft_worker.engine.head import Head
from graft_worker.engine.scalars import as_float

VOCABULARY, WIDTH = 131072, 64


class HeadAlone(nn.Module):
    """What `default_loss` takes for a model: hidden states go in as they are."""

    def __init__(self, embedding: nn.Embedding, hidden: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # MLX leaves it without types
        self.embedding = embedding
        self.hidden = hidden

    def __call__(self, inputs: mx.array) -> mx.array:
        logits: mx.array = self.embedding.as_linear(self.hidden)
        return logits


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 tokens a row")
    length = 256 if parser.parse_args().quick else 1024
    if mx.default_device() == mx.cpu:
        mx.disable_compile()
    embedding = nn.Embedding(VOCABULARY, WIDTH)
    hidden = mx.random.normal((2, length, WIDTH))
    batch = mx.random.randint(0, VOCABULARY, (2, length + 1))
    mx.eval(embedding.parameters(), hidden, batch)
    chunked = with_gradient(Head(embedding, "embedding", "as_linear", nn.Embedding), VOCABULARY)
    targets, weights = batch[:, 1:].reshape(-1), mx.ones((2 * length,))
    lengths = mx.array([[0, length]] * 2)

    def ours(states: mx.array) -> mx.array:
        return chunked(states.reshape(-1, WIDTH), targets, weights) / (2 * length)

    def theirs(states: mx.array) -> mx.array:
        loss: mx.array = default_loss(HeadAlone(embedding, states), batch, lengths)[0]
        return loss

    our_loss, our_bytes, our_seconds = measure(ours, hidden)
    their_loss, their_bytes, their_seconds = measure(theirs, hidden)
    say(f"{our_bytes >> 20} against {their_bytes >> 20} MiB, {our_seconds:.2f} against {their_seconds:.2f} s")
    figures = {
        "peak_memory_ratio": round(our_bytes / their_bytes, 4),
        "times_below": round(their_bytes / our_bytes, 2),
        "speedup": round(their_seconds / our_seconds, 3),
        "loss_difference": round(our_loss - their_loss, 6),
    }
    machine = {"system": platform.platform(), "cores": psutil.cpu_count()}
    versions = {name: metadata.version(name) for name in ("mlx-graft", "mlx", "mlx-lm")}
    print(json.dumps({"benchmark": "loss", "figures": figures, "machine": machine, "versions": versions}))


def measure(loss: Callable[[mx.array], mx.array], hidden: mx.array) -> tuple[float, int, float]:
    """Loss, peak bytes over what lay there before, seconds."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    began = time.perf_counter()
    value, gradient = mx.value_and_grad(loss)(hidden)
    mx.eval(value, gradient)
    return as_float(value), mx.get_peak_memory() - before, time.perf_counter() - began


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
