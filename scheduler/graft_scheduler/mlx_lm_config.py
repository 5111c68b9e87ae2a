"""mlx-lm's own LoRA configuration as settings of a job: what mlx-lm would have trained.

docs/mlx-lm.md lists what differs. A null stands for mlx-lm's default, as it does there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import Tracker
from graft_scheduler.job_settings import setting_names
from graft_scheduler.jobs import TrainJob
from graft_scheduler.mlx_lm_keys import (
    DEFAULT_LAYERS,
    FORMER_NAMES,
    KEYS,
    LORA_PARAMETERS,
    LR_SCHEDULE,
    OPTIMIZERS,
    SCHEDULES,
)
from graft_scheduler.mlx_lm_values import MAPPING, POSITIVE, WHOLE, Key, Section

ALL_ROWS = -1
FEATURES = ("prompt_feature", "completion_feature", "chat_feature", "text_feature")
"""Names of the rows' fields; the usual ones need no saying."""
RENAMED = (
    "model",
    "data",
    "fine_tune_type",
    "max_seq_length",
    "grad_checkpoint",
    "mask_prompt",
    "seed",
    "project_name",
    "trust_remote_code",
)
"""Keys whose value is carried as it is."""

OUR_NAMES = frozenset(name.split(".")[0] for name in setting_names(TrainJob))


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file of mlx-lm's comes to, or a part of it."""

    settings: dict[str, Any]
    """By dotted names, for `build_train_job`."""
    notes: tuple[str, ...] = ()
    """A line for each key that means something else here, or nothing."""


def is_mlx_lm(values: Mapping[str, Any]) -> bool:
    """Whether these settings are mlx-lm's rather than ours: they have a key that only mlx-lm knows."""
    return any(_is_theirs(str(name), value) for name, value in values.items())


def from_mlx_lm(values: Mapping[str, Any], blocks: int | None = None) -> Imported:
    """The settings of the job that mlx-lm would have made of `values`.

    `blocks` is the number of the model's blocks, where it is known: mlx-lm's default of 16 trains all
    blocks of a smaller model.

    Raises:
        InvalidInput: an unknown key, a value that cannot be, or something that Graft does not have;
            names the key, the value and the remedy.
    """
    _refuse_mixed(values)
    file = Section(values, KEYS, former=FORMER_NAMES)
    parts = [
        _renamed(file),
        _lengths(file),
        _adapter(file, blocks),
        _optimizer(file),
        _schedule(file),
        _tracking(file),
        Imported({}, tuple(_without_effect(file))),
    ]
    settings = {name: value for part in parts for name, value in part.settings.items()}
    return Imported(settings, tuple(note for part in parts for note in part.notes))


def _is_theirs(name: str, value: Any) -> bool:
    return name in KEYS and (name not in OUR_NAMES or (name == "optimizer" and isinstance(value, str)))


def _refuse_mixed(values: Mapping[str, Any]) -> None:
    theirs = [str(name) for name, value in values.items() if _is_theirs(str(name), value)]
    ours = [name for name in map(str, values) if name not in KEYS and name.partition(".")[0] in OUR_NAMES]
    if ours and theirs:
        raise InvalidInput(
            f"`{ours[0]}` is a setting of Graft's and `{theirs[0]}` one of mlx-lm's; a file holds one kind: "
            f"leave `{ours[0]}` out and give it as `--set {ours[0]}=...`"
        )


def _renamed(file: Section) -> Imported:
    settings = {KEYS[name].becomes: file[name] for name in RENAMED if file[name] is not None}
    if not file["grad_checkpoint"]:  # mlx-lm's default, and no wish: the host may need it
        del settings[KEYS["grad_checkpoint"].becomes]
    for name in FEATURES:
        if file[name] != KEYS[name].default:
            settings[KEYS[name].becomes] = file[name]
    notes = []
    if file["mask_prompt"]:
        notes.append("`mask_prompt`: every answer of a chat is learned; mlx-lm learns the last one")
    if file["test"] and file.has("train") and not file["train"]:
        raise InvalidInput(
            "`test` is true and `train` is false, so mlx-lm would not train; set `train: true`, or evaluate "
            "with `mlx_lm.lora --test`"
        )
    return Imported(settings, tuple(notes))


