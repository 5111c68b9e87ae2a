"""What mlx-lm's configuration becomes, key by key, and what of it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.errors import InvalidInput
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.mlx_lm_config import OUR_NAMES, RENAMED, from_mlx_lm, is_mlx_lm
from graft_scheduler.mlx_lm_keys import KEYS

NEEDED = {"model": "org/base", "data": "rows", "iters": 1000}
DATASET_KEYS = {"hf_dataset", "prompt_feature", "completion_feature", "chat_feature", "text_feature"}
"""What mlx_lm/tuner/datasets.py reads besides, without a default in `CONFIG_DEFAULTS`."""


def job(blocks: int | None = None, **values: Any) -> TrainJob:
    return build_train_job(from_mlx_lm({**NEEDED, **values}, blocks).settings)


def notes(blocks: int | None = None, **values: Any) -> str:
    return "\n".join(from_mlx_lm({**NEEDED, "num_layers": 16, **values}, blocks).notes)


def refusal(**values: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        from_mlx_lm({**NEEDED, **values})
    return str(caught.value)


def test_the_table_has_every_key_of_mlx_lm_and_its_default() -> None:
    from mlx_lm.lora import CONFIG_DEFAULTS

    assert set(KEYS) == set(CONFIG_DEFAULTS) | DATASET_KEYS
    named = set(CONFIG_DEFAULTS) - {"model", "data"}
    assert {name: KEYS[name].default for name in named} == {name: CONFIG_DEFAULTS[name] for name in named}


def test_the_page_names_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mlx-lm.md").read_text()

    assert [name for name in KEYS if f"`{name}`" not in page] == []


def test_only_a_few_names_are_both_ours_and_mlx_lms() -> None:
    assert OUR_NAMES & set(KEYS) == {"model", "data", "seed", "batch_size", "learning_rate", "optimizer"}
    assert all(KEYS[name].becomes for name in RENAMED)


def test_without_any_key_it_is_the_run_of_mlx_lms_defaults() -> None:
    made = job()

    assert (made.method, made.seed, made.data.mask_prompt, made.max_length) == ("lora", 0, False, 2048)
    assert (made.steps, made.epochs, made.batch_size) == (1000, None, 4)
    adapter = made.adapter
    assert (adapter.rank, adapter.multiplier, adapter.dropout) == (8, 20.0, 0.0)
    assert (adapter.targets, adapter.layers) == (None, 16)
    optimizer = made.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adam", 1e-5, 0.0)
    assert (optimizer.bias_correction, optimizer.max_grad_norm) == (False, None)
    assert (made.schedule.name, made.schedule.warmup_steps) == ("constant", 0)
    assert (made.evaluation.every, made.evaluation.rows, made.checkpoint.every) == (200, 100, 100)
    assert (made.tracking.to, made.gradient_checkpointing) == ((), None)


@pytest.mark.parametrize(
    ("values", "is_theirs"),
    [
        ({"iters": 10}, True),
        ({"model": "m", "optimizer": "adamw"}, True),
        ({"lora_parameters": {"rank": 4}}, True),
        ({"model": "m", "data": "d", "batch_size": 4, "learning_rate": 1e-4, "seed": 1}, False),
        ({"optimizer": {"name": "sgd"}, "rank": 4}, False),
        ({}, False),
    ],
)
def test_a_file_is_mlx_lms_when_it_has_a_key_that_only_mlx_lm_knows(
    values: dict[str, Any], is_theirs: bool
) -> None:
    assert is_mlx_lm(values) is is_theirs


def test_micro_batches_become_steps() -> None:
    made = job(iters=1001, grad_accumulation_steps=4, batch_size=2, steps_per_eval=200, save_every=30)

    assert (made.steps, made.batch_size) == (251, 8)
    assert (made.evaluation.every, made.evaluation.rows, made.checkpoint.every) == (50, 50, 8)
    told = notes(iters=1001, grad_accumulation_steps=4, batch_size=2)
    assert "1001 micro-batches are 251 steps of 8 rows; mlx-lm leaves the last 1 unused" in told


def test_minus_one_validation_batches_are_all_rows() -> None:
    assert job(val_batches=-1).evaluation.rows is None


@pytest.mark.parametrize(
    ("given", "blocks", "layers"),
    [(None, None, 16), (None, 24, 16), (None, 6, 6), (-1, 6, None), (0, None, None), (4, 6, 4), (9, 6, 9)],
)
def test_sixteen_layers_are_a_default_that_a_smaller_model_lowers(
    given: int | None, blocks: int | None, layers: int | None
) -> None:
    assert job(blocks, num_layers=given).adapter.layers == layers


@pytest.mark.parametrize(("blocks", "layers"), [(6, 6), (None, None)])
def test_a_full_fine_tune_of_all_blocks_names_their_number_where_it_is_known(
    blocks: int | None, layers: int | None
) -> None:
    made = job(blocks, fine_tune_type="full", num_layers=-1, lora_parameters={"keys": ["q"], "dropout": 0.1})

    assert (made.method, made.adapter.layers, made.adapter.targets) == ("full", layers, None)
    told = notes(blocks, fine_tune_type="full", num_layers=-1)
    assert ("embeddings, last norm and head learn too" in told) is (blocks is None)


def test_keys_are_targets() -> None:
    parameters = {"rank": 4, "scale": 10, "dropout": 0.1, "keys": ["self_attn.q_proj"]}
    made = job(lora_parameters=parameters, fine_tune_type="dora")

    assert (made.method, made.adapter.rank, made.adapter.multiplier) == ("dora", 4, 10.0)
    assert (made.adapter.dropout, made.adapter.targets) == (0.1, ("self_attn.q_proj",))


def test_what_is_missing_in_lora_parameters_is_told() -> None:
    told = notes(lora_parameters={"rank": 4})

    assert "`lora_parameters.scale` is missing, which mlx-lm refuses; it is 20" in told


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adam", {"betas": [0.8, 0.9], "eps": 1e-6}, {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.0}),
        ("AdamW", {}, {"weight_decay": 0.01, "bias_correction": False, "betas": (0.9, 0.999)}),
        ("adamw", {"bias_correction": True, "weight_decay": 0}, {"weight_decay": 0, "bias_correction": True}),
        ("muon", {}, {"weight_decay": 0.01, "momentum": 0.95}),
        ("muon", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9}),
        ("sgd", {"momentum": 0.5, "dampening": 0}, {"weight_decay": 0.0, "momentum": 0.5}),
        ("adafactor", {"relative_step": False}, {"weight_decay": 0.0}),
    ],
)
def test_an_optimizer_has_its_own_options_and_defaults(
    name: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    made = job(optimizer=name, optimizer_config={name.lower(): options})

    assert made.optimizer.name == name.lower()
    assert {field: getattr(made.optimizer, field) for field in expected} == expected


def test_options_of_another_optimizer_and_a_rate_that_adafactor_would_ignore_are_told() -> None:
    config = {"sgd": {"momentum": 0.9}, "adam": None}

    assert "`optimizer_config.sgd` has no effect: `optimizer` is adam" in notes(optimizer_config=config)
    assert "passes over `learning_rate`" in notes(optimizer="adafactor")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("cosine_decay", [1e-4, 500], {"name": "cosine", "decay_steps": 500, "final": 0.0}),
        ("cosine_decay", [1e-4, 500, 1e-5], {"name": "cosine", "decay_steps": 500, "final": 0.1}),
        ("linear_schedule", [1e-4, 0, 500], {"name": "linear", "decay_steps": 500, "final": 0.0}),
        ("exponential_decay", [1e-4, 0.99], {"name": "exponential", "decay_rate": 0.99}),
        ("step_decay", [1e-4, 0.5, 100], {"name": "step", "decay_rate": 0.5, "decay_every": 100}),
    ],
)
def test_a_schedule_keeps_its_shape_and_begins_with_its_own_rate(
    name: str, arguments: list[float], expected: dict[str, Any]
) -> None:
    made = job(lr_schedule={"name": name, "arguments": arguments, "warmup": 10}, learning_rate=1.0)

    assert made.optimizer.learning_rate == 1e-4
    assert made.schedule.warmup_steps == 11
    found = {field: getattr(made.schedule, field) for field in expected}
    assert found == pytest.approx(expected)


def test_reports_go_to_wandb() -> None:
    made = job(report_to="wandb", project_name="p")

    assert (made.tracking.to, made.tracking.project) == (("wandb",), "p")


def test_what_has_no_effect_is_told_and_nulls_are_not() -> None:
    told = notes(adapter_path="here", steps_per_report=5, test=False, resume_adapter_file=None, config=None)

    assert "`adapter_path` has no effect: `graft pull JOB -o DIR`" in told
    assert "`steps_per_report` has no effect" in told
    assert "`test`" not in told
    assert len(told.splitlines()) == 2
    assert "`test` has no effect" in notes(test=True)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"itres": 5}, "`itres` is not a key of mlx-lm's; did you mean `iters`?"),
        ({"lora_layers": 5}, "`lora_layers` is not a key of mlx-lm's; it is `num_layers` now"),
        (
            {"lora_parameters": {"rnak": 5}},
            "`lora_parameters.rnak` is not a key of mlx-lm's; did you mean `rank`?",
        ),
        ({"epochs": 2}, "`epochs` is a setting of Graft's and `iters` one of mlx-lm's"),
        ({"optimizer.name": "sgd"}, "`optimizer.name` is a setting of Graft's"),
        ({"iters": "many"}, "`iters` is 'many'; it must be a whole number of at least 1"),
        ({"iters": True}, "`iters` is True; it must be a whole number"),
        ({"learning_rate": "1e-5"}, "`learning_rate` is '1e-5'; it must be a number above 0"),
        ({"num_layers": "all"}, "`num_layers` is 'all'; it must be a whole number, or -1 for all"),
        ({"mask_prompt": "yes"}, "`mask_prompt` is 'yes'; it must be true or false"),
        ({"val_batches": 0}, "`val_batches` is 0; it must be a whole number of at least 1, or -1 for all"),
        ({"fine_tune_type": "qlora"}, "`fine_tune_type` is 'qlora'; it must be one of lora, dora, full"),
        ({"optimizer": "lion"}, "`optimizer` is 'lion'; it must be one of adam, adamw, muon, sgd, adafactor"),
        (
            {"optimizer_config": {"adma": {}}},
            "`optimizer_config.adma` is not a key of mlx-lm's; did you mean",
        ),
        (
            {"optimizer_config": {"adam": {"weight_decay": 0.1}}},
            "`optimizer_config.adam.weight_decay` is not a key of mlx-lm's",
        ),
        (
            {"optimizer": "muon", "optimizer_config": {"muon": {"nesterov": False}}},
            "`optimizer_config.muon.nesterov` is False; it must be true",
        ),
        (
            {"lora_parameters": {"rank": 8, "alpha": 16}},
            "`lora_parameters.alpha` is 16; mlx-lm has `scale` in its place, alpha / rank: write `scale: 2`",
        ),
        ({"lora_parameters": {"keys": []}}, "`lora_parameters.keys` is []"),
        (
            {"lr_schedule": {"name": "sawtooth"}},
            "it must be one of cosine_decay, linear_schedule, exponential",
        ),
        ({"lr_schedule": {"arguments": [1e-5]}}, "`lr_schedule.name` is missing"),
        (
            {"lr_schedule": {"name": "cosine_decay", "arguments": [1e-5]}},
            "`lr_schedule.arguments` is [1e-05]; cosine_decay takes init, decay_steps (and end)",
        ),
        (
            {"lr_schedule": {"name": "linear_schedule", "arguments": [0, 1e-5, 9]}},
            "`lr_schedule.arguments.init` is 0; it must be a number above 0",
        ),
        (
            {"lr_schedule": {"name": "linear_schedule", "arguments": [1e-6, 1e-5, 9]}},
            "go from 1e-06 up to 1e-05; a schedule falls",
        ),
        ({"report_to": "wandb,swanlab"}, "`report_to` is 'wandb,swanlab'; Graft knows wandb"),
        ({"resume_adapter_file": "a.safetensors"}, "fuse it into the base with `mlx_lm.fuse`"),
        ({"hf_dataset": {"path": "billsum"}}, "it must be left out: name the hub data set as `data`"),
        ({"prompt_feature": 3}, "`prompt_feature` is 3; it must be text"),
        ({"test": True, "train": False}, "mlx-lm would not train"),
    ],
)
def test_what_cannot_be_is_refused_by_key_and_value_with_a_remedy(
    values: dict[str, Any], complaint: str
) -> None:
    assert complaint in refusal(**values)


def test_fields_of_the_rows_by_other_names_are_mapped() -> None:
    found = job(prompt_feature="question", completion_feature="completion")

    assert found.data.columns == {"prompt": "question"}
