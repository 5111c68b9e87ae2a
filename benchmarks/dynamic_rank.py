"""Rank `auto` against training at a fixed rank: validation losses at adapters of equal size.

    python benchmarks/dynamic_rank.py [--quick] [--seeds N] [--steps N] [--rate R] [--alpha A]

Trains on the demo's base and data: once at rank 32, cut to 16, 8 and 4, and once at each of these, with
the same steps, seed and settings. Explains itself on stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, where `queue.py` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib import metadata

import psutil

from graft_scheduler.jobs import TrainJob
from graft_worker import train
from graft_worker.engine.ranks import Branches, cut_ranks, cut_to, describe
from graft_worker.engine.survey import survey
from tests.worker.engine.reopened import Reopened, reopened

SAMPLES = Path(__file__).parent.parent / "cli" / "graft_cli" / "samples"
MAX_RANK = 32
RANKS = (16, 8, 4)
Figures = dict[str, float]


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed: ends within 3 minutes on 2 cores")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3, help="the learning rate")
    parser.add_argument("--alpha", type=float, help="scale by alpha / rank; without, by 2 at every rank")
    arguments = parser.parse_args()
    seeds = [measure(seed, arguments) for seed in range(1 if arguments.quick else arguments.seeds)]
    figures = {name: round(statistics.mean(one[name] for one in seeds), 5) for name in seeds[0]}
    figures["seeds"] = len(seeds)
    figures |= {f"cut_{rank}_wins": sum(wins(one, rank) for one in seeds) for rank in RANKS}
    explain(figures)
    machine = {"system": platform.platform(), "cores": psutil.cpu_count()}
    versions = {name: metadata.version(name) for name in ("mlx-graft", "mlx", "mlx-lm", "numpy")}
    print(
        json.dumps(
            {"benchmark": "dynamic_rank", "figures": figures, "machine": machine, "versions": versions}
        )
    )


def measure(seed: int, arguments: argparse.Namespace) -> Figures:
    """All losses for one seed."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "whole"
        job = make_job(seed, MAX_RANK, arguments)
        figures: Figures = {f"trained_{MAX_RANK}": loss_of(job, output)}
        with reopened(job, output) as trained:
            figures |= cuts(trained)
        for rank in RANKS:
            fixed = make_job(seed, rank, arguments)
            figures[f"trained_{rank}"] = loss_of(fixed, Path(folder) / str(rank))
            say(
                f"seed {seed}, rank {rank}: cut {figures[f'cut_{rank}']:.4f}, "
                f"trained {figures[f'trained_{rank}']:.4f}"
            )
    return figures


def cuts(trained: Reopened) -> Figures:
    """Losses of the cuts to each rank, and what rank `auto` makes of it."""
    branches = Branches(trained.parameters, survey(trained.task, trained.parameters, trained.loss))
    figures = {f"cut_{rank}": trained.evaluate(cut_to(branches, rank)) for rank in RANKS}
    began = time.perf_counter()
    cut = cut_ranks(trained.task, trained.parameters, trained.loss, trained.evaluator, trained.reporter)
    figures["auto_seconds"] = time.perf_counter() - began
    say(describe(cut, MAX_RANK, trained.task.adapted.modules))
    kept = sum(cut.kept.values()) / (MAX_RANK * len(cut.kept))
    return figures | {
        "auto_rank": cut.rank,
        "auto_kept_share": kept,
        "auto_loss": cut.loss,
        "auto_evaluations": cut.evaluations,
    }


def make_job(seed: int, rank: int, arguments: argparse.Namespace) -> TrainJob:
    """The job at one rank; everything else is equal."""
    scale = {"scale": 2.0} if arguments.alpha is None else {"alpha": arguments.alpha}
    return TrainJob.model_validate(
        {
            "model": str(SAMPLES / "base"),
            "data": str(SAMPLES / "tickets"),
            "steps": arguments.steps,
            "batch_size": 8,
            "seed": seed,
            "adapter": {"rank": rank, **scale},
            "optimizer": {"learning_rate": arguments.rate},
            "evaluation": {"every": arguments.steps},
        }
    )


def loss_of(job: TrainJob, output: Path) -> float:
    """Train; the validation loss at the end."""
    result = train(job, output, tell=lambda message: None)
    assert result.final_loss is not None
    return result.final_loss


def wins(figures: Figures, rank: int) -> bool:
    """Whether the cut adapter is no worse than the one trained at its rank."""
    return figures[f"cut_{rank}"] <= figures[f"trained_{rank}"]


def explain(figures: Figures) -> None:
    """The means side by side."""
    say(f"\nmean validation loss of {figures['seeds']:.0f} seeds; at rank 32 {figures['trained_32']:.4f}")
    say(f"{'rank':>4}  {'cut from 32':>11}  {'trained at it':>13}  {'cut no worse':>12}")
    for rank in RANKS:
        cut, trained, won = (
            figures[f"{name}"] for name in (f"cut_{rank}", f"trained_{rank}", f"cut_{rank}_wins")
        )
        say(f"{rank:>4}  {cut:>11.4f}  {trained:>13.4f}  {won:>5.0f} of {figures['seeds']:.0f}")


def say(text: str) -> None:
    """Explain, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
