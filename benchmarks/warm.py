"""What a trial saves by starting on a base that is loaded, and by blocks that are computed once.

Trials of one study are run by real runner processes, each by one of its own and then all by one that
stays; then trials that adapt only the last blocks, with the outputs of those below kept and without.
Explains itself on stderr; the last line of stdout is one JSON object.

    python benchmarks/warm.py [--quick]
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, whose `queue` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import psutil

from benchmarks.throughput import OPENBLAS
from graft_scheduler.channel import sleepless_clock
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Done, Evaluated, Failed, PhaseChanged, Progress, RunnerMessage, Start
from graft_scheduler.runner_process import RunnerProcess
from graft_scheduler.states import JobId, Phase, Token

STAY_SECONDS = 120.0
LIFE_SECONDS = 3600.0
ROWS, VALID_ROWS, BATCH, LONGEST = 256, 16, 8, 128
SHAPE = {"hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 704, "vocab_size": 4096}
BUDGET_BYTES = 4 << 30
STEPS = 4
TRIALS = 4
"""On the last blocks: the first alone keeps evaluations, the second training too, the others use both."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How one job went: seconds on one clock, and what it made."""

    sent_at: float
    begun_at: float
    """The first step."""
    stepped_at: float
    """The first step's end."""
    done_at: float
    adapter: str
    """Its digest."""


class Runner:
    """A runner process that does one trial after another."""

    def __init__(self, folder: Path, *, stays: bool) -> None:
        self.began_at = time.perf_counter()
        self._folder, self._stays = folder, stays
        self._process = RunnerProcess.spawn(folder / "log.txt")

    def run(self, spec: TrainJob, number: int) -> Trial:
        work = self._folder / f"{number}-{self._process.pid}"
        work.mkdir()
        sent_at = time.perf_counter()
        self._process.send(
            Start(
                job=JobId("warm"),
                token=Token(number),
                spec=spec,
                work_dir=str(work),
                model_dir=spec.model.source,
                data_dir=spec.data.source,
                budget_bytes=BUDGET_BYTES,
                stay_seconds=STAY_SECONDS if self._stays else 0.0,
                deadline=sleepless_clock() + LIFE_SECONDS,
            )
        )
        heard: list[tuple[float, RunnerMessage]] = []
        while not heard or not isinstance(heard[-1][1], Done | Failed):
            if (message := self._process.receive(1.0)) is not None:
                heard.append((time.perf_counter(), message))
        return read(sent_at, heard)

    def close(self) -> None:
        self._process.close()


def read(sent_at: float, heard: Sequence[tuple[float, RunnerMessage]]) -> Trial:
    """The trial by what its runner said."""
    done_at, done = heard[-1]
    if not isinstance(done, Done) or done.output_dir is None or done.result is None:
        raise SystemExit(f"a trial did not end well: {done}")
    training = [at for at, one in heard if isinstance(one, PhaseChanged) and one.phase is Phase.TRAINING]
    progress = [at for at, one in heard if isinstance(one, Progress)]
    return Trial(
        sent_at=sent_at,
        begun_at=training[0],
        stepped_at=progress[0],
        done_at=done_at,
        adapter=digest_of(done),
    )


