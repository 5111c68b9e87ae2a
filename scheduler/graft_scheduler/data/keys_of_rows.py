"""Which rows say the same: a number for each, equal for rows that differ in white space at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_scheduler.jobs import DataFormat


def row_key(fields: Mapping[str, Any], data_format: DataFormat) -> int:
    """The key of a row in the form in which it is trained; means something within this process only."""
    match data_format:
        case DataFormat.CHAT:
            return hash(tuple(map(_turn, fields["messages"])))
        case DataFormat.COMPLETION:
            return hash((_words(fields["prompt"]), _words(fields["completion"])))
        case _:
            return hash(_words(fields["text"]))


def _turn(message: Mapping[str, Any]) -> tuple[str, str, str]:
    calls = message.get("tool_calls")
    return message["role"], _words(message.get("content") or ""), repr(calls) if calls else ""


def _words(text: str) -> str:
    return " ".join(text.split())
