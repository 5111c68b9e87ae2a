"""What a study searches: settings of a `TrainJob`, each with a range or some values. Pure; without Optuna."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from graft_scheduler.complaints import explain, nearest
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import Method, Spec
from graft_scheduler.job_settings import SHORT_NAMES, build_train_job, setting_names
from graft_scheduler.jobs import TrainJob

Value = int | float | str | bool | None | tuple[str, ...] | tuple[float, ...]
"""Of a setting, as JSON has it."""

GRAMMAR = "give a range (`1e-5..1e-3`, `log:1e-5..1e-3`, `0..0.2/0.05`) or values (`8,16,32`)"
RATE_SPAN = 10.0
"""The default space looks this many times above and below the default rate."""

_FIXED: dict[str, str] = {
    "seed": "it decides the order of the data, which all trials share",
    "steps": "all trials have the same length, that of the base job",
    "epochs": "all trials have the same length, that of the base job",
    "max_length": "it changes the rows that validation losses are compared on",
    "model": "a study is of one base",
    "data": "a study is of one data set",
    "evaluation": "all trials are compared by the same evaluations",
    "checkpoint": "it changes no result",
    "compute": "it changes no result",
    "micro_batch_tokens": "it changes no result",
    "gradient_checkpointing": "it changes no result",
    "length_window": "it decides the order of the data, which all trials share",
}
"""Settings, or groups of them, that trials must have in common, and why."""
_SERVICE = frozenset({"version", "kind", "name", "labels", "submitter", "priority", "limits", "tracking"})


class Range(Spec):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Every order of magnitude counts the same."""
    step: float | None = Field(default=None, gt=0)
    """Only `low` plus multiples of it."""
    whole: bool = False
    """Whole numbers only; told by the setting."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"the range {self.low:g}..{self.high:g} is empty; its low end must be the lower")
        if self.log and self.low <= 0:
            raise ValueError(
                f"the range log:{self.low:g}..{self.high:g} begins at or below 0; log needs more"
            )
        if self.log and self.step is not None:
            raise ValueError("a range is `log:` or has a `/step`, not both")
        return self

    @property
    def spacing(self) -> float | None:
        """Between neighbours, where there are any."""
        return self.step if self.step is not None or not self.whole or self.log else 1.0

    @property
    def count(self) -> int:
        """How many numbers lie in a range with steps.

        Raises:
            ValueError: it has none.
        """
        if self.spacing is None:
            raise ValueError("the range has no steps")
        return int((self.high - self.low) / self.spacing + 1e-9) + 1

    @property
    def tried(self) -> tuple[Value, ...]:
        """Its ends: for trying what the job says to them."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


class Choices(Spec):
    """Some values."""

    values: tuple[Value, ...] = Field(min_length=1)

    @property
    def tried(self) -> tuple[Value, ...]:
        """All of them: for trying what the job says to them."""
        return self.values

    @model_validator(mode="after")
    def _differ(self) -> Self:
        texts = [json.dumps(value) for value in self.values]
        if twice := {text for text in texts if texts.count(text) > 1}:
            raise ValueError(f"the value {min(twice)} is there twice")
        return self


Parameter = Range | Choices


class Space(Spec):
    """Dotted names of settings, and what is tried of each."""

    parameters: dict[str, Parameter] = Field(min_length=1)


def read_space(search: Mapping[str, object] | Sequence[str], base: TrainJob) -> Space:
    """The space in `name=range` texts or in a mapping, as YAML has it, checked against the base job.

    Values of a mapping are texts as on the command line, lists of values, or `{low, high, log, step}`.

    Raises:
        InvalidInput: names the setting, the value and what would be right.
    """
    given = search if isinstance(search, Mapping) else _split(search)
    if not given:
        raise InvalidInput(f"the search space is empty; {GRAMMAR}")
    parameters: dict[str, Parameter] = {}
    for name, what in given.items():
        path = SHORT_NAMES.get(str(name), str(name))
        if path in parameters:
            raise InvalidInput(f"`{name}` is in the search space twice")
        parameters[path] = _parameter(str(name), path, what)
    space = Space(parameters=parameters)
    check_space(space, base)
    return space


def default_space(base: TrainJob, modules: Sequence[str] = ()) -> Space:
    """What matters most: the rate first, then rank and alpha, dropout, which modules, and warm-up.

    `modules` are tried beside all linear layers, where there are any.
    """
    rate = base.learning_rate
    parameters: dict[str, Parameter] = {
        "optimizer.learning_rate": Range(low=rate / RATE_SPAN, high=rate * RATE_SPAN, log=True),
        "schedule.warmup": Choices(values=(0.0, 0.05, 0.1)),
    }
    if base.method is Method.FULL:
        return Space(parameters=parameters)
    ranks = tuple(rank for rank in (8, 16, 32, 64) if base.adapter.rank != "auto")
    if ranks:
        parameters["adapter.rank"] = Choices(values=ranks)
    parameters["adapter.alpha"] = Choices(values=(16.0, 32.0, 64.0))
    parameters["adapter.dropout"] = Choices(values=(0.0, 0.05))
    if modules:
        parameters["adapter.targets"] = Choices(values=(None, tuple(modules)))
    return Space(parameters=parameters)


