"""The licence of a base model, as its own files tell it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
OTHER = "other"
"""There is a licence, and it is none of those that are known by their words."""
MOST_BYTES = 1 << 18
"""Read of a file: whatever is longer says it before."""
PHRASES = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"llama 3\.(\d) community license", r"llama3.\1"),
    (r"llama 3 community license", "llama3"),
    (r"llama 2 community license", "llama2"),
    (r"gemma terms of use", "gemma"),
    (r"permission is hereby granted, free of charge", "mit"),
    (r"redistribution and use in source and binary forms.*neither the name", "bsd-3-clause"),
    (r"gnu general public license\s+version 3", "gpl-3.0"),
)
"""What the text of a licence holds, and its name on the hub."""


def find_licence(folder: Path) -> str:
    """By the model card, else the config, else the licence's text; `unknown` where none of them tells."""
    card = _front_matter(folder / "README.md")
    named = _name(card.get("license"))
    if named == OTHER:
        named = _name(card.get("license_name")) or OTHER
    return named or _of_config(folder / "config.json") or _of_text(folder) or UNKNOWN


def _front_matter(path: Path) -> dict[str, Any]:
    """What a model card says of itself, between its first two lines of dashes."""
    import yaml

    found = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", _read(path), re.DOTALL)
    if found is None:
        return {}
    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _of_config(path: Path) -> str | None:
    try:
        config = json.loads(_read(path))
    except ValueError:
        return None
    return _name(config.get("license")) if isinstance(config, dict) else None


def _of_text(folder: Path) -> str | None:
    for path in sorted(folder.glob("LICENSE*")):
        text = re.sub(r"[ \t\r\n]+", " ", _read(path)).lower()
        if not text.strip():
            continue
        for phrase, name in PHRASES:
            if found := re.search(phrase, text):
                return found.expand(name)
        return OTHER
    return None


def _name(value: object) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value.strip().lower()[:100] if isinstance(value, str) and value.strip() else None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""
