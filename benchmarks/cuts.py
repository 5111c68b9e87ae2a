"""Whether the cut that a host chooses is the fastest that its memory allows, and changes no result.

One fine-tune is run with every cut by name, and then with budgets from tight to ample and the cut left
to the engine. Explains itself on stderr; the last line of stdout is one JSON object.

    python benchmarks/cuts.py [--quick]
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, whose `queue` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import platform
import random
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from benchmarks.memory import make_model
from graft_scheduler.basemodels import read_base_model
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import Lengths, of_rows
from graft_scheduler.memory.estimate import cache_of
from graft_scheduler.messages import Start, TrainResult
from graft_scheduler.planning import Question, fastest_cut, smallest_cut
from graft_scheduler.states import JobId, Token
from graft_worker.engine.device import backend, device_name
from graft_worker.engine.training import train
from graft_worker.local import LocalLink

ROWS, BATCH, LONGEST = 32, 8, 256
BUDGETS = 5
REPEATS = 4
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 704, "vocab_size": 4096}


@dataclass(frozen=True, slots=True)
class Tried:
    """A cut that was run by name."""

    tokens: int
    recomputes: bool
    tokens_per_second: float
    needed_bytes: int
    """Its peak and the buffers that MLX keeps: a budget is for both."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cuts and budgets")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model", "llama", large=False, **SMALL)
        data = write_rows(Path(folder) / "data")
        sizes = (64, 256, 1024) if quick else (64, 128, 256, 512, 1024, 2048)
        tried = [try_cut(model, data, size, recomputes) for recomputes in (False, True) for size in sizes]
        outcomes = [
            try_budget(model, data, budget, tried) for budget in budgets(model, 3 if quick else BUDGETS)
        ]
    losses = [outcome["loss"] for outcome in outcomes]
    figures = {
        "chosen_over_best_throughput": round(min(outcome["over_best"] for outcome in outcomes), 3),
        "completed_share": sum(outcome["completed"] for outcome in outcomes) / len(outcomes),
        "within_budget_share": sum(outcome["within"] for outcome in outcomes) / len(outcomes),
        "loss_difference": max(losses) - min(losses),
    }
    machine = {"system": platform.platform(), "device": device_name(), "backend": backend().value}
    versions = {name: version(name) for name in ("mlx", "mlx-lm")}
    print(json.dumps({"benchmark": "cuts", "figures": figures, "machine": machine, "versions": versions}))


def write_rows(folder: Path) -> Path:
    """Texts of very unequal lengths, one of them the longest that is allowed."""
    folder.mkdir()
    draw = random.Random(0)
    lengths = [min(LONGEST, max(16, round(draw.lognormvariate(4.3, 0.6)))) for _ in range(ROWS - 1)] + [
        LONGEST
    ]
    rows = [json.dumps({"text": "".join(draw.choices("abcdefgh ", k=length + 8))}) for length in lengths]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "valid.jsonl").write_text("\n".join(rows[:4]) + "\n")
    return folder


def job(model: Path, data: Path, **settings: Any) -> TrainJob:
    values = {"batch_size": BATCH, "steps": 4, "max_length": LONGEST, "evaluation": {"every": 100}}
    return TrainJob.model_validate({"model": str(model), "data": str(data), **values, **settings})


def budgets(model: Path, count: int) -> list[int]:
    """From what the smallest cut needs to what the fastest does."""
    lengths: Lengths = of_rows([LONGEST] * ROWS, LONGEST)
    question = Question(read_base_model(model), job(model, Path("data")), lengths, backend())
    fastest = fastest_cut(question)
    assert fastest is not None
    least, most = smallest_cut(question).peak_bytes, round(1.2 * fastest.peak_bytes)
    return [least + (most - least) * number // (count - 1) for number in range(count)]


def try_cut(model: Path, data: Path, tokens: int, recomputes: bool) -> Tried:
    spec = job(model, data, micro_batch_tokens=tokens, gradient_checkpointing=recomputes)
    speed, needed, _ = measure(spec, 1 << 40)
    how = f"{tokens} tokens{', checkpointing' if recomputes else ''}"
    say(f"{how}: {speed:.0f} tokens/s, {needed >> 20} MiB")
    return Tried(tokens, recomputes, speed, needed)


def try_budget(model: Path, data: Path, budget: int, tried: list[Tried]) -> dict[str, Any]:
    """With the cut left to the engine; the best by name is of those that were measured to fit the budget."""
    speed, needed, result = measure(job(model, data), budget)
    best = max((one.tokens_per_second for one in tried if one.needed_bytes <= budget), default=speed)
    cut = result.facts["cut"]
    chosen = f"{cut['micro_batch_tokens']} tokens, checkpointing {cut['gradient_checkpointing']}"
    say(f"{budget >> 20} MiB: {chosen}: {speed:.0f} of {best:.0f} tokens/s, {needed >> 20} MiB")
    loss = result.final_loss
    return {
        "over_best": speed / best,
        "completed": loss is not None,
        "within": needed <= budget,
        "loss": loss,
    }


def measure(spec: TrainJob, budget: int) -> tuple[float, int, TrainResult]:
    """The best speed of a few runs, what they needed at most, and the first one's result."""
    results = [run(spec, budget) for _ in range(REPEATS)]
    speed = max(result.tokens_per_second or 0.0 for result in results)
    peak = max(result.peak_memory_bytes or 0 for result in results)
    return speed, peak + cache_of(peak), results[0]


def run(spec: TrainJob, budget: int) -> TrainResult:
    with tempfile.TemporaryDirectory() as folder:
        start = Start(
            job=JobId("cuts"), token=Token(1), spec=spec, work_dir=folder, deadline=1e12, budget_bytes=budget
        )
        result = train(start, LocalLink(lambda message: None)).result
    assert result is not None
    return result


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
