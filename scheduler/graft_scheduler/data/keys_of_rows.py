"""Which rows say the same: a number for each, equal for rows that differ at most in white space, the ids of
calls, and how accents are encoded.
"""

from __future__ import annotations

import json
import unicodedata
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
    said = json.dumps([_called(one) for one in calls], sort_keys=True) if calls else ""
    return message["role"], _words(message.get("content") or ""), said


def _called(call: Mapping[str, Any]) -> Any:
    """What is called, whatever number the call has."""
    function = call.get("function", call)
    return [function.get("name"), function.get("arguments")]


def _words(text: str) -> str:
    words = " ".join(text.split())
    return words if words.isascii() else unicodedata.normalize("NFC", words)
