"""Everything of a comparison checked and stored before any of its jobs is queued."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.comparison.labels import Membership
from graft_scheduler.comparison.variant_jobs import (
    VariantJob,
    build_variants,
    default_variants,
    refuse_same,
    with_name,
)
from graft_scheduler.comparison.variants import Variant, check_name, read_variants
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import AdapterConfig, Method
from graft_scheduler.jobs import TrainJob
from graft_scheduler.store import Store
from graft_scheduler.submission import Resolved, Submission, prepare, resolve


@dataclass(frozen=True, slots=True)
class PreparedComparison:
    """What can be queued."""

    name: str
    submissions: tuple[Submission, ...]
    notes: tuple[str, ...]
    """What a person should know of them."""


def prepare_comparison(
    job: TrainJob, given: Sequence[str | Variant], name: str | None, store: Store
) -> PreparedComparison:
    """The job in its variants, each ready to be queued; without any, in all methods the base can have.

    Raises:
        InvalidInput: the model, the data or a variant can never work; names the variant.
        NotAllowed: the hub refuses the model.
    """
    name = name or new_name()
    check_name(name, "the comparison")
    named = read_variants(given)
    ground = _look(job, named, store)
    base = ground.base
    variants, notes = (named, []) if named else default_variants(base.quantization if base else None)
    if len(variants) < 2:
        raise InvalidInput(f"there is {len(variants)} variant; a comparison has at least two")
    jobs = build_variants(job, variants, ground.spec.batch_rows)
    refuse_same(jobs, base.quantization if base else None)
    if job.batch_size == "auto":
        notes.append(f"all variants take {ground.spec.batch_rows} rows a step, so that they see the same")
    marked = _marked(jobs, name, base)
    notes += [note for one in marked for note in one.notes]
    return PreparedComparison(name, tuple(_prepare(one, store) for one in marked), tuple(notes))


def new_name() -> str:
    """Of a comparison that nobody named."""
    return f"compare-{secrets.token_hex(3)}"


def _look(job: TrainJob, variants: Sequence[Variant], store: Store) -> Resolved:
    """The model and the data, read once, and the batch that all variants take.

    As a plain LoRA, which every base can have, unless all are full fine-tunes: what is refused here
    is refused for all.
    """
    methods = {one.dotted.get("method", job.method.value) for one in variants}
    method = Method.FULL if methods == {Method.FULL.value} else Method.LORA
    changes = {"method": method, "quantization": None, "adapter": AdapterConfig()}
    return resolve(job.model_copy(update=changes), store)


def _marked(jobs: Sequence[VariantJob], name: str, base: BaseModel | None) -> list[VariantJob]:
    parameters = base.parameters if base else None
    members = (
        Membership(name, one.variant.name, place, len(jobs), parameters) for place, one in enumerate(jobs, 1)
    )
    return [with_name(one, name, member.labels) for one, member in zip(jobs, members, strict=True)]


def _prepare(one: VariantJob, store: Store) -> Submission:
    try:
        return prepare(one.job, store)
    except InvalidInput as error:
        raise InvalidInput(f"variant `{one.variant.name}`: {error}") from error
