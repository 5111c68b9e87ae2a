"""Which layers get an adapter, and that stock mlx-lm loads what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from graft_scheduler.data.reading import read_rows
from graft_scheduler.hyperparameters import Precision
from graft_scheduler.jobs import DataFormat, ModelRef, TrainJob
from graft_scheduler.messages import Start
from graft_scheduler.states import FailureClass
from graft_worker.engine import training
from graft_worker.engine.adapters import attach, choose_modules
from graft_worker.engine.cutting import Budget
from graft_worker.engine.evaluation import Evaluator
from graft_worker.engine.loading import load_base
from graft_worker.engine.loss import plain_loss
from graft_worker.engine.rows import Reading, tokenise
from graft_worker.link import JobError
from tests.worker.engine.tiny import RecordingLink, make_model, make_tokenizer

MODULES = ("mlp.down_proj", "mlp.gate_proj", "self_attn.k_proj", "self_attn.q_proj")
TOKENS = mx.array([[7, 40, 99, 12, 200]])


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (None, MODULES),
        (("self_attn.q_proj",), ("self_attn.q_proj",)),
        (("q_proj", "down_proj"), ("mlp.down_proj", "self_attn.q_proj")),
        (("mlp.*",), ("mlp.down_proj", "mlp.gate_proj")),
        (("*_proj",), MODULES),
    ],
)
def test_targets_name_modules_by_path_end_or_pattern(
    targets: tuple[str, ...] | None, chosen: tuple[str, ...]
) -> None:
    assert choose_modules(MODULES, targets) == chosen


def test_a_target_that_names_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(JobError) as refusal:
        choose_modules(MODULES, ("q_proj", "proj", "wo"))

    assert refusal.value.failure is FailureClass.CONFIG
    assert "`proj`" in refusal.value.text
    assert "mlp.down_proj, mlp.gate_proj, self_attn.k_proj, self_attn.q_proj" in refusal.value.text


def test_only_the_last_blocks_are_adapted(base: Path) -> None:
    model = load_base(ModelRef(source=str(base)), None, Precision.AUTO).model

    adapted = attach(model, job(adapter={"rank": 2, "layers": 1, "targets": ["q_proj"]}), mx.float32)

    assert sorted(adapted.masters) == [
        "model.layers.1.self_attn.q_proj.lora_a",
        "model.layers.1.self_attn.q_proj.lora_b",
    ]


def test_more_layers_than_the_model_has_are_refused(base: Path) -> None:
    model = load_base(ModelRef(source=str(base)), None, Precision.AUTO).model

    with pytest.raises(JobError, match=r"`adapter\.layers` is 3; the model has 2 blocks"):
        attach(model, job(adapter={"layers": 3}), mx.float32)


def test_fresh_adapters_change_nothing_and_depend_on_the_seed(base: Path) -> None:
    plain = load_base(ModelRef(source=str(base)), None, Precision.AUTO).model
    expected = plain(TOKENS)
    starts = []
    for seed in (1, 1, 2):
        model = load_base(ModelRef(source=str(base)), None, Precision.AUTO).model
        adapted = attach(model, job(seed=seed), mx.float32)
        assert mx.array_equal(model(TOKENS), expected)
        starts.append(adapted.masters["model.layers.0.mlp.up_proj.lora_a"])

    assert mx.array_equal(starts[0], starts[1])
    assert not mx.array_equal(starts[0], starts[2])


@pytest.mark.parametrize(
    "adapter", [{"rank": 4}, {"rank": 3, "alpha": 6.0, "layers": 1, "targets": ["q_proj", "mlp.*"]}]
)
def test_stock_mlx_lm_loads_the_adapter_with_equal_logits(
    base: Path,
    make_job: Callable[..., TrainJob],
    make_start: Callable[..., Start],
    texts: Path,
    adapter: dict[str, object],
) -> None:
    job = make_job(adapter=adapter)
    start = make_start(job)

    done = training.train(start, RecordingLink())

    assert done.result is not None
    assert done.output_dir is not None
    newest = Path(start.work_dir) / "checkpoints" / "step-6"
    for folder in (done.output_dir, str(newest)):
        assert stock_loss(base, texts, folder) == pytest.approx(done.result.final_loss, rel=1e-5)
        assert mx.allclose(stock_logits(base, folder), own_logits(base, job, folder), atol=1e-5)


def test_the_saved_adapter_says_which_base_it_belongs_to(
    base: Path, make_job: Callable[..., TrainJob], make_start: Callable[..., Start]
) -> None:
    job = make_job(
        steps=1, model={"source": str(base), "revision": "main"}, adapter={"rank": 2, "alpha": 4.0}
    )

    done = training.train(make_start(job), RecordingLink())

    assert done.output_dir is not None
    config = json.loads((Path(done.output_dir) / "adapter_config.json").read_text())
    assert (config["model"], config["revision"]) == (base.name, "main")
    assert config["fine_tune_type"] == "lora"
    assert config["num_layers"] == 2
    assert config["lora_parameters"]["rank"] == 2
    assert config["lora_parameters"]["scale"] == 2.0


def test_a_quantised_base_is_trained_and_its_adapter_loads(
    tmp_path: Path, make_job: Callable[..., TrainJob], make_start: Callable[..., Start]
) -> None:
    folder = tmp_path / "quantised"
    folder.mkdir()
    make_tokenizer(folder)
    make_model(folder)
    quantise(folder)

    done = training.train(make_start(make_job(model=str(folder), steps=2)), RecordingLink())

    assert done.result is not None
    assert done.output_dir is not None
    assert done.result.final_loss is not None
    model = mlx_lm.load(str(folder), adapter_path=done.output_dir)[0]
    assert model.layers[0].mlp.up_proj.linear.bits == 4


def job(**settings: object) -> TrainJob:
    return TrainJob.model_validate({"model": "m", "data": "d", "adapter": {"rank": 4}, **settings})


def stock_loss(base: Path, texts: Path, adapter: str) -> float:
    """The validation loss of what stock mlx-lm loads; the trained model's own is in its result."""
    model, tokenizer = mlx_lm.load(str(base), adapter_path=adapter)[:2]
    rows = read_rows(texts / "valid.jsonl")
    encoded = tokenise(rows, tokenizer, Reading(DataFormat.TEXT, True, 64))
    return Evaluator(model, plain_loss(model), encoded.rows, Budget(128))().loss


def stock_logits(base: Path, adapter: str) -> mx.array:
    logits: mx.array = mlx_lm.load(str(base), adapter_path=adapter)[0](TOKENS)
    return logits


def own_logits(base: Path, job: TrainJob, adapter: str) -> mx.array:
    model = load_base(ModelRef(source=str(base)), None, Precision.AUTO).model
    arrays = mx.load(f"{adapter}/adapters.safetensors")
    assert isinstance(arrays, dict)
    attach(model, job.model_copy(update={"seed": 5}), mx.float32).put(arrays)
    logits: mx.array = model(TOKENS)
    return logits


def quantise(folder: Path) -> None:
    """Make the model in `folder` a 4-bit one."""
    model, config = load_model(folder)
    nn.quantize(model, group_size=32, bits=4)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 32, "bits": 4}}))