def digest_of(done: Done) -> str:
    """Of the adapter's arrays."""
    assert done.output_dir is not None
    return hashlib.sha256((Path(done.output_dir) / "adapters.safetensors").read_bytes()).hexdigest()


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ends within 3 minutes on 2 cores")
    parser.add_argument("--child", choices=["kept", "without"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(trials_on_last_blocks(options.folder, keeps=options.child == "kept")))
        return
    use_openblas()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        figures = starts(folder, 3 if options.quick else 8) | blocks(folder, 1 if options.quick else 3)
    machine = {"system": platform.platform(), "cores": psutil.cpu_count(), "openblas": OPENBLAS.exists()}
    versions = {name: metadata.version(name) for name in ("mlx-graft", "mlx", "mlx-lm")}
    print(json.dumps({"benchmark": "warm", "figures": figures, "machine": machine, "versions": versions}))


def use_openblas() -> None:
    """In the runners: the CPU build's own is slow, and hides what is not arithmetic."""
    if OPENBLAS.exists():
        os.environ["LD_PRELOAD"] = str(OPENBLAS)


def starts(folder: Path, trials: int) -> dict[str, Any]:
    """Cold against warm starts of the same trials."""
    specs = [job(folder, seed_of=number) for number in range(trials)]
    cold = []
    for number, spec in enumerate(specs):
        runner = Runner(folder, stays=False)
        trial = runner.run(spec, number)
        runner.close()
        cold.append((trial, trial.stepped_at - runner.began_at, trial.begun_at - runner.began_at))
    runner = Runner(folder, stays=True)
    first, *warm = [runner.run(spec, trials + number) for number, spec in enumerate([specs[0], *specs])]
    runner.close()
    before = [first, *warm]
    to_end = [one.stepped_at - last.done_at for last, one in zip(before, warm, strict=False)]
    to_begin = [one.begun_at - last.done_at for last, one in zip(before, warm, strict=False)]
    cold_seconds = statistics.median(seconds for _, seconds, _ in cold)
    warm_seconds = statistics.median(to_end)
    cold_begin, warm_begin = statistics.median(begin for *_, begin in cold), statistics.median(to_begin)
    same = sum(one.adapter == other.adapter for (one, *_), other in zip(cold, warm, strict=True))
    say(f"cold: {cold_begin:.2f} s to the first step, {cold_seconds:.2f} s to its end")
    say(f"warm, from the end of the trial before: {warm_begin:.3f} s, {warm_seconds:.3f} s")
    say(f"{same} of {trials} adapters are the same bit for bit")
    return {
        "cold_start_seconds": round(cold_begin, 3),
        "warm_start_seconds": round(warm_begin, 3),
        "warm_start_share": round(warm_begin / cold_begin, 4),
        "warm_start_share_with_first_step": round(warm_seconds / cold_seconds, 4),
        "identical_share": same / trials,
    }


def blocks(folder: Path, rounds: int) -> dict[str, Any]:
    """Trials on the last quarter of the blocks: the outputs of those below kept, and not, in turns."""
    sides: dict[str, list[dict[str, Any]]] = {"kept": [], "without": []}
    for _ in range(rounds):
        for side, found in sides.items():
            command = [sys.executable, __file__, "--child", side, "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
            found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    kept, without = sides["kept"], sides["without"]

    def fastest(runs: list[dict[str, Any]], name: str) -> float:
        return min(float(run[name]) for run in runs)

    figures = {
        "below_step_speedup": fastest(without, "step_seconds") / fastest(kept, "step_seconds"),
        "below_evaluation_speedup": fastest(without, "evaluation_seconds")
        / fastest(kept, "evaluation_seconds"),
        "below_second_trial_step_speedup": fastest(without, "second_step_seconds")
        / fastest(kept, "second_step_seconds"),
    }
    same = all(run["adapters"] == without[0]["adapters"] for run in (*kept, *without))
    for name in ("step_seconds", "evaluation_seconds"):
        what, of = name.partition("_")[0], SHAPE["num_hidden_layers"]
        say(
            f"last {of // 4} of {of} blocks, {what} of a later trial: "
            f"{fastest(kept, name):.3f} s against {fastest(without, name):.3f} s"
        )
    say(f"{kept[0]['kept_bytes'] >> 20} MiB kept; the adapters are {'the same' if same else 'DIFFERENT'}")
    return {
        **{name: round(value, 3) for name, value in figures.items()},
        "below_kept_mb": round(kept[0]["kept_bytes"] / (1 << 20), 1),
        "below_identical": same,
    }


def trials_on_last_blocks(folder: Path, *, keeps: bool) -> dict[str, Any]:
    """Trials one after another, with their steps' and evaluations' times."""
    from graft_worker.engine import training
    from graft_worker.engine.resident import Resident

    if not keeps:
        training.LEAST_SHARE = 2.0  # type: ignore[attr-defined]  # no model has so many frozen blocks
    resident, steps, evaluations, adapters = Resident(), [], [], []
    for number in range(TRIALS):
        changes = {"adapter": {"rank": 8, "layers": SHAPE["num_hidden_layers"] // 4}}
        rate = {"optimizer": {"learning_rate": 1e-4 * (number + 1)}}
        link = TimedLink()
        with tempfile.TemporaryDirectory() as work:
            spec = job(folder, number, **changes, **rate)
            start = Start(
                job=JobId("warm"),
                token=Token(number),
                spec=spec,
                work_dir=work,
                budget_bytes=BUDGET_BYTES,
                deadline=sleepless_clock() + LIFE_SECONDS,
            )
            done = training.train(start, link, resident)
            adapters.append(digest_of(done))
        assert done.result is not None
        steps.append(done.result.tokens / (done.result.tokens_per_second or 1.0) / done.result.steps)
        evaluations.append(link.evaluations[-1])
    return {
        "second_step_seconds": steps[1],
        "step_seconds": min(steps[2:]),
        "evaluation_seconds": min(evaluations[2:]),
        "adapters": adapters,
        "kept_bytes": resident.kept.held_bytes,
    }


class TimedLink:
    """Notes how long evaluations take."""

    def __init__(self) -> None:
        self.evaluations: list[float] = []
        self._began = 0.0

    def report(self, message: RunnerMessage) -> None:
        match message:
            case PhaseChanged(phase=Phase.EVALUATING):
                self._began = time.perf_counter()
            case Evaluated():
                self.evaluations.append(time.perf_counter() - self._began)
            case _:
                pass

    def stop_reason(self) -> None:
        return None

    def shrink_requested(self) -> bool:
        return False


def job(folder: Path, seed_of: int, **changes: Any) -> TrainJob:
    """A trial: rate, rank and dropout of its own, base, data and seed those of all."""
    draw = random.Random(seed_of)
    settings = {
        "model": {"source": str(folder / "model"), "digest": f"sha256:{'a' * 64}"},
        "data": {"source": str(folder / "data"), "digest": f"sha256:{'b' * 64}"},
        "batch_size": BATCH,
        "steps": STEPS,
        "max_length": LONGEST,
        "adapter": {"rank": draw.choice((4, 8, 16)), "dropout": draw.choice((0.0, 0.1))},
        "optimizer": {"learning_rate": draw.choice((1e-4, 1e-3))},
        "evaluation": {"every": STEPS},
        **changes,
    }
    return TrainJob.model_validate(settings)


def make(folder: Path) -> None:
    """Base and rows, by a process of its own: MLX is for the runners."""
    lines = "from pathlib import Path; from benchmarks.memory import make_model; import sys, json"
    make_it = "make_model(Path(sys.argv[1]), 'llama', large=False, **json.loads(sys.argv[2]))"
    command = [sys.executable, "-c", f"{lines}\n{make_it}", str(folder / "model"), json.dumps(SHAPE)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parent.parent)
    draw = random.Random(0)
    data = folder / "data"
    data.mkdir()
    for name, count in (("train", ROWS), ("valid", VALID_ROWS)):
        texts = ["".join(draw.choices("abcdefgh ", k=draw.randint(16, LONGEST - 8))) for _ in range(count)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