def _lengths(file: Section) -> Imported:
    """mlx-lm counts micro-batches; a job counts steps of the optimizer."""
    iters, each, rows = file["iters"], file["grad_accumulation_steps"], file["batch_size"]
    settings = {
        "steps": _steps(iters, each),
        "batch_size": rows * each,
        "evaluation.every": _steps(file["steps_per_eval"], each),
        "checkpoint.every": _steps(file["save_every"], each),
    }
    if file["val_batches"] != ALL_ROWS:
        settings["evaluation.rows"] = file["val_batches"] * rows
    if each == 1:
        return Imported(settings)
    left = f"; mlx-lm leaves the last {iters % each} unused" if iters % each else ""
    note = f"`iters`: {iters} micro-batches are {settings['steps']} steps of {rows * each} rows{left}"
    return Imported(settings, (note, "`grad_accumulation_steps`: every token of a step weighs the same"))


def _steps(micro_batches: int, each: int) -> int:
    return -(-micro_batches // each)


def _adapter(file: Section, blocks: int | None) -> Imported:
    layers = _layers(file, blocks)
    if file["fine_tune_type"] == "full":
        given = file.has("lora_parameters")
        note = ("`lora_parameters` has no effect: a full fine-tune has no adapters",) if given else ()
        return Imported(layers.settings, layers.notes + note)
    values = file["lora_parameters"]
    _refuse_alpha(values)
    lora = Section(values, LORA_PARAMETERS, "lora_parameters")
    if lora["keys"] == []:
        raise InvalidInput("`lora_parameters.keys` is []; name layers, or leave it out to adapt them all")
    notes = tuple(
        f"`lora_parameters.{name}` is missing, which mlx-lm refuses; it is {LORA_PARAMETERS[name].default:g}"
        for name in ("rank", "scale", "dropout")
        if not lora.has(name)
    )
    return Imported(layers.settings | lora.settings(), layers.notes + notes)


def _layers(file: Section, blocks: int | None) -> Imported:
    """How many of the last blocks learn: mlx-lm takes 0 and below for all of them."""
    if not file.has("num_layers"):
        layers = DEFAULT_LAYERS if blocks is None else min(DEFAULT_LAYERS, blocks)
        default = f"the last {layers}, mlx-lm's default" if layers == DEFAULT_LAYERS else f"all {layers}"
        note = f"`num_layers` is missing: {default}; `--layers` changes that"
        return Imported({"adapter.layers": layers}, (note,))
    layers = file["num_layers"]
    if layers > 0:
        return Imported({"adapter.layers": layers})
    if file["fine_tune_type"] != "full":
        return Imported({})
    if blocks is not None:  # all of them by number: absent would mean the embeddings too
        return Imported({"adapter.layers": blocks})
    note = f"`num_layers` is {layers}: embeddings, last norm and head learn too; mlx-lm leaves them alone"
    return Imported({}, (note,))


def _refuse_alpha(values: Mapping[str, Any]) -> None:
    alpha, rank = values.get("alpha"), values.get("rank", LORA_PARAMETERS["rank"].default)
    if alpha is None:
        return
    is_known = POSITIVE.fits(alpha) and WHOLE.fits(rank)
    scale = f"write `scale: {alpha / rank:g}`" if is_known else "write `scale`"
    raise InvalidInput(
        f"`lora_parameters.alpha` is {alpha!r}; mlx-lm has `scale` in its place, alpha / rank: {scale}"
    )


def _optimizer(file: Section) -> Imported:
    """The options of the optimizer in use, with MLX's defaults written out; nothing is clipped."""
    name, configs = file["optimizer"].lower(), file["optimizer_config"]
    Section(configs, dict.fromkeys(OPTIMIZERS, Key(None, MAPPING)), "optimizer_config")  # refuses other names
    options = Section(configs.get(name) or {}, OPTIMIZERS[name], f"optimizer_config.{name}")
    notes = [
        f"`optimizer_config.{other}` has no effect: `optimizer` is {name}"
        for other, given in configs.items()
        if given and other != name
    ]
    if name == "adafactor":
        notes.append(_adafactor_note(options))
    fixed = {"optimizer.name": name, "optimizer.max_grad_norm": None}
    return Imported(fixed | options.settings(), tuple(note for note in notes if note))


def _adafactor_note(options: Section) -> str:
    if options.has("relative_step") and options.has("scale_parameter"):
        return ""
    return (
        "`optimizer` is adafactor: `learning_rate` holds here; mlx-lm's sets its own rate, of up to 0.01 "
        "times the size of a parameter, and passes over `learning_rate`"
    )


def _schedule(file: Section) -> Imported:
    """The learning rate; warm-up and decay count steps of the optimizer in mlx-lm too."""
    if file["lr_schedule"] is None:
        constant = {"schedule.name": "constant", "schedule.warmup_steps": 0}
        return Imported({**constant, "optimizer.learning_rate": file["learning_rate"]})
    config = Section(file["lr_schedule"], LR_SCHEDULE, "lr_schedule")
    settings = _decay(config)
    notes = []
    # Of mlx-lm's own, step `warmup` has the full rate, and the decay begins with the step after it.
    settings["schedule.warmup_steps"] = config["warmup"] + 1 if config["warmup"] else 0
    if config["warmup"]:
        notes.append(
            f"`lr_schedule.warmup`: the first step has 1/{config['warmup'] + 2} of the rate; "
            f"in mlx-lm it has a rate of {config['warmup_init']:g}"
        )
    rate = settings["optimizer.learning_rate"]
    if file.has("learning_rate") and file["learning_rate"] != rate:
        notes.append(f"`learning_rate` has no effect: `lr_schedule` begins with {rate:g}")
    return Imported(settings, tuple(notes))


def _decay(config: Section) -> dict[str, Any]:
    name, arguments = config["name"], config["arguments"]
    if name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        found = "missing" if name is None else repr(name)
        raise InvalidInput(f"`lr_schedule.name` is {found}; it must be one of {known}")
    ours, keys = SCHEDULES[name]
    needed = [key for key in keys if keys[key].default is None]
    if arguments is None or not len(needed) <= len(arguments) <= len(keys):
        optional = "".join(f" (and {key})" for key in keys if key not in needed)
        raise InvalidInput(
            f"`lr_schedule.arguments` is {arguments or 'missing'}; {name} takes {', '.join(needed)}{optional}"
        )
    values = Section(dict(zip(keys, arguments, strict=False)), keys, "lr_schedule.arguments")
    settings = {"schedule.name": ours, **values.settings()}
    if "end" in keys:
        settings["schedule.final"] = _final_share(values["init"], values["end"])
    return settings


def _final_share(init: float, end: float) -> float:
    if end > init:
        raise InvalidInput(
            f"`lr_schedule.arguments` go from {init:g} up to {end:g}; a schedule falls: begin with the "
            "highest rate, and write the rise as `warmup`"
        )
    return end / init


def _tracking(file: Section) -> Imported:
    services = [part.strip().lower() for part in (file["report_to"] or "").split(",") if part.strip()]
    for service in services:
        if service != Tracker.WANDB:
            others = ", ".join(tracker for tracker in Tracker if tracker != Tracker.WANDB)
            raise InvalidInput(
                f"`report_to` is {file['report_to']!r}; Graft knows wandb, and by `--set tracking.to=...` "
                f"also {others}"
            )
    return Imported({"tracking.to": services} if services else {})


def _without_effect(file: Section) -> Iterable[str]:
    for name, key in KEYS.items():
        if key.note and file.has(name) and file[name]:
            yield f"`{name}` has no effect: {key.note}"
