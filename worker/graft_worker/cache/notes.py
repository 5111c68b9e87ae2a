"""What is noted of an item: where it came from and, in the hub's cache, whether Graft brought it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from graft_worker.cache.items import Item

NOTES = "notes"
"""A folder of the cache, a small JSON file for each item that there is something to say of."""


class Note(BaseModel):
    """Of one item."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str = ""
    """As a person named it: the folder that it was put into the store from."""
    is_ours: bool = False
    """Graft brought it into the hub's cache, and so may remove it."""
    kept: tuple[str, ...] = ()
    """Files of the snapshot that were there before; they stay when it is removed."""
    is_whole: bool = False
    """Every file that mlx-lm loads is there, as was seen when it was fetched."""


def read_note(cache: Path, item: Item) -> Note:
    """What is noted; nothing is noted of what was there before Graft."""
    try:
        return Note.model_validate_json((cache / NOTES / item.key).read_bytes())
    except (OSError, ValidationError):
        return Note()


def write_note(cache: Path, item: Item, note: Note) -> None:
    """Note it, in one step."""
    path = cache / NOTES / item.key
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    aside.write_text(note.model_dump_json())
    aside.replace(path)


def forget_note(cache: Path, item: Item) -> None:
    """Nothing is noted any longer."""
    with suppress(OSError):
        (cache / NOTES / item.key).unlink()