def check_space(space: Space, base: TrainJob) -> None:
    """Every end and every value, tried on the base job one at a time.

    Raises:
        InvalidInput: the job refuses one of them.
    """
    for name, parameter in space.parameters.items():
        for value in parameter.tried:
            try:
                with_values(base, {name: value})
            except InvalidInput as error:
                raise InvalidInput(f"the search space of `{name}` has {_text(value)}: {error}") from error


def with_values(base: TrainJob, values: Mapping[str, Value]) -> TrainJob:
    """The base job with these settings, dotted names to values.

    Raises:
        InvalidInput: they do not fit the job or each other.
    """
    return build_train_job({**base.model_dump(mode="json"), **values})


def _split(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, what = text.partition("=")
        if not equals or not name.strip() or not what.strip():
            raise InvalidInput(f"{text!r} is no part of a search space; write NAME=WHAT and {GRAMMAR}")
        if name.strip() in found:
            raise InvalidInput(f"`{name.strip()}` is in the search space twice")
        found[name.strip()] = what.strip()
    return found


def _parameter(name: str, path: str, what: object) -> Parameter:
    kinds = _kinds(name, path)
    try:
        if isinstance(what, str):
            return _from_text(name, what, kinds)
        if isinstance(what, Mapping):
            return _range(name, dict(what), kinds)
        if isinstance(what, Sequence):
            # YAML has 1e-5 as a text.
            is_number = bool(kinds & {int, float})
            values = (_value(one) if isinstance(one, str) and is_number else one for one in what)
            return Choices(values=tuple(_frozen(value) for value in values))
        return Choices.model_validate({"values": (what,)})
    except ValidationError as error:
        raise InvalidInput(f"the search space of `{name}`: {explain(error, ())}") from error


def _from_text(name: str, text: str, kinds: frozenset[type]) -> Parameter:
    if ".." in text or text.startswith("log:"):
        low, _, rest = text.removeprefix("log:").partition("..")
        high, slash, step = rest.partition("/")
        ends = {"low": low, "high": high, **({"step": step} if slash else {})}
        numbers = {key: _number(name, text, end) for key, end in ends.items()}
        return _range(name, {**numbers, "log": text.startswith("log:")}, kinds)
    if text.startswith("["):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InvalidInput(f"the search space of `{name}` is {text!r}, no JSON list: {error}") from error
        return Choices(values=tuple(_frozen(value) for value in values))
    return Choices(values=tuple(_value(part.strip()) for part in text.split(",")))


def _range(name: str, given: dict[str, Any], kinds: frozenset[type]) -> Range:
    if not kinds & {int, float}:
        raise InvalidInput(f"`{name}` is no number: give its values, as in `{name}=one,other`")
    whole = float not in kinds
    for key in ("low", "high", "step"):
        number = given.get(key)
        if isinstance(number, (int, float)) and not math.isfinite(number):
            raise InvalidInput(
                f"the search space of `{name}` has {key} {number}, which is no number; {GRAMMAR}"
            )
        if whole and isinstance(number, (int, float)) and number != int(number):
            raise InvalidInput(f"the search space of `{name}` has {number:g}; it takes whole numbers")
    return Range.model_validate({**given, "whole": whole})


def _number(name: str, text: str, part: str) -> float:
    try:
        number = float(part)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInput(f"the search space of `{name}` is {text!r}, and {part!r} is no number; {GRAMMAR}")
    return number


def _value(text: str) -> Value:
    """A number, true, false or null where it reads as one; else the text."""
    try:
        return _frozen(json.loads(text))
    except ValueError:
        return text


def _frozen(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else value


def _text(value: Value) -> str:
    return json.dumps(value)


def _kinds(name: str, path: str) -> frozenset[type]:
    """The types that the setting takes.

    Raises:
        InvalidInput: there is no such setting, or it is none to search.
    """
    top = path.split(".", 1)[0]
    why = _FIXED.get(path) or _FIXED.get(top)
    if top in _SERVICE or why:
        raise InvalidInput(f"`{name}` cannot be searched: {why or 'it is not about the training'}")
    model: type[BaseModel] = TrainJob
    annotation: Any = None
    for part in path.split("."):
        field = model.model_fields.get(part)
        if field is None:
            names = tuple(one for one in setting_names(TrainJob) if SHORT_NAMES.get(one, one) not in _FIXED)
            raise InvalidInput(f"`{name}` is not a setting{nearest(name, names)}")
        annotation = field.annotation
        model = next((one for one in _types(annotation) if issubclass(one, BaseModel)), BaseModel)
    found = _types(annotation)
    if any(issubclass(one, BaseModel) for one in found):
        raise InvalidInput(
            f"`{name}` is a group of settings; name one, as in `{name}.{next(iter(model.model_fields))}`"
        )
    return found


def _types(annotation: Any) -> frozenset[type]:
    """All classes in an annotation, of unions each; none of literals, which are values."""
    origin = typing.get_origin(annotation)
    if origin in {typing.Union, types.UnionType}:
        return frozenset().union(*(_types(one) for one in typing.get_args(annotation)))
    if origin is Annotated:
        return _types(typing.get_args(annotation)[0])
    if origin is Literal:
        return frozenset()
    if origin is not None:
        return frozenset({origin})
    return frozenset({annotation}) if isinstance(annotation, type) else frozenset()
