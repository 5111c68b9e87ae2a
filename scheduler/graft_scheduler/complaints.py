"""Says what is wrong with a value: the field, the value, and what would be right."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError


def explain(error: ValidationError, known: tuple[str, ...]) -> str:
    """Pydantic's complaints as one line: field, value, remedy."""
    return "; ".join(_explain_one(dict(one), known) for one in error.errors())


def _explain_one(one: dict[str, Any], known: tuple[str, ...]) -> str:
    name = ".".join(str(part) for part in one["loc"] if part not in {"train", "count"})
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
