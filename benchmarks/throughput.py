"""Training against `mlx_lm.lora` as it ships: same model, rows, batch size and optimizer steps.

    python benchmarks/throughput.py [--quick]

A random Llama (4 blocks of 256, 8 heads; on a GPU 16 blocks of 2048, 32 heads) with LoRA of rank 16 on all
linear layers learns synthetic rows of skewed lengths (log-normal, median 180, sigma 0.8, at most 1024
tokens; with --quick 512) and of uniform ones. Each side runs in a process of its own, one after the
other, and is asked for the tokens it learned from in a second (padding and mlx-lm's padded targets do
not count), its peak memory over the weights, and the validation loss of its adapter, by one and the
same evaluator.

On the CPU neither side compiles: there `mx.compile` runs a C++ compiler for every shape, which would
only slow mlx-lm down; and OpenBLAS is preloaded for both where it is installed. Explains itself on
stderr; the last line of stdout is one JSON object, whose figures are those of batch 16 and 32k words.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, whose `queue` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import psutil

OPENBLAS = Path("/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0")
VALID_ROWS = 16
UNIFORM_LENGTH = 255
RATE = 1e-3
RANK, SCALE = 16, 2.0
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 688, "num_attention_heads": 8}
LARGE = {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32}


@dataclass(frozen=True)
class Case:
    """What both sides do."""

    vocabulary: int
    batch_size: int
    lengths: str
    steps: int
    max_length: int = 1024

    @property
    def name(self) -> str:
        return f"{self.vocabulary // 1024}k words, batch {self.batch_size}, {self.lengths} lengths"


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ends within 5 minutes on 2 cores")
    parser.add_argument("--large", action="store_true", help="the model for a GPU")
    parser.add_argument("--child", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps((ours if options.child == "ours" else theirs)(options.folder)))
        return
    results = {case.name: compare(case, options.large) for case in cases(options.quick, options.large)}
    figures = results["32k words, batch 16, skewed lengths"]
    machine = {"system": platform.platform(), "cores": psutil.cpu_count(), "openblas": OPENBLAS.exists()}
    versions = {name: metadata.version(name) for name in ("mlx-graft", "mlx", "mlx-lm")}
    document = {"benchmark": "throughput", "figures": figures, "cases": results}
    print(json.dumps({**document, "machine": machine, "versions": versions}))


def cases(quick: bool, large: bool) -> list[Case]:
    """Quick: the one whose figures count, and one of uniform lengths."""
    k, factor = 1 << 10, 8 if large else 1
    if quick:
        return [Case(32 * k, 16, "skewed", 3 * factor, 512), Case(2 * k, 4, "uniform", 6 * factor)]
    return [
        Case(2 * k, 4, "skewed", 16 * factor),
        Case(2 * k, 16, "skewed", 6 * factor),
        Case(32 * k, 4, "skewed", 8 * factor),
        Case(32 * k, 16, "skewed", 4 * factor),
        Case(128 * k, 4, "skewed", 4 * factor, 512),  # mlx-lm's logits of more do not fit 24 GB
        Case(2 * k, 4, "uniform", 10 * factor),
        Case(32 * k, 4, "uniform", 6 * factor),
    ]


def compare(case: Case, large: bool) -> dict[str, float]:
    """One side after the other on the same files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, case, large)
        our, their = run_child("ours", folder), run_child("theirs", folder)
    figures = {
        "tokens_per_second_ratio": our["tokens_per_second"] / their["tokens_per_second"],
        "peak_memory_ratio": our["peak_bytes"] / their["peak_bytes"],
        "validation_loss_difference": our["validation_loss"] - their["validation_loss"],
        "padding_share": our["padding_share"],
        "tokens_per_second": our["tokens_per_second"],
        "peak_over_weights_mb": our["peak_bytes"] / (1 << 20),
    }
    speed, memory = figures["tokens_per_second_ratio"], figures["peak_memory_ratio"]
    lines = (
        f"{our['tokens_per_second']:.0f} against {their['tokens_per_second']:.0f} useful tokens/s: "
        f"{speed:.2f}x",
        f"{our['peak_bytes'] >> 20} against {their['peak_bytes'] >> 20} MB over the weights: {memory:.3f}x",
        f"validation loss {our['validation_loss']:.4f} against {their['validation_loss']:.4f}, "
        f"at first {our['first_loss']:.4f}",
        f"{our['tokens']} and {their['tokens']} tokens learned; padding {our['padding_share']:.1%} of ours",
    )
    say("\n    ".join((case.name, *lines)))
    return {name: round(value, 4) for name, value in figures.items()}


