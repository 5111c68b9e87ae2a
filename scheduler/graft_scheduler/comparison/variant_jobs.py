"""From one job and its variants to the jobs that are compared, all with the same data and budget. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from graft_scheduler.basemodels import Quantization
from graft_scheduler.comparison.variants import Variant, flatten
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import AdapterConfig, Method, QuantizationConfig
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.submission import DORA_BITS

SHARED: dict[str, str] = {
    "model": "a comparison is of one base",
    "data": "losses are compared on the same rows",
    "max_length": "losses are compared on the same rows",
    "evaluation": "losses are compared at the same steps, on the same rows",
    "seed": "it decides the order of the rows",
    "length_window": "it decides the order of the rows",
    "batch_size": "it is part of the budget",
    "steps": "it is part of the budget",
    "epochs": "it is part of the budget",
}
"""Settings, or groups of them, that all variants have in common, and why."""
_OF_THE_WHOLE = frozenset(
    {"version", "kind", "name", "labels", "submitter", "priority", "limits", "tracking"}
)
_REPLACES = {"adapter.scale": "adapter.alpha", "schedule.warmup": "schedule.warmup_steps"}
"""Of two settings that exclude each other the right one wins in a job: a variant that names the left
one takes it back."""
_OF_RANK_AUTO = ("adapter.rank", "adapter.max_rank", "adapter.rank_tolerance", "adapter.keep_uncut")


@dataclass(frozen=True, slots=True)
class VariantJob:
    """A variant as the job that it means."""

    variant: Variant
    job: TrainJob
    notes: tuple[str, ...] = ()
    """What of the base job does not hold for it, in words."""


def default_variants(quantization: Quantization | None) -> tuple[list[Variant], list[str]]:
    """All methods that a base with this quantisation can have, and why others are left out."""
    methods, notes = list(Method), []
    if quantization is not None:
        methods = [Method.QLORA]
        notes = [
            f"the base is quantised ({quantization.bits} bits): lora is qlora on it, and full needs the "
            "full-precision base; both are left out"
        ]
        if quantization.bits in DORA_BITS:
            methods.append(Method.DORA)
    return [Variant(one.value, {"method": one.value}) for one in methods], notes


def build_variants(job: TrainJob, variants: Sequence[Variant], batch_rows: int) -> list[VariantJob]:
    """The job of each variant, with steps of `batch_rows`.

    Raises:
        InvalidInput: a setting that is unknown, impossible, or in common; names the variant.
    """
    return [build_variant(job, one, batch_rows) for one in variants]


def build_variant(job: TrainJob, variant: Variant, batch_rows: int) -> VariantJob:
    """As `build_variants`, of one."""
    try:
        own = variant.dotted
        _refuse_shared(own)
        values = dict(flatten(job.model_dump(mode="json", exclude_unset=True, exclude={"labels"})))
        method = str(own.get("method", job.method.value))
        _refuse_meaningless(own, method)
        unfit = _unfit(values, own, method)
        for name in [*unfit, *(_REPLACES.get(name, "") for name in own)]:
            values.pop(name, None)
        common = {"labels": dict(job.labels), "batch_size": batch_rows}
        built = build_train_job({**values, **own, **common})
    except InvalidInput as error:
        raise InvalidInput(f"variant `{variant.name}`: {error}") from error
    return VariantJob(
        variant, built, (*_notes_of_dropped(variant, method, unfit), *_note_of_rate(job, built, variant))
    )


def refuse_same(jobs: Sequence[VariantJob], quantization: Quantization | None) -> None:
    """Refuse two variants that would train the same on a base with this quantisation.

    Raises:
        InvalidInput: names both.
    """
    known: dict[str, str] = {}
    for one in jobs:
        meaning = _meaning(one.job, quantization)
        if other := known.get(meaning):
            raise InvalidInput(
                f"the variants `{other}` and `{one.variant.name}` are the same job"
                + (" on a base that is quantised" if quantization else "")
                + "; leave one out, or change one of its settings"
            )
        known[meaning] = one.variant.name


def with_name(one: VariantJob, comparison: str, labels: dict[str, str]) -> VariantJob:
    """The same, its job named `COMPARISON/VARIANT` and labelled."""
    changes = {"name": f"{comparison}/{one.variant.name}", "labels": {**one.job.labels, **labels}}
    return replace(one, job=one.job.model_copy(update=changes))


def differing(jobs: Sequence[TrainJob]) -> tuple[str, ...]:
    """The settings in common that these jobs do not have in common."""
    found = []
    for name in SHARED:
        values = [_shared_value(job, name) for job in jobs]
        if any(value != values[0] for value in values):
            found.append(name)
    return tuple(found)


def _shared_value(job: TrainJob, name: str) -> object:
    """Of a model and a data set the content, where it is known, and not where it lay."""
    if name not in {"model", "data"}:
        return getattr(job, name)
    reference = job.model if name == "model" else job.data
    return reference.model_copy(update={"source": ""}) if reference.digest else reference


def _refuse_shared(own: dict[str, Any]) -> None:
    for name in own:
        top = name.partition(".")[0]
        if why := SHARED.get(top):
            raise InvalidInput(f"`{name}` is the same for all variants, as {why}; set it for the job")
        if top in _OF_THE_WHOLE:
            raise InvalidInput(f"`{name}` is the same for all variants; set it for the job")


def _refuse_meaningless(own: dict[str, Any], method: str) -> None:
    """What `TrainJob` would bear, and what would then be no variant of anything."""
    for name in own:
        if method == Method.FULL and _is_of_adapters(name):
            raise InvalidInput(f"`{name}` is set, and the method full has no adapters; leave it out")


def _unfit(values: dict[str, Any], own: dict[str, Any], method: str) -> list[str]:
    """The job's settings that its method has and this one has not."""
    found = [name for name in values if name.startswith("quantization") and method != Method.QLORA]
    if method == Method.FULL:
        found += [name for name in values if _is_of_adapters(name)]
    if method == Method.DORA and values.get("adapter.rank") == "auto" and own.get("adapter.rank") != "auto":
        found += [name for name in _OF_RANK_AUTO if name in values]
    return [name for name in found if name not in own]


