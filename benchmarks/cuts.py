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
from dataclasses import dataclass, field
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
REPEATS = 5
AMPLE = 1 << 40
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 704, "vocab_size": 4096}


@dataclass
class Entrant:
    """A cut by name, or a budget with the cut left to the engine, and its runs."""

    spec: TrainJob
    budget_bytes: int
    is_named: bool
    results: list[TrainResult] = field(default_factory=list)

    @property
    def cut(self) -> tuple[int, bool]:
        """Tokens at once, and whether activations are computed again."""
        cut = self.results[0].facts["cut"]
        return cut["micro_batch_tokens"], cut["gradient_checkpointing"]

    @property
    def tokens_per_second(self) -> float:
        """Of the fastest run: what else the machine does makes runs only slower."""
        return max(result.tokens_per_second or 0.0 for result in self.results)

    @property
    def needed_bytes(self) -> int:
        """Its peak and the buffers that MLX keeps: a budget is for both."""
        peak = max(result.peak_memory_bytes or 0 for result in self.results)
        return peak + cache_of(peak)

    def describe(self) -> str:
        tokens, recomputes = self.cut
        what = "by name" if self.is_named else f"chosen for {self.budget_bytes >> 20} MiB"
        how = f"{tokens} tokens{', checkpointing' if recomputes else ''}"
        return f"{what}: {how}: {self.tokens_per_second:.0f} tokens/s, {self.needed_bytes >> 20} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cuts and budgets")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model", "llama", large=False, **SMALL)
        data = write_rows(Path(folder) / "data")
        sizes = (64, 256, 1024) if quick else (64, 128, 256, 512, 1024, 2048)
        named = [
            Entrant(job(model, data, micro_batch_tokens=size, gradient_checkpointing=recomputes), AMPLE, True)
            for recomputes in (False, True)
            for size in sizes
        ]
        chosen = [
            Entrant(job(model, data), budget, False) for budget in budgets(model, 3 if quick else BUDGETS)
        ]
        for _ in range(REPEATS):  # in turns: the machine is never equally fast for long
            for entrant in (*named, *chosen):
                entrant.results.append(run(entrant.spec, entrant.budget_bytes))
    for entrant in (*named, *chosen):
        say(entrant.describe())
    losses = [result.final_loss for entrant in chosen for result in entrant.results]
    known = [loss for loss in losses if loss is not None]
    figures = {
        "chosen_over_best_throughput": round(min(over_best(one, named, chosen) for one in chosen), 3),
        "completed_share": len(known) / len(losses),
        "within_budget_share": sum(one.needed_bytes <= one.budget_bytes for one in chosen) / len(chosen),
        "loss_difference": max(known) - min(known),
    }
    machine = {"system": platform.platform(), "device": device_name(), "backend": backend().value}
    versions = {name: version(name) for name in ("mlx", "mlx-lm")}
    print(json.dumps({"benchmark": "cuts", "figures": figures, "machine": machine, "versions": versions}))


def over_best(one: Entrant, named: list[Entrant], chosen: list[Entrant]) -> float:
    """The speed of what was chosen over the best by name that was measured to fit the budget; of runs with
    the same cut the fastest counts, whoever named it.
    """
    speed = max(other.tokens_per_second for other in (*named, *chosen) if other.cut == one.cut)
    fitting = [other.tokens_per_second for other in named if other.needed_bytes <= one.budget_bytes]
    best = max(fitting, default=speed)
    say(f"{one.budget_bytes >> 20} MiB: {speed:.0f} of {best:.0f} tokens/s")
    return speed / best


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
    return TrainJob.model_validate(
        {"model": str(model), "data": {"source": str(data), "allow": ["leak"]}, **values, **settings}
    )


def budgets(model: Path, count: int) -> list[int]:
    """From what the smallest cut needs to what the fastest does."""
    lengths: Lengths = of_rows([LONGEST] * ROWS, LONGEST)
    question = Question(read_base_model(model), job(model, Path("data")), lengths, backend())
    fastest = fastest_cut(question)
    assert fastest is not None
    least, most = smallest_cut(question).peak_bytes, round(1.2 * fastest.peak_bytes)
    return [least + (most - least) * number // (count - 1) for number in range(count)]


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
