"""Every method and guard from start to adapter, on tiny models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from graft_scheduler.hyperparameters import Method, OptimizerName
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Checkpoint, Evaluated, Log, Progress, Start, TrainResult
from graft_scheduler.states import FailureClass
from graft_worker.engine import gradients, training
from graft_worker.engine.adapters import attach
from graft_worker.engine.loading import load_base
from graft_worker.engine.training import train
from graft_worker.link import JobError
from tests.worker.engine.architectures import ARCHITECTURES, RECURRENT, make_architecture, save_architecture
from tests.worker.engine.tiny import RecordingLink, make_model, make_tokenizer, write_rows

MakeJob = Callable[..., TrainJob]
MakeStart = Callable[..., Start]
TOKENS = mx.array([[1, 40, 50, 60, 70, 80]])
HIGH_RATE = {"optimizer": {"learning_rate": 0.1}, "schedule": {"name": "constant", "warmup": 0.0}}


def result_of(start: Start, link: RecordingLink | None = None) -> TrainResult:
    result = train(start, link or RecordingLink()).result
    assert result is not None
    return result


def warnings_of(link: RecordingLink) -> str:
    return "\n".join(message.text for message in link.of(Log) if message.level == "warning")


@pytest.mark.parametrize("method", Method)
def test_stock_mlx_lm_loads_what_every_method_makes(
    base: Path, make_job: MakeJob, make_start: MakeStart, method: Method
) -> None:
    settings: dict[str, Any] = {"quantization": {"group_size": 32}} if method is Method.QLORA else {}
    job = make_job(method=method, **settings)
    start = make_start(job)

    done = train(start, RecordingLink())

    assert done.result is not None
    assert done.result.final_loss is not None
    assert done.result.initial_loss is not None
    assert done.result.final_loss < done.result.initial_loss
    for folder in (done.output_dir, str(Path(start.work_dir) / "checkpoints" / "step-6")):
        stock = mlx_lm.load(str(base), adapter_path=folder)[0]
        if method is not Method.QLORA:  # that one was trained on another base
            assert mx.allclose(stock(TOKENS), ours(job, f"{folder}/adapters.safetensors"), atol=1e-4)


def ours(job: TrainJob, weights: str) -> mx.array:
    loaded = load_base(job.model, None, job.precision)
    arrays = mx.load(weights)
    assert isinstance(arrays, dict)
    attach(loaded.model, job, mx.float32).put(arrays)
    logits: mx.array = loaded.model(TOKENS)
    return logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batching", ["bucketed", "packed"])
def test_every_architecture_learns(
    tmp_path: Path, make_job: MakeJob, make_start: MakeStart, architecture: str, batching: str
) -> None:
    make_tokenizer(tmp_path)
    save_architecture(tmp_path, architecture)
    link = RecordingLink()

    result = result_of(make_start(make_job(model=str(tmp_path), compute={"batching": batching})), link)

    assert result.final_loss is not None
    assert result.initial_loss is not None
    assert result.final_loss < result.initial_loss
    assert result.facts["loss_kernel"] == "chunked"
    unpackable = batching == "packed" and architecture in RECURRENT
    assert ("rows are not packed" in warnings_of(link)) == unpackable
    assert result.facts["batching"] == ("bucketed" if unpackable else batching)


def test_dora_computes_what_mlx_lm_computes() -> None:
    for architecture in ("llama", "qwen2"):  # without and with biases
        model, _ = make_architecture(architecture)
        model.freeze()
        spec = {"model": "m", "data": "d", "method": "dora", "adapter": {"rank": 4, "scale": 3.0}}
        adapted = attach(model, TrainJob.model_validate(spec), mx.float32)
        for name, value in adapted.masters.items():
            adapted.masters[name] = value + 0.1 * mx.random.normal(value.shape)
        adapted.put(adapted.masters)
        logits = model(TOKENS)

        for _, module in model.named_modules():
            if type(module).__name__ == "ComputedDoRALinear":
                module.__class__ = type(module).__mro__[1]
        assert mx.allclose(logits, model(TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 32), (8, 128)])
def test_qlora_quantises_the_base_when_it_is_loaded(
    tmp_path: Path, make_job: MakeJob, make_start: MakeStart, bits: int, group_size: int
) -> None:
    make_tokenizer(tmp_path)
    make_model(tmp_path, hidden_size=128, intermediate_size=256)
    settings = {"bits": bits, "group_size": group_size}
    job = make_job(model=str(tmp_path), method="qlora", quantization=settings)

    done = train(make_start(job), RecordingLink())

    assert done.result is not None
    assert done.result.facts["quantization"] == settings
    assert done.output_dir is not None
    config = json.loads((Path(done.output_dir) / "adapter_config.json").read_text())
    assert (config["fine_tune_type"], config["base_quantization"]) == ("lora", settings)


def test_qlora_leaves_a_quantised_base_as_it_is(
    tmp_path: Path, make_job: MakeJob, make_start: MakeStart
) -> None:
    quantised_base(tmp_path, bits=8)

    result = result_of(make_start(make_job(model=str(tmp_path), method="qlora")))

    assert result.facts["quantization"] is None


def test_a_full_fine_tune_of_a_quantised_base_is_refused_before_it_is_loaded(
    tmp_path: Path, make_job: MakeJob, make_start: MakeStart
) -> None:
    quantised_base(tmp_path, bits=4)
    (tmp_path / "model.safetensors").unlink()

    with pytest.raises(JobError, match="is quantised; a full fine-tune needs") as refusal:
        train(make_start(make_job(model=str(tmp_path), method="full")), RecordingLink())

    assert refusal.value.failure is FailureClass.CONFIG


def test_a_full_fine_tune_trains_embeddings_and_norms_too(
    base: Path, make_job: MakeJob, make_start: MakeStart
) -> None:
    done = train(make_start(make_job(method="full")), RecordingLink())

    before = mx.load(str(base / "model.safetensors"))
    after = mx.load(f"{done.output_dir}/adapters.safetensors")
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert before.keys() == after.keys()
    assert not any(mx.array_equal(before[name], after[name]).item() for name in before)


def test_a_full_fine_tune_of_the_last_block_trains_no_other(make_job: MakeJob, make_start: MakeStart) -> None:
    done = train(make_start(make_job(method="full", adapter={"layers": 1})), RecordingLink())

    arrays = mx.load(f"{done.output_dir}/adapters.safetensors")
    assert isinstance(arrays, dict)
    assert {name.split(".")[2] for name in arrays} == {"1"}


def test_rslora_divides_alpha_by_the_root_of_the_rank(make_job: MakeJob, make_start: MakeStart) -> None:
    done = train(
        make_start(make_job(adapter={"rank": 16, "alpha": 8.0, "rslora": True}, steps=1)), RecordingLink()
    )

    assert done.output_dir is not None
    config = json.loads((Path(done.output_dir) / "adapter_config.json").read_text())
    assert config["lora_parameters"]["scale"] == 2.0


@pytest.mark.parametrize("optimizer", OptimizerName)
def test_every_optimizer_lowers_the_loss_at_its_default_rate(
    make_job: MakeJob, make_start: MakeStart, optimizer: OptimizerName
) -> None:
    result = result_of(make_start(make_job(optimizer={"name": optimizer}, steps=12)))

    assert result.final_loss is not None
    assert result.initial_loss is not None
    assert result.final_loss < result.initial_loss


def test_no_cut_moves_the_final_loss(make_job: MakeJob, make_start: MakeStart) -> None:
    ways = [
        {"batching": "padded", "loss": "plain"},
        {"batching": "padded", "loss": "chunked"},
        {"batching": "bucketed"},
        {"batching": "packed"},
    ]
    losses = []
    for place, way in enumerate(ways):
        for tokens in (1, 4096):
            job = make_job(steps=10, compute=way, micro_batch_tokens=tokens)
            losses.append(result_of(make_start(job, f"{place}-{tokens}")).final_loss or math.nan)

    assert max(losses) - min(losses) <= 1e-3


def test_a_job_that_no_longer_improves_stops_early_and_keeps_the_best(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    job = make_job(steps=40, evaluation={"every": 1, "patience": 3}, **HIGH_RATE)
    link = RecordingLink()

    result = result_of(make_start(job), link)

    losses = [message.loss for message in link.of(Evaluated)][1:]
    assert result.stopped_early
    assert result.steps == len(losses) < 40
    assert result.best_step == result.saved_step == result.steps - 3
    assert min(losses) == losses[result.best_step - 1] == result.best_loss
    assert "stopped early" in "\n".join(message.text for message in link.of(Log))


def test_a_job_that_stopped_early_stays_stopped(make_job: MakeJob, make_start: MakeStart) -> None:
    job = make_job(steps=40, evaluation={"every": 1, "patience": 3}, **HIGH_RATE)
    start = make_start(job)
    first = result_of(start)

    newest = Path(start.work_dir) / "checkpoints" / f"step-{first.steps}"
    again = result_of(make_start(job, "again", resume_dir=str(newest)))

    assert (again.steps, again.saved_step, again.best_loss) == (
        first.steps,
        first.saved_step,
        first.best_loss,
    )


def test_a_step_without_a_number_is_skipped_and_counted(
    make_job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_steps(monkeypatch, {2, 3})
    link = RecordingLink()

    result = result_of(make_start(make_job()), link)

    assert result.skipped_steps == 2
    assert result.steps == 6
    assert "step 3 was skipped: loss nan" in warnings_of(link)
    assert all(math.isfinite(message.loss or 0.0) for message in link.of(Progress))


def test_too_many_such_steps_in_a_row_end_the_job(
    make_job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_steps(monkeypatch, {1, 3, 4})
    job = make_job(optimizer={"learning_rate": 1e-3, "max_skipped_steps": 2}, checkpoint={"every": 1})

    with pytest.raises(JobError, match="no number 2 times in a row; the last good") as error:
        train(make_start(job), RecordingLink())

    assert error.value.failure is FailureClass.DIVERGED


def spoil_steps(monkeypatch: pytest.MonkeyPatch, spoiled: set[int]) -> None:
    """The loss of these steps, counted from 0, is no number."""
    of_step = gradients.GradientOfSum.of_step
    steps = iter(range(1000))

    def spoil(self: Any, *args: Any) -> gradients.StepGradient:
        found = of_step(self, *args)
        if next(steps) not in spoiled:
            return found
        loss = math.nan
        return gradients.StepGradient(loss, found.total, found.tokens, 1, 1, found.norm)

    monkeypatch.setattr(gradients.GradientOfSum, "of_step", spoil)


def test_progress_tells_the_gradient_norm_and_the_padding(make_job: MakeJob, make_start: MakeStart) -> None:
    link = RecordingLink()

    result = result_of(make_start(make_job(compute={"batching": "padded"}, micro_batch_tokens=4096)), link)

    newest = link.of(Progress)[-1]
    assert newest.gradient_norm is not None
    assert newest.gradient_norm > 0
    assert newest.padding_share is not None
    assert 0 < newest.padding_share < 1
    assert result.padding_share is not None
    assert (result.training_time, result.metrics["final_loss"]) == (
        result.training_seconds,
        result.final_loss,
    )


def test_the_adapters_compute_in_the_bases_dtype_and_learn_in_float32(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    plain = result_of(make_start(make_job(steps=12), "plain"))
    for branch, expected in (("auto", "bfloat16"), ("float32", "float32")):
        job = make_job(precision="bfloat16", compute={"branch_dtype": branch}, steps=12)
        start = make_start(job, branch)

        result = result_of(start)

        assert (result.facts["dtype"], result.facts["adapter_dtype"]) == ("bfloat16", expected)
        arrays = mx.load(f"{start.work_dir}/adapter/adapters.safetensors")
        assert isinstance(arrays, dict)
        assert {array.dtype for array in arrays.values()} == {mx.float32}
        assert result.final_loss == pytest.approx(plain.final_loss, rel=0.02)


def test_a_float16_base_keeps_its_adapters_in_float32(make_job: MakeJob, make_start: MakeStart) -> None:
    assert result_of(make_start(make_job(precision="float16"))).facts["adapter_dtype"] == "float32"


def test_a_full_fine_tune_of_16_bits_learns_in_float32_and_is_saved_in_16(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    start = make_start(make_job(method="full", precision="bfloat16", optimizer={"learning_rate": 1e-4}))

    result_of(start)

    saved = mx.load(f"{start.work_dir}/adapter/adapters.safetensors")
    masters = mx.load(f"{start.work_dir}/checkpoints/step-6/adapters.safetensors")
    assert isinstance(saved, dict)
    assert isinstance(masters, dict)
    assert {array.dtype for array in saved.values()} == {mx.bfloat16}
    assert {array.dtype for array in masters.values()} == {mx.float32}


def test_dora_on_expert_layers_is_refused_with_a_remedy(
    tmp_path: Path, make_job: MakeJob, make_start: MakeStart
) -> None:
    make_tokenizer(tmp_path)
    save_architecture(tmp_path, "mixtral")

    with pytest.raises(JobError, match=r"dora does not fit `block_sparse_moe\.switch_mlp\..*use lora"):
        train(make_start(make_job(model=str(tmp_path), method="dora")), RecordingLink())


def test_rows_of_prompts_compute_no_logits_for_what_is_not_learned(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    rows = [{"prompt": "a" * 30, "completion": "b" * (row % 3 + 1)} for row in range(12)]
    write_rows(tmp_path / "train.jsonl", rows)
    settings = {"data": str(tmp_path), "steps": 4}

    chunked = result_of(make_start(make_job(**settings), "chunked"))
    plain = result_of(make_start(make_job(**settings, compute={"loss": "plain"}), "plain"))

    assert chunked.tokens == plain.tokens
    assert chunked.final_loss == pytest.approx(plain.final_loss, rel=1e-5)


def quantised_base(folder: Path, bits: int) -> None:
    make_tokenizer(folder)
    make_model(folder)
    model, config = mlx_lm.utils.load_model(folder)
    nn.quantize(model, group_size=32, bits=bits)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config["quantization"] = {"group_size": 32, "bits": bits}
    (folder / "config.json").write_text(json.dumps(config))


def test_rank_auto_saves_a_smaller_adapter_and_the_uncut_one_on_request(
    base: Path, make_job: MakeJob, make_start: MakeStart
) -> None:
    adapter = {"rank": "auto", "max_rank": 8, "rank_tolerance": 0.05, "keep_uncut": True}
    done = train(make_start(make_job(adapter=adapter, steps=20)), RecordingLink())

    assert done.result is not None
    assert done.output_dir is not None
    facts, folder = done.result.facts, Path(done.output_dir)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["lora_parameters"]["rank"] == facts["rank"] < 8
    assert max(facts["kept_ranks"].values()) == facts["rank"]
    assert done.result.perplexity is not None
    assert math.log(done.result.perplexity) <= facts["uncut_loss"] * 1.05
    mlx_lm.load(str(base), adapter_path=str(folder))
    mlx_lm.load(str(base), adapter_path=str(folder / "uncut"))
    uncut = json.loads((folder / "uncut" / "adapter_config.json").read_text())
    assert uncut["lora_parameters"]["rank"] == 8


def test_a_checkpoint_due_at_a_skipped_step_is_saved_with_the_next(
    make_job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_steps(monkeypatch, {2})
    link = RecordingLink()

    train(make_start(make_job(checkpoint={"every": 3}, evaluation={"every": 6})), link)

    assert [message.step for message in link.of(Checkpoint)] == [4, 6]


def test_a_job_whose_every_step_was_skipped_has_diverged(
    make_job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_steps(monkeypatch, {0, 1, 2})

    with pytest.raises(JobError, match="all 3 steps were skipped") as error:
        train(make_start(make_job(steps=3)), RecordingLink())

    assert error.value.failure is FailureClass.DIVERGED


def test_gradients_are_never_taken_of_an_evaluating_model(
    make_job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    value_and_grad = mx.value_and_grad
    evaluating: list[nn.Module] = []
    models: list[nn.Module] = []

    def attach_and_watch(model: nn.Module, *args: Any) -> Any:
        models.append(model)
        return attach(model, *args)

    def watch(function: Any, *args: Any, **kwargs: Any) -> Any:
        differentiated = value_and_grad(function, *args, **kwargs)

        def call(*args: Any, **kwargs: Any) -> Any:
            evaluating.extend(model for model in models if not model.training)
            return differentiated(*args, **kwargs)

        return call

    monkeypatch.setattr(training, "attach", attach_and_watch)
    monkeypatch.setattr(mx, "value_and_grad", watch)
    train(make_start(make_job(adapter={"rank": "auto", "max_rank": 4, "dropout": 0.2})), RecordingLink())

    assert models
    assert not evaluating


def test_files_of_trackers_travel_with_the_adapter_and_never_fail_it(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    start = make_start(make_job(tracking={"to": ["csv"]}))
    strange = Path(start.work_dir) / "tracking" / "run.1"
    strange.mkdir(parents=True)
    (strange / "debug.log").symlink_to("nowhere")

    done = train(start, RecordingLink())

    assert done.output_dir is not None
    rows = (Path(done.output_dir) / "tracking" / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("step,train/loss")
    assert rows[-1].startswith("6,")


def test_a_group_size_that_divides_no_layer_is_refused(make_job: MakeJob, make_start: MakeStart) -> None:
    job = make_job(method="qlora", quantization={"group_size": 128})

    with pytest.raises(JobError, match=r"`quantization\.group_size` is 128, and divides no layer"):
        train(make_start(job), RecordingLink())


def test_experts_in_16_bits_on_the_cpu_are_refused_with_a_remedy(
    tmp_path: Path, make_job: MakeJob, make_start: MakeStart
) -> None:
    make_tokenizer(tmp_path)
    save_architecture(tmp_path, "mixtral")

    with pytest.raises(JobError, match=r"`precision` is bfloat16.*use float32"):
        train(make_start(make_job(model=str(tmp_path), precision="bfloat16")), RecordingLink())
