"""Every key of mlx-lm's LoRA configuration, and what becomes of it.

After `mlx_lm/lora.py` of mlx-lm 0.32 and MLX's optimizers and schedules; docs/mlx-lm.md is this for people.
"""

from __future__ import annotations

from graft_scheduler.mlx_lm_values import (
    ANYTHING,
    BETAS,
    FLAG,
    FROM_0,
    LAYERS,
    MAPPING,
    NAMES,
    NUMBERS,
    POSITIVE,
    SHARE,
    TEXT,
    TO_1,
    WHOLE,
    WHOLE_0,
    WHOLE_OR_ALL,
    Key,
    absent,
    in_any_case,
    one_of,
    only,
)

DEFAULT_LAYERS = 16
FORMER_NAMES = {"lora_layers": "num_layers", "use_dora": "fine_tune_type"}
"""What older versions of mlx-lm called some keys."""

OPTIMIZERS: dict[str, dict[str, Key]] = {
    "adam": {
        "betas": Key([0.9, 0.999], BETAS, "optimizer.betas"),
        "eps": Key(1e-8, POSITIVE, "optimizer.eps"),
        "bias_correction": Key(False, FLAG, "optimizer.bias_correction"),
    },
    "adamw": {
        "betas": Key([0.9, 0.999], BETAS, "optimizer.betas"),
        "eps": Key(1e-8, POSITIVE, "optimizer.eps"),
        "weight_decay": Key(0.01, FROM_0, "optimizer.weight_decay"),
        "bias_correction": Key(False, FLAG, "optimizer.bias_correction"),
    },
    "muon": {
        "momentum": Key(0.95, SHARE, "optimizer.momentum"),
        "weight_decay": Key(0.01, FROM_0, "optimizer.weight_decay"),
        "nesterov": Key(True, only(True)),
        "ns_steps": Key(5, only(5)),
    },
    "sgd": {
        "momentum": Key(0.0, SHARE, "optimizer.momentum"),
        "weight_decay": Key(0.0, FROM_0, "optimizer.weight_decay"),
        "dampening": Key(0.0, only(0.0)),
        "nesterov": Key(False, only(False)),
    },
    "adafactor": {
        "weight_decay": Key(0.0, FROM_0, "optimizer.weight_decay"),
        "relative_step": Key(True, only(False)),
        "scale_parameter": Key(True, only(False)),
        "warmup_init": Key(False, only(False)),
        "clip_threshold": Key(1.0, only(1.0)),
        "decay_rate": Key(-0.8, only(-0.8)),
        "eps": Key([1e-30, 1e-3], only([1e-30, 1e-3])),
        "beta_1": Key(None, absent("Graft's adafactor has no first moment")),
    },
}
"""mlx-lm's optimizers, and MLX's options of each with MLX's defaults. One that becomes no setting has
the only value that Graft computes with."""

LORA_PARAMETERS: dict[str, Key] = {
    "rank": Key(8, WHOLE, "adapter.rank"),
    "scale": Key(20.0, POSITIVE, "adapter.scale"),
    "dropout": Key(0.0, SHARE, "adapter.dropout"),
    "keys": Key(None, NAMES, "adapter.targets"),
}

LR_SCHEDULE: dict[str, Key] = {
    "name": Key(None, TEXT, "schedule.name"),
    "arguments": Key(None, NUMBERS),
    "warmup": Key(0, WHOLE_0, "schedule.warmup_steps"),
    "warmup_init": Key(0.0, FROM_0),
}

