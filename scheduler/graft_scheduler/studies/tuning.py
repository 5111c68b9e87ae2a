"""From what a person asks `graft tune` for to a study that can be driven from its record alone."""

from __future__ import annotations

import itertools
import json
import math
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_scheduler import submission
from graft_scheduler.basemodels import local_folder, weight_names
from graft_scheduler.complaints import nearest
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import Method
from graft_scheduler.jobs import TrainJob
from graft_scheduler.store import Store
from graft_scheduler.studies.known import Known
from graft_scheduler.studies.space import (
    Choices,
    Parameter,
    Space,
    Value,
    default_space,
    read_space,
    with_values,
)
from graft_scheduler.studies.spec import PrunerName, StudySpec, check_packages, read_study

NAME_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
DEFAULT_TRIALS = 24
MOST_COMBINATIONS = 128
"""Of values that are tried together before a study begins."""
ATTENTION = ("q_proj", "v_proj")
"""What LoRA adapted first (Hu et al., arXiv 2106.09685), beside all linear layers."""

Search = Mapping[str, object] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study that may begin."""

    spec: StudySpec
    known: Known


def prepare_study(
    job: TrainJob,
    store: Store,
    search: Search | None,
    first: Sequence[Mapping[str, Value]] = (),
    **settings: Any,
) -> Prepared:
    """The study of `job`, checked, with model and data in the store and its defaults written out.

    `first` are settings to begin with, of which those are taken that the space has; those of the job come
    before them. Other settings are those of `StudySpec`.

    Raises:
        InvalidInput: names the field, the value and what would be right; nothing is queued.
    """
    space = read_space(search, job) if search else None  # what is wrong with it is said before files are read
    _check_settings(job, space, settings)
    resolved = submission.prepare_resolved(job, store)
    base, known = resolved.spec, Known.of(resolved, store.id)
    if space is None:
        space = default_space(base, attention_modules(job))
    spec = _spec(base, space, settings)
    _check_with_base(spec, known)
    check_packages(spec.sampler)
    starts = [first_values(space, base), *(completed(values, space, base) for values in first)]
    return Prepared(spec.model_copy(update={"first": tuple(_without_doubles(starts))}), known)


def first_values(space: Space, base: TrainJob) -> dict[str, Value]:
    """The job's own settings, or what comes nearest to them in the space."""
    return {name: nearest_value(one, setting(base, name)) for name, one in space.parameters.items()}


def completed(values: Mapping[str, Value], space: Space, base: TrainJob) -> dict[str, Value]:
    """Settings of another study, moved into this space, with the job's own where it has none."""
    found = first_values(space, base)
    return found | {
        name: nearest_value(space.parameters[name], values[name]) for name in found if name in values
    }


def nearest_value(parameter: Parameter, value: Value) -> Value:
    """The value itself if it may be tried, else the nearest number, else the first."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(parameter, Choices):
        texts = [json.dumps(one) for one in parameter.values]
        if json.dumps(value) in texts:
            return parameter.values[texts.index(json.dumps(value))]
        numbers = [
            one for one in parameter.values if isinstance(one, (int, float)) and not isinstance(one, bool)
        ]
        if is_number and numbers:
            return min(numbers, key=lambda one: abs(one - value))  # type: ignore[operator]
        return parameter.values[0]
    number = float(value) if is_number else parameter.low  # type: ignore[arg-type]
    number = min(max(number, parameter.low), parameter.high)
    if parameter.spacing is not None:
        places = round((number - parameter.low) / parameter.spacing)
        number = parameter.low + parameter.spacing * min(places, parameter.count - 1)
    return round(number) if parameter.whole else number


def setting(job: TrainJob, name: str) -> Value:
    """A job's setting by its dotted name, with the default that it stands for."""
    if name == "optimizer.learning_rate":
        return job.learning_rate
    found: Any = job.model_dump(mode="json")
    for part in name.split("."):
        found = None if found is None else found.get(part)
    return tuple(found) if isinstance(found, list) else found


def attention_modules(job: TrainJob) -> tuple[str, ...]:
    """Module paths of the base's attention that LoRA adapted first; nothing where they cannot be told."""
    if job.method is Method.FULL:
        return ()
    folder = local_folder(job.model.source)
    names = weight_names(folder) if folder is not None else ()
    found = {_in_block(name) for name in names}
    return tuple(sorted(one for one in found if one.rpartition(".")[2] in ATTENTION))


def new_name() -> str:
    """For a study that nobody named."""
    return "study-" + "".join(secrets.choice(NAME_LETTERS) for _ in range(6))


def _in_block(name: str) -> str:
    """`self_attn.q_proj` of `model.layers.0.self_attn.q_proj.weight`; else nothing."""
    before, _, after = name.partition(".0.")
    return after.removesuffix(".weight") if before.endswith(("layers", "h", "blocks")) else ""


def _check_settings(job: TrainJob, space: Space | None, settings: Mapping[str, Any]) -> None:
    """Refuse a study by its settings alone."""
    names = tuple(StudySpec.model_fields)
    for name in settings:
        if name not in names:
            raise InvalidInput(f"`{name}` is not a setting of a study{nearest(name, names)}")
    _spec(job, space or default_space(job), settings)


def _spec(job: TrainJob, space: Space, settings: Mapping[str, Any]) -> StudySpec:
    return read_study({"trials": DEFAULT_TRIALS, **settings, "base": job, "space": space})


def _check_with_base(spec: StudySpec, known: Known) -> None:
    """Refuse what the base's files, or the length of the training, show to be impossible."""
    for name, parameter in spec.space.parameters.items():
        for value in parameter.tried:
            try:
                known.check(with_values(spec.base, {name: value}))
            except InvalidInput as error:
                raise InvalidInput(
                    f"the search space of `{name}` has {json.dumps(value)}: {error}"
                ) from error
    _check_together(spec, known)
    every, steps = spec.base.evaluation.every, known.steps(spec.base)
    if spec.pruner in {PrunerName.MEDIAN, PrunerName.PATIENT} and every is not None and every >= steps:
        raise InvalidInput(
            f"`pruner` is {spec.pruner.value}, and the job evaluates every {every} of {steps} steps: nothing "
            "is known before its end; lower `evaluation.every`, or set `pruner` to none"
        )


def _check_together(spec: StudySpec, known: Known) -> None:
    """Refuse values that do not fit each other: all combinations of ends and values, or some of many."""
    values = {name: one.tried for name, one in spec.space.parameters.items()}
    count = math.prod(len(one) for one in values.values())
    if count <= MOST_COMBINATIONS:
        combinations = list(itertools.product(*values.values()))
    else:
        dice = random.Random(0)
        combinations = [tuple(dice.choice(one) for one in values.values()) for _ in range(MOST_COMBINATIONS)]
    for one in combinations:
        settings = dict(zip(values, one, strict=True))
        try:
            known.check(with_values(spec.base, settings))
        except InvalidInput as error:
            found = ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
            raise InvalidInput(f"the search space has {found}, which do not go together: {error}") from error


def _without_doubles(starts: Sequence[dict[str, Value]]) -> list[dict[str, Value]]:
    seen: dict[str, dict[str, Value]] = {}
    for values in starts:
        seen.setdefault(json.dumps(values, sort_keys=True), values)
    return list(seen.values())


def search_from_file(path: Path) -> dict[str, object]:
    """The search space in a YAML or JSON file, names of settings to what is tried of each.

    Raises:
        InvalidInput: it cannot be read, or holds something else.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"the search space {path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not found:
        raise InvalidInput(f"the search space {path} holds no names of settings with what is tried of each")
    return {str(name): what for name, what in found.items()}
