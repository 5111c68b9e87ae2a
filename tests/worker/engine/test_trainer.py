"""Training from Python by a few flat settings."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlx_lm
import pytest

import graft_worker
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import Batching, LossKernel, Method
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Log, RunnerMessage
from graft_worker import MLXTrainer, TrainingConfig, TrainResult
from graft_worker.engine import training
from graft_worker.probe import Device, read_device
from tests.worker.engine.tiny import write_rows

LEVELS = (0, 1, 2, 3)
PAGE = Path(__file__).parents[3] / "docs" / "python.md"


def make_config(**changes: Any) -> TrainingConfig:
    settings = {"model_name": "a model", "dataset_path": "some data", "output_path": "out", **changes}
    return TrainingConfig(**settings)


@pytest.fixture
def settings(base: Path, texts: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model_name": base,
        "dataset_path": texts,
        "output_path": tmp_path / "out",
        "max_iters": 4,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "lora_rank": 4,
        "max_length": 64,
    }


def train(settings: dict[str, Any], **changes: Any) -> tuple[TrainResult, list[str]]:
    """The result, and the lines that were logged."""
    heard: list[RunnerMessage] = []
    result = MLXTrainer(TrainingConfig(**{**settings, **changes}), heard.append).train()
    return result, [message.text for message in heard if isinstance(message, Log)]


def give_memory(monkeypatch: pytest.MonkeyPatch, budget_bytes: int) -> None:
    def read() -> Device:
        here = read_device()
        return Device(here.device, here.kind, here.memory_bytes, budget_bytes, here.versions)

    monkeypatch.setattr(training, "read_device", read)


def test_every_level_learns_the_same(
    settings: dict[str, Any], tmp_path: Path, base: Path, texts: Path
) -> None:
    results = [
        train(settings, output_path=tmp_path / str(level), optimization_level=level) for level in LEVELS
    ]

    losses = [result.final_loss for result, _ in results]
    assert losses[0] is not None
    assert losses == pytest.approx([losses[0]] * len(LEVELS), abs=1e-3)
    assert [result.facts["batching"] for result, _ in results] == ["padded", "bucketed", "bucketed", "packed"]
    assert [result.facts["loss_kernel"] for result, _ in results] == ["plain", "plain", "chunked", "chunked"]
    mlx_lm.load(str(base), adapter_path=str(tmp_path / "3" / "adapter"))


def test_a_result_has_the_figures_that_people_ask_for(settings: dict[str, Any]) -> None:
    result, _ = train(settings)

    assert result.initial_loss is not None
    assert result.final_loss is not None
    assert result.final_loss < result.initial_loss
    assert result.training_time > 0
    assert result.peak_memory_gb is not None
    assert result.metrics["final_loss"] == result.final_loss


def test_the_defaults_are_those_of_a_job() -> None:
    job = make_config().job()

    assert (job.method, job.batch_size, job.learning_rate) == (Method.LORA, "auto", 1e-4)
    assert (job.steps, job.epochs, job.adapter.rank, job.adapter.alpha) == (None, None, "auto", None)
    assert (job.compute.batching, job.compute.loss, job.compute.compile) == (
        Batching.BUCKETED,
        LossKernel.CHUNKED,
        True,
    )
    assert (job.micro_batch_tokens, job.gradient_checkpointing) == (None, None)


@pytest.mark.parametrize(("method", "rank"), [("lora", "auto"), ("qlora", "auto"), ("dora", 8), ("full", 8)])
def test_the_rank_is_found_where_the_method_can_be_cut(method: str, rank: object) -> None:
    assert make_config(method=method).job().adapter.rank == rank


def test_every_setting_reaches_the_job() -> None:
    config = make_config(
        method="qlora",
        max_iters=7,
        batch_size=3,
        learning_rate=1e-3,
        lora_rank=6,
        lora_alpha=12,
        max_length=99,
        seed=5,
    )

    job = config.job()

    assert (job.model.source, job.data.source) == ("a model", "some data")
    assert (job.steps, job.batch_size, job.learning_rate, job.max_length, job.seed) == (7, 3, 1e-3, 99, 5)
    assert (job.method, job.adapter.rank, job.adapter.multiplier) == (Method.QLORA, 6, 2.0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batchsize": 3}, "`batchsize` is not a setting; did you mean `batch_size`?"),
        ({"method": "lra"}, "`method` is 'lra'; it must be 'lora', 'qlora', 'dora' or 'full'"),
        ({"max_iters": 0}, "`max_iters` is 0; it must be at least 1"),
        ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1, or 'auto'"),
        ({"learning_rate": 50}, "`learning_rate` is 50.0; it must be at most 10.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan: input should be a finite number"),
        ({"lora_rank": 0}, "`lora_rank` is 0; it must be at least 1, or 'auto'"),
        ({"lora_rank": 5000}, "`lora_rank` is 5000; it must be at most 1024, or 'auto'"),
        ({"lora_alpha": 0}, "`lora_alpha` is 0.0; it must be above 0.0"),
        ({"optimization_level": 4}, "`optimization_level` is 4; it must be 0, 1, 2 or 3"),
        ({"dataset_path": 3}, "`dataset_path` is 3; it must be a str or a Path"),
        ({"model_name": ""}, "`model_name` is '': string should have at least 1 character"),
        (
            {"method": "dora", "lora_rank": "auto"},
            "`lora_rank` is auto, and the method dora cannot be cut; use lora or qlora",
        ),
        (
            {"method": "full", "lora_rank": 8},
            "`lora_rank` is 8, and the method full has no adapters; leave it out",
        ),
    ],
)
def test_a_setting_that_can_never_work_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput) as error:
        make_config(**changes)

    assert str(error.value) == complaint


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidInput, match="`dataset_path` is missing; `output_path` is missing"):
        TrainingConfig.model_validate({"model_name": "a model"})


def test_data_and_models_that_are_not_there_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"

    with pytest.raises(InvalidInput, match=f"`dataset_path` is {nowhere}; there is no such file or folder"):
        train(settings, dataset_path=nowhere)
    with pytest.raises(InvalidInput, match=f"`model_name` is '{nowhere}', and there is no such folder"):
        train(settings, model_name=nowhere)


def test_fields_of_rows_keep_their_names(settings: dict[str, Any], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"model": "a", "data": "b"}])

    with pytest.raises(InvalidInput, match="its fields are `model`, `data`"):
        train(settings, dataset_path=path)


def test_an_output_folder_that_is_not_empty_is_refused_unless_it_is_gone_on_from(
    settings: dict[str, Any],
) -> None:
    train(settings)

    with pytest.raises(InvalidInput, match="is not empty"):
        train(settings)

    checkpoint = settings["output_path"] / "checkpoints" / "step-4"
    again = MLXTrainer(TrainingConfig(**settings), lambda message: None).train(resume_from=checkpoint)

    assert again.steps == 4


def test_too_little_memory_is_told_and_tried_with_the_smallest_cut(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_memory(monkeypatch, 1 << 20)

    result, lines = train(settings, max_iters=1)

    assert result.facts["cut"]["rows"] == 1
    said = [line for line in lines if line.endswith("and only 1 MB are there; no cut is smaller")]
    assert len(said) == 1


@pytest.mark.parametrize(("level", "budget_bytes"), [(0, 1 << 20), (1, 1 << 20), (2, 1 << 40), (3, 1 << 40)])
def test_gradient_checkpointing_is_off_where_it_is_not_needed(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, level: int, budget_bytes: int
) -> None:
    give_memory(monkeypatch, budget_bytes)

    result, lines = train(settings, optimization_level=level, max_iters=1)

    assert result.facts["cut"]["gradient_checkpointing"] is False
    assert any("without gradient checkpointing" in line for line in lines)


def test_a_tilde_means_the_home_of_whoever_trains(
    base: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(base, tmp_path / "model")
    shutil.copytree(texts, tmp_path / "data")
    job = TrainJob.model_validate({"model": "~/model", "data": "~/data", "steps": 1, "max_length": 64})

    result = graft_worker.train(job, Path("~/out"), tell=lambda message: None)

    assert result.steps == 1
    text = (tmp_path / "out" / "adapter" / "adapter_config.json").read_text()
    assert json.loads(text)["model"] == "model"
    assert str(tmp_path) not in text


def test_the_examples_of_the_page_work(
    base: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "my-model")
    shutil.copytree(texts, "my-data")
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)

    assert len(examples) == 8
    for example in examples[:3]:
        exec(
            compile(example, str(PAGE), "exec"), {}
        )  # the others need a service; the client has its own tests
    for example in examples[3:]:
        compile(example, str(PAGE), "exec")
    for name in ("first", "second"):
        mlx_lm.load("my-model", adapter_path=f"out/{name}/adapter")
    mlx_lm.load("out/fused")
