"""Rows as they stand in a file, before anybody asks what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graft_scheduler.data.faults import Kind


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, counted from 1: the line it begins on, or its number in a table."""

    line: int
    fields: Mapping[str, Any]
    size: int = 0
    """Bytes of its line; 0 where it stands on none."""


@dataclass(frozen=True, slots=True)
class Unread:
    """What should be a row and cannot be read as one."""

    line: int | None
    kind: Kind
    text: str