def run_child(side: str, folder: Path) -> dict[str, Any]:
    """The last line of the side's own process."""
    environment = dict(os.environ)
    if OPENBLAS.exists():
        environment["LD_PRELOAD"] = str(OPENBLAS)
    command = [sys.executable, __file__, "--child", side, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def prepare(folder: Path, case: Case, large: bool) -> None:
    """Model, tokenizer, rows and settings, as files that both sides read."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "</s>": 1, **{f"w{number}": number + 2 for number in range(case.vocabulary - 2)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types here
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    (folder / "model").mkdir()
    (folder / "data").mkdir()
    fast.save_pretrained(str(folder / "model"))
    write_rows(folder / "data", case)
    settings = {"case": case.__dict__, "large": large}
    (folder / "settings.json").write_text(json.dumps(settings))
    code = f"import sys; sys.path[0] = {sys.path[0]!r}; from benchmarks.throughput import write_model; "
    subprocess.run([sys.executable, "-c", f"{code}write_model({str(folder)!r})"], check=True)


def write_model(folder: str) -> None:
    """In a process of its own: MLX and `fork` do not go together."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    settings = json.loads((Path(folder) / "settings.json").read_text())
    config = {
        "model_type": "llama",
        **(LARGE if settings["large"] else SMALL),
        "rms_norm_eps": 1e-5,
        "vocab_size": settings["case"]["vocabulary"],
        "tie_word_embeddings": True,
    }
    config["num_key_value_heads"] = config["num_attention_heads"] // 4
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(config))
    if settings["large"]:
        model.set_dtype(mx.bfloat16)
    arrays = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(f"{folder}/model/model.safetensors", arrays, {"format": "mlx"})
    Path(f"{folder}/model/config.json").write_text(json.dumps(config))


def write_rows(folder: Path, case: Case) -> None:
    """Words that mostly follow one another in a fixed way, so that there is something to learn."""
    random = np.random.default_rng(0)
    rows = case.steps * case.batch_size
    for name, count in (("train", rows), ("valid", VALID_ROWS)):
        if case.lengths == "skewed":
            lengths = np.clip(random.lognormal(np.log(180), 0.8, count), 8, case.max_length - 1).astype(int)
        else:
            lengths = np.full(count, UNIFORM_LENGTH)
        with (folder / f"{name}.jsonl").open("w") as file:
            for length in lengths:
                tokens = np.zeros(length, dtype=np.int64)
                tokens[0] = random.integers(0, 500)
                jumps = random.random(length) < 0.2
                for place in range(1, length):
                    follower = (tokens[place - 1] * 7 + 3) % 500
                    tokens[place] = random.integers(0, 500) if jumps[place] else follower
                file.write(json.dumps({"text": " ".join(f"w{token}" for token in tokens)}) + "\n")


