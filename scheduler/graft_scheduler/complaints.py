"""Says what is wrong with a value: the field, the value, and what would be right."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

_NOT_NAMES = re.compile(r"train|count|constrained-\w+|literal\[.*\]")
"""Parts of pydantic's paths that name a kind of job or a branch of a union, not a setting."""


def explain(error: ValidationError, known: tuple[str, ...]) -> str:
    """Pydantic's complaints as one line: field, value, remedy."""
    texts: dict[str, str] = {}
    groups = {one["loc"][:-1] for one in error.errors()}
    for one in error.errors():
        if one["type"] == "too_short" and one["loc"] in groups:
            continue  # only because what is in it was refused
        name = ".".join(str(part) for part in one["loc"] if not _NOT_NAMES.fullmatch(str(part)))
        if name in texts and one["type"] == "literal_error":  # the other branch of a union
            texts[name] += f", or {one['ctx']['expected']}"
        else:
            texts[name] = _explain_one(name, dict(one), known)
    return "; ".join(texts.values())


def _explain_one(name: str, one: dict[str, Any], known: tuple[str, ...]) -> str:
    value, limits = one["input"], one.get("ctx", {})
    match one["type"]:
        case "extra_forbidden":
            return f"`{name}` is not a setting{nearest(name, known)}"
        case "missing":
            return f"`{name}` is missing"
        case "greater_than_equal":
            return f"`{name}` is {value}; it must be at least {limits['ge']}"
        case "greater_than":
            return f"`{name}` is {value}; it must be above {limits['gt']}"
        case "less_than_equal":
            return f"`{name}` is {value}; it must be at most {limits['le']}"
        case "less_than":
            return f"`{name}` is {value}; it must be below {limits['lt']}"
        case "enum" | "literal_error":
            return f"`{name}` is {value!r}; it must be {limits['expected']}"
        case "union_tag_invalid":
            return f"`kind` is {limits['tag']!r}; it must be one of {limits['expected_tags']}"
        case "value_error":
            return str(limits["error"])
        case _:
            return f"`{name}` is {value!r}: {one['msg'][0].lower()}{one['msg'][1:]}"


def nearest(name: str, known: tuple[str, ...]) -> str:
    """`; did you mean ...?`, or nothing when no known name is close."""
    close = get_close_matches(name, known, n=1, cutoff=0.6) or get_close_matches(
        name.rsplit(".", 1)[-1], known, n=1, cutoff=0.6
    )
    return f"; did you mean `{close[0]}`?" if close else ""