def _is_of_adapters(name: str) -> bool:
    return name == "optimizer.lora_plus" or (name.startswith("adapter.") and name != "adapter.layers")


def _notes_of_dropped(variant: Variant, method: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    listed = ", ".join(f"`{name}`" for name in names)
    why = f"{method} quantises nothing"
    if method == Method.FULL:
        why = "full has no adapters" + (f", and {why}" if any("quant" in name for name in names) else "")
    elif set(names) & set(_OF_RANK_AUTO):
        has = f"; it has rank {AdapterConfig().trained_rank}" if "adapter.rank" in names else ""
        why = f"dora cannot find its rank{has}"
    return [f"{variant.name}: without {listed} of the job, as {why}"]


def _note_of_rate(job: TrainJob, built: TrainJob, variant: Variant) -> list[str]:
    """A rate that was named for adapters is about ten times what a full fine-tune takes."""
    rate = built.optimizer.learning_rate
    if built.method is not Method.FULL or rate is None or "optimizer.learning_rate" in variant.dotted:
        return []
    unset = built.optimizer.model_copy(update={"learning_rate": None})
    usual = built.model_copy(update={"optimizer": unset}).learning_rate
    if job.method is Method.FULL or rate <= usual:
        return []
    return [
        f"{variant.name}: trains at the job's learning rate, {rate:g}; its own default is {usual:g} "
        "(`full,lr=...` sets one)"
    ]


def _meaning(job: TrainJob, quantization: Quantization | None) -> str:
    """The same text for jobs that train the same."""
    method, asked = job.method, job.quantization
    if method is Method.QLORA and quantization is not None:
        method, asked = Method.LORA, None
    elif method is Method.QLORA and asked is None:
        asked = QuantizationConfig()
    adapter = AdapterConfig(layers=job.adapter.layers) if method is Method.FULL else job.adapter
    changes = {
        "method": method,
        "quantization": asked,
        "adapter": adapter,
        "optimizer": job.optimizer.model_copy(update={"learning_rate": job.learning_rate}),
    }
    return job.model_copy(update=changes).model_dump_json(exclude={"name", "labels"})
