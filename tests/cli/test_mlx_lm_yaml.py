"""`graft train -c` with a configuration that was written for mlx-lm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graft_cli.train_settings import build_job
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import TrainJob
from tests.cli.conftest import Graft

pytest.importorskip("yaml")

LORA_CONFIG = """
# Every option of mlx-lm's, as its example shows them.
model: "mlx-community/some-model"
train: true
fine_tune_type: lora
optimizer: adamw
optimizer_config:
  adamw:
    betas: [0.9, 0.98]
    eps: 1e-6
    weight_decay: 0.05
    bias_correction: true
data: "data"
seed: 7
num_layers: 16
batch_size: 4
iters: 1000
val_batches: 25
learning_rate: 1e-5
steps_per_report: 10
steps_per_eval: 200
resume_adapter_file: null
adapter_path: "adapters"
save_every: 100
test: false
test_batches: 100
max_seq_length: 2048
grad_checkpoint: false
grad_accumulation_steps: 1
mask_prompt: false
report_to: null
lora_parameters:
  keys: ["self_attn.q_proj", "self_attn.v_proj"]
  rank: 8
  scale: 20.0
  dropout: 0.0
lr_schedule:
  name: cosine_decay
  warmup: 100
  warmup_init: 1e-7
  arguments: [1e-5, 1000, 1e-7]
"""


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    file = tmp_path / "lora_config.yaml"
    file.write_text(LORA_CONFIG)
    return file


@pytest.fixture
def small_base(tmp_path: Path) -> Path:
    """A model folder with two blocks."""
    folder = tmp_path / "base"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    return folder


def test_mlx_lms_example_runs_unchanged(yaml_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = build_job(yaml_file, {}, [])

    assert (job.model.source, job.data.source, job.seed) == ("mlx-community/some-model", "data", 7)
    assert (job.steps, job.batch_size, job.adapter.layers) == (1000, 4, 16)
    assert job.adapter.targets == ("self_attn.q_proj", "self_attn.v_proj")
    assert (job.optimizer.betas, job.optimizer.eps, job.optimizer.weight_decay) == ((0.9, 0.98), 1e-6, 0.05)
    assert (job.schedule.name, job.schedule.decay_steps) == ("cosine", 1000)
    assert job.schedule.final == pytest.approx(0.01)
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{yaml_file} is a configuration of mlx-lm's" in told.err
    assert "`adapter_path` has no effect" in told.err


def test_flags_and_set_win_over_mlx_lms_file(yaml_file: Path) -> None:
    flags = {"model": "org/other", "epochs": 2.0, "adapter.alpha": 16.0}

    job = build_job(yaml_file, flags, ["lr=0.5", "warmup=0.2", "optimizer.max_grad_norm=1"])

    assert (job.model.source, job.epochs, job.steps) == ("org/other", 2.0, None)
    assert (job.adapter.multiplier, job.learning_rate, job.optimizer.max_grad_norm) == (2.0, 0.5, 1.0)
    assert (job.schedule.warmup, job.schedule.warmup_steps) == (0.2, None)


def test_a_model_with_fewer_blocks_than_the_default_trains_them_all(tmp_path: Path, small_base: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("data: rows\niters: 10\n")

    assert build_job(file, {"model": str(small_base)}, []).adapter.layers == 2
    assert build_job(file, {"model": "org/base"}, []).adapter.layers == 16
    assert build_job(file, {"model": str(small_base), "adapter.layers": 1}, []).adapter.layers == 1


def test_more_layers_than_the_model_has_stay_an_error(graft: Graft, tmp_path: Path, small_base: Path) -> None:
    (small_base / "tokenizer.json").write_text("{}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a row"}\n' * 4)
    file = tmp_path / "many.yaml"
    file.write_text(f"model: {small_base}\ndata: {rows}\nnum_layers: 9\n")

    run = graft("train", "-c", str(file), "--local", "--output", str(tmp_path / "out"))

    assert run.code == 2
    assert "`adapter.layers` is 9; it must be at most 2" in run.stderr


def test_a_bad_key_is_named_with_its_file(graft: Graft, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("model: m\ndata: d\niters: 10\nnum_layer: 4\n")

    run = graft("train", "-c", str(file))

    assert run.code == 2
    assert run.stdout == ""
    assert f"{file}: `num_layer` is not a key of mlx-lm's; did you mean `num_layers`?" in run.stderr


def test_without_data_the_option_is_named(graft: Graft, tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("model: org/base\niters: 10\n")

    assert "`--data` is missing" in graft("train", "-c", str(file)).stderr


def test_the_config_beside_an_adapter_of_mlx_lms_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(
        json.dumps({"model": "org/m", "data": "d", "iters": 3, "train": True, "config": "a.yaml"})
    )

    assert build_job(file, {}, []).steps == 3


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "+1E-5", "0.00001"])
def test_numbers_in_yaml_are_numbers_in_our_own_files_too(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text(f"model: org/m\ndata: d\nlr: {text}\nname: 1e-5x\n")

    job = build_job(file, {}, [])

    assert (job.learning_rate, job.name) == (1e-5, "1e-5x")


@pytest.mark.parametrize(("text", "rank"), [("auto", "auto"), ("16", 16)])
def test_rank_is_a_number_or_auto(
    graft: Graft, monkeypatch: pytest.MonkeyPatch, text: str, rank: object
) -> None:
    jobs: list[TrainJob] = []
    monkeypatch.setattr("graft_cli.train.submit", lambda job, *_, **__: jobs.append(job))

    assert graft("train", "-m", "org/m", "-d", "rows", "--rank", text).code == 0
    assert jobs[0].adapter.rank == rank


def test_another_rank_is_refused_with_the_remedy(graft: Graft) -> None:
    run = graft("train", "-m", "org/m", "-d", "rows", "--rank", "big")

    assert run.code == 2
    assert "'--rank': 'big' must be a whole number, such as 8, or auto" in run.stderr


def test_settings_of_both_kinds_in_one_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mixed.yaml"
    file.write_text("model: m\ndata: d\niters: 10\nepochs: 2\n")

    with pytest.raises(InvalidInput, match=r"mixed\.yaml: `epochs` is a setting of Graft's and `iters` one"):
        build_job(file, {}, [])