SCHEDULES: dict[str, tuple[str, dict[str, Key]]] = {
    "cosine_decay": (
        "cosine",
        {
            "init": Key(None, POSITIVE, "optimizer.learning_rate"),
            "decay_steps": Key(None, WHOLE, "schedule.decay_steps"),
            "end": Key(0.0, FROM_0),
        },
    ),
    "linear_schedule": (
        "linear",
        {
            "init": Key(None, POSITIVE, "optimizer.learning_rate"),
            "end": Key(None, FROM_0),
            "steps": Key(None, WHOLE, "schedule.decay_steps"),
        },
    ),
    "exponential_decay": (
        "exponential",
        {
            "init": Key(None, POSITIVE, "optimizer.learning_rate"),
            "decay_rate": Key(None, TO_1, "schedule.decay_rate"),
        },
    ),
    "step_decay": (
        "step",
        {
            "init": Key(None, POSITIVE, "optimizer.learning_rate"),
            "decay_rate": Key(None, TO_1, "schedule.decay_rate"),
            "step_size": Key(None, WHOLE, "schedule.decay_every"),
        },
    ),
}
"""MLX's schedules: ours of the same shape, and their arguments in order."""

KEYS: dict[str, Key] = {
    "model": Key(None, TEXT, "model"),
    "data": Key(None, TEXT, "data"),
    "train": Key(False, FLAG),
    "fine_tune_type": Key("lora", one_of("lora", "dora", "full"), "method"),
    "num_layers": Key(DEFAULT_LAYERS, LAYERS, "adapter.layers"),
    "lora_parameters": Key({"rank": 8, "dropout": 0.0, "scale": 20.0}, MAPPING, "adapter"),
    "optimizer": Key("adam", in_any_case(*OPTIMIZERS), "optimizer.name"),
    "optimizer_config": Key({name: {} for name in OPTIMIZERS}, MAPPING, "optimizer"),
    "learning_rate": Key(1e-5, POSITIVE, "optimizer.learning_rate"),
    "lr_schedule": Key(None, MAPPING, "schedule"),
    "iters": Key(1000, WHOLE, "steps"),
    "batch_size": Key(4, WHOLE, "batch_size"),
    "grad_accumulation_steps": Key(1, WHOLE, "batch_size"),
    "max_seq_length": Key(2048, WHOLE, "max_length"),
    "grad_checkpoint": Key(False, FLAG, "gradient_checkpointing"),
    "mask_prompt": Key(False, FLAG, "data.mask_prompt"),
    "seed": Key(0, WHOLE_0, "seed"),
    "val_batches": Key(25, WHOLE_OR_ALL, "evaluation.rows"),
    "steps_per_eval": Key(200, WHOLE, "evaluation.every"),
    "save_every": Key(100, WHOLE, "checkpoint.every"),
    "report_to": Key(None, TEXT, "tracking.to"),
    "project_name": Key(None, TEXT, "tracking.project"),
    "trust_remote_code": Key(False, FLAG, "model.trust_remote_code"),
    "adapter_path": Key(
        "adapters", TEXT, note="`graft pull JOB -o DIR` brings the adapter, `--local --output DIR` leaves it"
    ),
    "steps_per_report": Key(10, WHOLE, note="Graft reports as it goes, `graft logs -f JOB` shows it"),
    "test": Key(False, FLAG, note="`mlx_lm.lora --test --adapter-path DIR` takes a pulled adapter"),
    "test_batches": Key(500, ANYTHING, note="Graft does not read test.jsonl"),
    "config": Key(None, TEXT, note="this is the file that is read"),
    "clear_cache_threshold": Key(0, ANYTHING, note="Graft bounds MLX's cache itself"),
    "resume_adapter_file": Key(
        None,
        absent(
            "Graft goes on from its own checkpoints (`graft retry JOB`); to train on from an adapter, fuse "
            "it into the base with `mlx_lm.fuse` and name that as `model`"
        ),
    ),
    "hf_dataset": Key(
        None,
        absent("name the hub data set as `data`, and its columns as `data.columns.prompt` and so on"),
    ),
    "prompt_feature": Key("prompt", TEXT, "data.columns.prompt"),
    "completion_feature": Key("completion", TEXT, "data.columns.completion"),
    "chat_feature": Key("messages", TEXT, "data.columns.messages"),
    "text_feature": Key("text", TEXT, "data.columns.text"),
}
"""Every key that mlx-lm reads, with its default there; `model` and `data` have none here."""
