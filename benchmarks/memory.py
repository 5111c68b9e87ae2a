"""How near the estimate of memory comes to what training really takes, and how near after the probe.

Random models of many architectures are trained for a step by the engine, and MLX's own peak is set
beside what `graft_scheduler.memory` said from the config and the tensors' names alone. Explains
itself on stderr; the last line of stdout is one JSON object. Without a GPU it measures MLX's CPU
build, whose queue and kernels are not Metal's.

    python benchmarks/memory.py [--quick] [--large] [--only NAME ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

# The repository's root in the place of this folder, whose `queue` would stand before the library's.
sys.path[0] = str(Path(__file__).parent.parent)

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from graft_scheduler.basemodels import read_base_model
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import Backend, estimate_peak
from graft_scheduler.messages import Start
from graft_scheduler.states import JobId, Token
from graft_worker.engine.device import backend, device_name
from graft_worker.engine.training import train
from graft_worker.local import LocalLink

LEAST_BYTES = 200 << 20
"""Smaller peaks are not judged."""
CLOSE, PROBED = 0.10, 0.05

BASE: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
}
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 16,
    "vocab_size": 128256,
}
GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 64},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {**GEMMA, "sliding_window": 64, "sliding_window_pattern": 3},
    "phi3": {"tie_word_embeddings": False},
    "mixtral": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 512,
        "tie_word_embeddings": False,
    },
    "qwen3_moe": {
        **EXPERTS,
        "head_dim": 64,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
    "olmo2": {},
    "cohere": {"layer_norm_eps": 1e-5, "logit_scale": 0.06},
    "gpt_neox": {
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "intermediate_size": 2048,
    },
    "starcoder2": {"norm_epsilon": 1e-5},
}
QUICK = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "mixtral", "olmo2")


@dataclass(frozen=True, slots=True)
class Case:
    """One training."""

    architecture: str
    method: str
    length: int
    rows: int
    recomputes: bool

    @property
    def name(self) -> str:
        checkpointing = " checkpointing" if self.recomputes else ""
        return f"{self.architecture} {self.method} {self.rows}x{self.length}{checkpointing}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was said and what was measured, in bytes."""

    predicted: int
    corrected: int
    """By the probe."""
    measured: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def error_after_probe(self) -> float:
        return self.corrected / self.measured - 1


def main() -> None:
    arguments = parse()
    names = arguments.only or (QUICK if arguments.quick else tuple(ARCHITECTURES))
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            model = make_model(Path(folder) / name, name, large=arguments.large)
            for case in cases(name, quick=arguments.quick, large=arguments.large):
                outcome = run(case, model)
                found[case.name] = outcome
                say(case.name, outcome)
    print(json.dumps(report(found)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cases, about four minutes on two cores")
    parser.add_argument("--large", action="store_true", help="a billion parameters in 16 bits, for a GPU")
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=ARCHITECTURES)
    return parser.parse_args()


def cases(architecture: str, *, quick: bool, large: bool) -> Iterator[Case]:
    """Lengths, batches and checkpointing for each method."""
    scale = 4 if large else 1
    shapes = {
        "lora": [(256 * scale, 2, False), (512 * scale, 2, True), (384 * scale, 1, False), (128, 8, False)],
        "full": [(128 * scale, 2, False), (256 * scale, 4, True), (256 * scale, 4, False)],
        "qlora": [(400 * scale, 1, False), (512 * scale, 2, True)],
        "dora": [(256 * scale, 2, False)],
    }
    # MLX's CPU build is slow with quantised matrices: quickly, one case of them must do.
    quantised = 1 if architecture == QUICK[0] else 0
    taken = {"lora": 2, "full": 2, "qlora": quantised, "dora": 0} if quick else {}
    if "num_experts_per_tok" in ARCHITECTURES[architecture]:
        del shapes["dora"]  # it does not fit experts
    for method, several in shapes.items():
        for length, rows, recomputes in several[: taken.get(method, len(several))]:
            yield Case(architecture, method, length, rows, recomputes)


def run(case: Case, model: Path) -> Outcome:
    """Train one step, with the cut given, so that it is known what is measured."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        row = json.dumps({"text": "abcdefgh" * (case.length // 8 + 2)}) + "\n"
        (data / "train.jsonl").write_text(row * case.rows)
        (data / "valid.jsonl").write_text(row)
        job = TrainJob.model_validate(
            {
                "model": str(model),
                "data": {"source": str(data), "allow": ["leak"]},  # one row, often
                "method": case.method,
                "batch_size": case.rows,
                "steps": 1,
                "max_length": case.length,
                "micro_batch_tokens": case.rows * case.length,
                "gradient_checkpointing": case.recomputes,
                "compute": {"compile": False},
            }
        )
        estimate = estimate_peak(read_base_model(model), job, case.length, backend(), case.length)
        budget = round(1.5 * estimate.total_bytes)  # enough, and not so much that nothing would be tried
        start = Start(
            job=JobId("memory"),
            token=Token(1),
            spec=job,
            work_dir=folder,
            deadline=1e12,
            budget_bytes=budget,
        )
        result = train(start, LocalLink(lambda message: None)).result
    assert result is not None
    assert result.peak_memory_bytes is not None
    assert result.predicted_peak_bytes is not None
    corrected = int(result.facts["memory"]["corrected_peak_bytes"])
    return Outcome(result.predicted_peak_bytes, corrected, result.peak_memory_bytes)


def make_model(folder: Path, name: str, *, large: bool, **changes: Any) -> Path:
    """A random model with a tokenizer of bytes."""
    folder.mkdir(parents=True)
    config = {"model_type": name, **BASE, **ARCHITECTURES[name], **(LARGE if large else {}), **changes}
    module = import_module(f"mlx_lm.models.{name}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    parameters = dict(tree_flatten(model.parameters()))
    if large:
        parameters = {key: array.astype(mx.bfloat16) for key, array in parameters.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), parameters)
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    symbols = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types here
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(str(folder))


def report(found: dict[str, Outcome]) -> dict[str, Any]:
    judged = {name: one for name, one in found.items() if one.measured >= LEAST_BYTES}
    errors = [one.error for one in judged.values()]
    after = [one.error_after_probe for one in judged.values()]
    return {
        "benchmark": "memory",
        "figures": {
            "cases": len(judged),
            "within_10_percent_share": share(errors, CLOSE),
            "worst_under_percent": round(-100 * min(errors), 1),
            "worst_over_percent": round(100 * max(errors), 1),
            "after_probe_within_5_percent_share": share(after, PROBED),
            "errors_percent": {name: round(100 * one.error, 1) for name, one in judged.items()},
            "errors_after_probe_percent": {
                name: round(100 * one.error_after_probe, 1) for name, one in judged.items()
            },
        },
        "machine": {"system": platform.platform(), "device": device_name(), "backend": backend().value},
        "versions": {name: version(name) for name in ("mlx", "mlx-lm")},
    }


def share(errors: list[float], limit: float) -> float:
    return round(sum(abs(one) <= limit for one in errors) / len(errors), 3)


def say(name: str, one: Outcome) -> None:
    judged = "" if one.measured >= LEAST_BYTES else ", too small to judge"
    sys.stderr.write(
        f"{name}: measured {one.measured >> 20} MiB, predicted {one.predicted >> 20} ({one.error:+.1%}), "
        f"after the probe {one.corrected >> 20} ({one.error_after_probe:+.1%}){judged}\n"
    )


if __name__ == "__main__":
    if backend() is Backend.METAL:
        sys.stderr.write("Metal: these constants are not verified yet; please send what this prints\n")
    main()
