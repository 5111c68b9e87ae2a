"""Data sets for tests: rows, files and folders made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft_scheduler.data.inspection import Inspection, Wishes
from graft_scheduler.data.opening import inspect_source, open_source
from graft_scheduler.jobs import DataRef

TEXT = {"text": "a"}
COMPLETION = {"prompt": "a", "completion": "b"}


def turn(role: str, content: object = "words", **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def chat(*messages: object, **more: object) -> dict[str, object]:
    return {"messages": list(messages), **more}


CHAT = chat(turn("user", "a"), turn("assistant", "b"))


def jsonl(*rows: object) -> bytes:
    """Lines of JSON; a row that is text stands as it is."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def write(path: Path, *rows: object) -> Path:
    path.write_bytes(jsonl(*rows))
    return path


def look(path: Path, **settings: Any) -> Inspection:
    """What is found in the data set at `path`."""
    return inspect_source(open_source(DataRef(source=str(path), **settings)))


def places(found: Inspection) -> Sequence[tuple[str, int | None, str]]:
    """Where the faults are that refuse it: file, line, kind."""
    return [(Path(one.file).name, one.line, one.kind.value) for one in found.faults.refused]


__all__ = ["CHAT", "COMPLETION", "TEXT", "Wishes", "chat", "jsonl", "look", "places", "turn", "write"]
