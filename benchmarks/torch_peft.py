"""One training step against PyTorch + PEFT, and mlx-lm's own, on one device with both frameworks.

    python benchmarks/torch_peft.py [--device cuda|mps|cpu] [--quick]

A random Llama of 1B parameters (on the CPU: 4 blocks of 256) in bfloat16 (on the CPU in float32) with
LoRA of rank 16 on all linear layers and Adam. A step is the gradient of one batch and the update. Each
side runs in a process of its own; a shape's time is the median of its steps after the first few. Ours
cuts a step into micro-batches of at most 4,096 tokens, as a job does that says nothing else.
PyTorch runs as Transformers' Trainer runs it with `bf16=True`: float32 adapters under autocast,
scaled-dot-product attention, fused AdamW, no torch.compile. Explains itself on stderr; the last line
of stdout is one JSON object.
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
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

SHAPES = ((1, 256), (1, 1024), (4, 256), (4, 1024), (8, 256), (8, 1024))
CPU_SHAPES = ((1, 64), (1, 256), (4, 64))
WARM_STEPS = 3
LARGE = {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 688, "num_attention_heads": 8}
RANK, SCALE, RATE = 16, 2.0, 1e-4
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIDES = ("torch", "mlx_lm", "ours")
TOKENS_AT_ONCE = 4096
"""The engine's own cut, fixed: both sides see the same rows at once."""


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer steps of each shape")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = 6 if options.quick else 20
    if options.child:
        child: Callable[[str, int], dict[str, Any]] = globals()[f"run_{options.child}"]
        print(json.dumps(child(options.device, steps)))
        return
    results = {side: run_child(side, options) for side in SIDES}
    figures: dict[str, Any] = {"step_speedup": {}, "peak_memory_ratio": {}, "speedup_over_mlx_lm": {}}
    for rows, width in shapes(options.device):
        name = f"{rows}x{width}"
        torch, mlx_lm, ours = (results[side][name] for side in SIDES)
        figures["step_speedup"][name] = round(torch["seconds"] / ours["seconds"], 3)
        figures["speedup_over_mlx_lm"][name] = round(mlx_lm["seconds"] / ours["seconds"], 3)
        figures["peak_memory_ratio"][name] = round(ours["peak_bytes"] / torch["peak_bytes"], 3)
        say(
            name
            + ": "
            + ", ".join(
                f"{side} {results[side][name]['seconds'] * 1000:.1f} ms, "
                f"{results[side][name]['peak_bytes'] / (1 << 30):.2f} GB"
                for side in SIDES
            )
        )
    machine = {"system": platform.platform(), "device": results["ours"]["device"]}
    packages = ("mlx", "mlx-lm", "torch", "peft", "transformers")
    versions = {name: metadata.version(name) for name in packages}
    print(
        json.dumps({"benchmark": "torch_peft", "figures": figures, "machine": machine, "versions": versions})
    )


