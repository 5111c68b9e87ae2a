"""The reference run on a Mac, for its owner: Llama-3.2-1B-Instruct-4bit, beside the plan's targets.

    python benchmarks/reference.py [--quick] [--torch]
    python benchmarks/reference.py --model FOLDER --data FOLDER --steps 20      # a trial anywhere

Fine-tunes by QLoRA (rank 16, all linear layers, 8 rows a step, rows of at most 1,024 tokens) on the
first rows of the WikiSQL set that mlx-lm's own examples use, or on your data, and prints the
minutes, the peak memory, the perplexity on held-out rows, and how much of the peak gradient
checkpointing saves. `--torch` adds the step time against PyTorch + PEFT (`torch_peft.py`), where torch
and peft are installed. Explains itself on stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, whose `queue` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import platform
import subprocess
import tempfile
from importlib import metadata
from typing import Any

import psutil

from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import TrainResult

MODEL = "mlx-community/Llama-3.2-1B-Instruct-4bit"
DATA = "mlx-community/WikiSQL"
STEPS, QUICK_STEPS, TRIAL_STEPS = 1000, 100, 10
TARGETS = {"minutes": "15-20", "peak_gb": "10-14", "perplexity": "< 15", "checkpointing_saving": "0.4"}


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="a model folder or hub id")
    parser.add_argument("--data", type=Path, help="a folder with train.jsonl; default: WikiSQL from the hub")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of the timed run")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps")
    parser.add_argument("--torch", action="store_true", help="the step against PyTorch + PEFT too")
    options = parser.parse_args()
    steps = QUICK_STEPS if options.quick else options.steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data or fetch_rows(folder / "data", steps * 8)
        figures = measure(folder, options.model, data, steps)
    if options.torch:
        figures["step_speedup"] = step_speedup()
    for figure, target in TARGETS.items():
        say(f"{figure}: {figures[figure]} (target {target})")
    memory = round(psutil.virtual_memory().total / (1 << 30))
    machine = {"system": platform.platform(), "chip": chip(), "memory_gb": memory}
    versions = {name: metadata.version(name) for name in ("mlx-graft", "mlx", "mlx-lm")}
    document = {"benchmark": "reference", "figures": figures, "model": options.model, "steps": steps}
    print(json.dumps({**document, "machine": machine, "versions": versions}))


def measure(folder: Path, model: str, data: Path, steps: int) -> dict[str, Any]:
    """The timed run, and two short ones with and without gradient checkpointing."""
    whole = run(folder / "whole", model, data, steps, checkpointing=False)
    peaks = []
    for checkpointing in (False, True):
        short = run(folder / f"short-{checkpointing}", model, data, TRIAL_STEPS, checkpointing=checkpointing)
        peaks.append(short.peak_memory_gb or 0.0)
    return {
        "minutes": round(whole.training_seconds / 60, 2),
        "peak_gb": round(whole.peak_memory_gb or 0.0, 2),
        "perplexity": None if whole.perplexity is None else round(whole.perplexity, 3),
        "checkpointing_saving": round(1.0 - peaks[1] / peaks[0], 3),
        "tokens_per_second": round(whole.tokens_per_second or 0.0),
        "padding_share": round(whole.padding_share or 0.0, 3),
    }


def run(folder: Path, model: str, data: Path, steps: int, *, checkpointing: bool) -> TrainResult:
    """In a process of its own, so that its peak is its own."""
    job = TrainJob.model_validate(
        {
            "model": model,
            "data": str(data),
            "method": "qlora",
            "adapter": {"rank": 16},
            "batch_size": 8,
            "steps": steps,
            "max_length": 1024,
            "gradient_checkpointing": checkpointing,
            "evaluation": {"every": max(1, steps // 2), "rows": 100},
        }
    )
    code = (
        "import sys, pathlib; from graft_scheduler.jobs import parse_job; from graft_worker import train; "
        "print(train(parse_job(sys.argv[1]), pathlib.Path(sys.argv[2])).model_dump_json())"
    )
    say(f"{steps} steps{' with gradient checkpointing' if checkpointing else ''}")
    command = [sys.executable, "-c", code, job.model_dump_json(), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return TrainResult.model_validate_json(done.stdout.strip().splitlines()[-1])


def fetch_rows(folder: Path, count: int) -> Path:
    """The first rows of WikiSQL, as files."""
    from datasets import load_dataset

    folder.mkdir()
    for split, rows in (("train", count), ("validation", 100)):
        name = "valid" if split == "validation" else split
        loaded = load_dataset(DATA, split=f"{split}[:{rows}]")
        with (folder / f"{name}.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": row["text"]}) + "\n" for row in loaded)
    return folder


def step_speedup() -> dict[str, float]:
    """By shape, from the other benchmark."""
    device = "mps" if platform.system() == "Darwin" else "cuda"
    script = Path(__file__).with_name("torch_peft.py")
    command = [sys.executable, str(script), "--device", device, "--quick"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    speedup: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])["figures"]["step_speedup"]
    return speedup


def chip() -> str:
    """As the system names it."""
    if platform.system() != "Darwin":
        return platform.processor() or platform.machine()
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