def ours(folder: Path) -> dict[str, Any]:
    """`graft_worker.train`."""
    import mlx.core as mx

    from graft_scheduler.jobs import TrainJob
    from graft_worker import train

    case = Case(**json.loads((folder / "settings.json").read_text())["case"])
    job = TrainJob.model_validate(
        {
            "model": str(folder / "model"),
            "data": str(folder / "data"),
            "adapter": {"rank": RANK, "scale": SCALE},
            "optimizer": {
                "name": "adam",
                "learning_rate": RATE,
                "bias_correction": False,
                "max_grad_norm": None,
            },
            "schedule": {"name": "constant", "warmup": 0.0},
            "batch_size": case.batch_size,
            "steps": case.steps,
            "max_length": case.max_length,
            "evaluation": {"every": case.steps, "rows": case.batch_size},
            "checkpoint": {"every": case.steps},
        }
    )
    result = train(job, folder / "ours", tell=lambda message: None)
    assert result.peak_memory_bytes is not None
    loss, first_loss = evaluate(folder, folder / "ours" / "adapter")
    return {
        "tokens_per_second": result.tokens_per_second,
        "tokens": result.tokens,
        "padding_share": result.padding_share,
        "peak_bytes": result.peak_memory_bytes - weight_bytes(folder),
        "validation_loss": loss,
        "first_loss": first_loss,
        "device": str(mx.default_device()),
    }


def theirs(folder: Path) -> dict[str, Any]:
    """`mlx_lm.lora` through its own entry point, with a callback that listens."""
    import mlx.core as mx
    import mlx_lm.lora as lora
    from mlx_lm.tuner.callbacks import TrainingCallback

    reports: list[dict[str, Any]] = []

    class Listener(TrainingCallback):
        def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
            reports.append(dict(train_info))

    case = Case(**json.loads((folder / "settings.json").read_text())["case"])
    if mx.default_device() == mx.cpu:
        mx.disable_compile()
    arguments = {
        **lora.CONFIG_DEFAULTS,
        "model": str(folder / "model"),
        "data": str(folder / "data"),
        "train": True,
        "num_layers": -1,
        "batch_size": case.batch_size,
        "iters": case.steps,
        "val_batches": 1,
        "test": False,
        "learning_rate": RATE,
        "steps_per_report": case.steps,
        "steps_per_eval": case.steps,
        "adapter_path": str(folder / "theirs"),
        "save_every": case.steps,
        "max_seq_length": case.max_length,
        "lora_parameters": {"rank": RANK, "dropout": 0.0, "scale": SCALE},
    }
    vars(lora)["get_reporting_callbacks"] = lambda *_, **__: Listener()
    namespace = argparse.Namespace(**arguments)
    namespace.num_layers = json.loads((folder / "model" / "config.json").read_text())["num_hidden_layers"]
    lora.run(namespace)
    peak = mx.get_peak_memory() - weight_bytes(folder)
    (report,) = reports
    # It counts one padded target for every row.
    useful = report["trained_tokens"] - case.steps * case.batch_size
    loss, _ = evaluate(folder, folder / "theirs")
    return {
        "tokens_per_second": report["tokens_per_second"] * useful / report["trained_tokens"],
        "tokens": useful,
        "peak_bytes": peak,
        "validation_loss": loss,
    }


def evaluate(folder: Path, adapter: Path) -> tuple[float, float]:
    """The validation loss of the base with the adapter, and without."""
    import mlx_lm

    from graft_scheduler.data.reading import read_rows
    from graft_scheduler.jobs import DataFormat
    from graft_worker.engine.cutting import Budget
    from graft_worker.engine.evaluation import Evaluator
    from graft_worker.engine.loss import plain_loss
    from graft_worker.engine.rows import Reading, tokenise

    case = Case(**json.loads((folder / "settings.json").read_text())["case"])
    losses = []
    for path in (str(adapter), None):
        model, tokenizer = mlx_lm.load(str(folder / "model"), adapter_path=path)[:2]
        reading = Reading(DataFormat.TEXT, True, case.max_length)
        rows = tokenise(read_rows(folder / "data" / "valid.jsonl"), tokenizer, reading).rows
        losses.append(Evaluator(model, plain_loss(model), rows, Budget(1024))().loss)
    return losses[0], losses[1]


def weight_bytes(folder: Path) -> int:
    return (folder / "model" / "model.safetensors").stat().st_size


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