def run_child(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """The last line of the side's own process."""
    command = [sys.executable, __file__, "--child", side, "--device", options.device]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def shapes(device: str) -> tuple[tuple[int, int], ...]:
    """Rows and tokens in each."""
    return CPU_SHAPES if device == "cpu" else SHAPES


def config(device: str) -> dict[str, Any]:
    """The model's, in Transformers' words, which are mlx-lm's too."""
    sizes = dict(SMALL if device == "cpu" else LARGE)
    return {
        "model_type": "llama",
        **sizes,
        "num_key_value_heads": sizes["num_attention_heads"] // 4,
        "rms_norm_eps": 1e-5,
        "vocab_size": 8192 if device == "cpu" else 128256,
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
    }


def measure(step: Callable[[], None], steps: int) -> float:
    """The median of the seconds that a step takes, once it is warm."""
    times = []
    for number in range(WARM_STEPS + steps):
        began = time.perf_counter()
        step()
        if number >= WARM_STEPS:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def run_torch(device: str, steps: int) -> dict[str, Any]:
    """PyTorch + PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    settings = {name: value for name, value in config(device).items() if name != "model_type"}
    with torch.device(device):
        base = LlamaForCausalLM(LlamaConfig(**settings)).to(dtype)  # attends by `sdpa`, as by default
    alpha = int(SCALE * RANK)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=alpha, target_modules=list(TARGETS)))
    model.train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.0, fused=device != "mps")
    results: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else device}
    for rows, width in shapes(device):
        tokens = torch.randint(0, settings["vocab_size"], (rows, width + 1), device=device)

        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

        def step(inputs: Any = inputs, targets: Any = targets) -> None:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
                loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = measure(step, steps)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        results[f"{rows}x{width}"] = {"seconds": seconds, "peak_bytes": peak or resident_peak()}
    return results


def run_mlx_lm(device: str, steps: int) -> dict[str, Any]:
    """mlx-lm's loss and layers in a compiled step, as its trainer has it."""
    import mlx.core as mx
    import mlx.optimizers as optimizers
    from mlx import nn
    from mlx_lm.tuner.trainer import default_loss
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = mlx_model(device)
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": None}
    linear_to_lora_layers(model, len(model.layers), parameters)
    model.train()
    optimizer = optimizers.Adam(RATE)
    gradient = nn.value_and_grad(model, default_loss)
    state = [model.state, optimizer.state, mx.random.state]

    def update(batch: mx.array, lengths: mx.array) -> mx.array:
        (loss, _), gradients = gradient(model, batch, lengths)
        optimizer.update(model, gradients)
        found: mx.array = loss
        return found

    compiled = mx.compile(update, inputs=state, outputs=state)
    results: dict[str, Any] = {"device": str(mx.device_info().get("device_name"))}
    for rows, width in shapes(device):
        batch = mx.random.randint(0, config(device)["vocab_size"], (rows, width + 1))
        lengths = mx.array([[0, width]] * rows)

        def step(batch: mx.array = batch, lengths: mx.array = lengths) -> None:
            loss = compiled(batch, lengths)
            mx.eval(state, loss)
            loss.item()

        results[f"{rows}x{width}"] = mlx_figures(step, steps)
    return results


def run_ours(device: str, steps: int) -> dict[str, Any]:
    """The engine's gradient and update."""
    import mlx.core as mx
    import numpy as np

    from graft_scheduler.hyperparameters import LossKernel
    from graft_scheduler.jobs import TrainJob
    from graft_worker.engine.activations import frugal_activations
    from graft_worker.engine.adapters import attach
    from graft_worker.engine.batches import MicroBatch, build
    from graft_worker.engine.compilation import CompilePlan
    from graft_worker.engine.cutting import exact_cutter
    from graft_worker.engine.device import budget_here
    from graft_worker.engine.dropout import micro_batch_key
    from graft_worker.engine.gradients import GradientOfSum
    from graft_worker.engine.layout import choose_layout
    from graft_worker.engine.loss import find_ending, token_loss
    from graft_worker.engine.optimizers import GroupedOptimizer
    from graft_worker.engine.rows import TokenRow

    model = mlx_model(device)
    spec = {"model": "m", "data": "d", "adapter": {"rank": RANK, "scale": SCALE}}
    job = TrainJob.model_validate(spec)
    adapted = attach(model, job, mx.float32 if device == "cpu" else mx.bfloat16)
    model.train()
    layout = choose_layout(job, adapted.shapes)
    parameters = layout.pack(adapted.take())
    optimizer = GroupedOptimizer(job.optimizer, parameters)
    update = optimizer.updater(1.0)
    budget = budget_here(TOKENS_AT_ONCE)
    random = np.random.default_rng(0)
    results: dict[str, Any] = {"device": str(mx.device_info().get("device_name"))}

    def make_rows(rows: int, width: int) -> list[TokenRow]:
        tokens = random.integers(0, config(device)["vocab_size"], (rows, width + 1)).astype(np.int32)
        return [TokenRow(row, np.ones(width + 1, dtype=np.bool_)) for row in tokens]

    sample = make_rows(1, 32)
    sampled = build(sample, MicroBatch(((0,),), 32, 1, 32)).arrays
    ending = find_ending(adapted, layout.unpack(parameters), LossKernel.CHUNKED, sampled)
    with (
        token_loss(adapted, ending) as loss,
        frugal_activations(model),
    ):
        if loss.problem:
            say(loss.problem)
        gradient = GradientOfSum(adapted, loss.training, layout, CompilePlan(None))
        for rows, width in shapes(device):
            chosen = make_rows(rows, width)
            cut = exact_cutter(chosen, budget, job.compute.batching).cut(range(rows))
            batches = [(build(chosen, one), micro_batch_key(0, 0, place)) for place, one in enumerate(cut)]

            def step(batches: Any = tuple(batches)) -> None:
                nonlocal parameters
                found = gradient.of_step(parameters, batches)
                numbers = (mx.array(float(number)) for number in (found.tokens, found.norm, RATE))
                parameters = update(found.total, parameters, *numbers)
                mx.eval(parameters, optimizer.state)

            results[f"{rows}x{width}"] = mlx_figures(step, steps)
    return results


def mlx_model(device: str) -> Any:
    """The random base, frozen."""
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    if device == "cpu":
        mx.set_default_device(mx.cpu)
        mx.disable_compile()
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(config(device)))
    model.set_dtype(mx.float32 if device == "cpu" else mx.bfloat16)
    mx.eval(model.parameters())
    model.freeze()
    return model


def mlx_figures(step: Callable[[], None], steps: int) -> dict[str, float]:
    import mlx.core as mx

    mx.clear_cache()
    mx.reset_peak_memory()
    seconds = measure(step, steps)
    return {"seconds": seconds, "peak_bytes": mx.get_peak_memory()}


def resident_peak() -> int:
    """Where the framework counts nothing: the most this process held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
