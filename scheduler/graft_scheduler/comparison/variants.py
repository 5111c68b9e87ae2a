"""Variants as people write them: `qlora`, `dora,rank=16`, `small: lora,rank=8,lr=1e-4`. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft_scheduler.complaints import nearest
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import Method
from graft_scheduler.job_settings import nest

MOST_LETTERS = 80
"""Of a variant's name, and of a comparison's: together they name a job."""
GRAMMAR = "write a method, settings, or both: `qlora`, `rank=16`, `small: lora,rank=8`"
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True, slots=True)
class Variant:
    """What one job of a comparison has of its own."""

    name: str
    overrides: Mapping[str, Any]
    """Settings by dotted or short names, or in groups, in the place of the job's."""

    @property
    def dotted(self) -> dict[str, Any]:
        """The overrides by their full names.

        Raises:
            InvalidInput: a setting is given below one that has none.
        """
        return dict(flatten(nest(self.overrides)))


def read_variants(given: Sequence[str | Variant]) -> list[Variant]:
    """The variants that are meant.

    Raises:
        InvalidInput: one cannot be read, or two have one name.
    """
    found: dict[str, Variant] = {}
    for one in given:
        variant = read_variant(one) if isinstance(one, str) else one
        check_name(variant.name, "a variant")
        if variant.name in found:
            raise InvalidInput(f"two variants are named `{variant.name}`; write `NAME: ...` before one")
        found[variant.name] = variant
    return list(found.values())


def read_variant(text: str) -> Variant:
    """`NAME: METHOD,SETTING=VALUE,...`; without a name, what is written is the name.

    Raises:
        InvalidInput: says which part cannot be read and how it is written.
    """
    name, body = _split_name(text)
    first, *more = (part.strip() for part in _split(body))
    overrides: dict[str, Any] = {}
    if "=" in first:
        more = [first, *more]
    else:
        overrides["method"] = _method(first, text)
    for part in more:
        setting, equals, value = part.partition("=")
        if not equals or not setting.strip():
            raise InvalidInput(f"variant `{text}`: `{part}` is no setting; {GRAMMAR}")
        overrides[setting.strip()] = _value(value.strip())
    return Variant(name or ",".join(part.strip() for part in _split(body)), overrides)


def check_name(name: str, what: str) -> None:
    """Refuse what could not stand in a table.

    Raises:
        InvalidInput: the name is empty, too long, or has letters that cannot be printed.
    """
    if not name.strip() or len(name) > MOST_LETTERS or not name.isprintable():
        raise InvalidInput(
            f"{what} is named {name!r}; a name has 1 to {MOST_LETTERS} letters that can be printed"
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"adapter": {"rank": 8}}` as `("adapter.rank", 8)`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _split_name(text: str) -> tuple[str, str]:
    """The name before a colon, where there is one before any setting."""
    name, colon, body = text.partition(":")
    if not colon or set(name) & {"=", ",", *_OPENING}:
        return "", text
    return name.strip(), body


def _split(text: str) -> list[str]:
    """The parts between commas, but for those in brackets or quotes."""
    parts, depth, is_quoted = [""], 0, False
    for letter in text:
        is_quoted ^= letter == '"'
        if not is_quoted:
            depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and not depth and not is_quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _method(word: str, text: str) -> str:
    methods = [one.value for one in Method]
    if word not in methods:
        hint = nearest(word, tuple(methods)) if word else ""
        told = f"`{word}` is no method{hint}" if word else "a method or a setting is missing"
        raise InvalidInput(f"variant `{text}`: {told}; {GRAMMAR}")
    return word


def _value(text: str) -> Any:
    """JSON where it is JSON, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
