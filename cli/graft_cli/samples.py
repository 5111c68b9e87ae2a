"""The small base model and data set that ship with Graft, and the settings that suit them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "samples"
SETTINGS: dict[str, Any] = {"rank": 8, "learning_rate": 3e-3, "batch_size": 8, "epochs": 1}
"""What `graft demo` trains with: about two minutes on two cores."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One validation row, as a question and the answer that would be right."""

    prompt: str
    expected: str


def base_model() -> Path:
    """The folder of the base model."""
    return FOLDER / "base"


def data_folder() -> Path:
    """The folder with `train.jsonl` and `valid.jsonl`."""
    found = sorted(FOLDER.glob("*/train.jsonl"))
    return found[0].parent if found else FOLDER / "data"


def train_command(model: str, data: str) -> str:
    """A command line that trains `model` on `data`, ready to be pasted."""
    return f"graft train --model {_quoted(model)} \\\n      --data {_quoted(data)}"


def held_out(folder: Path, row: int = 0) -> HeldOut:
    """A row of the validation file: nothing was learned from it."""
    lines = (folder / "valid.jsonl").read_text().splitlines()
    return _as_question(json.loads(lines[row]))


def _as_question(row: dict[str, Any]) -> HeldOut:
    if "messages" in row:
        *before, last = row["messages"]
        return HeldOut(before[-1]["content"], last["content"])
    return HeldOut(row["prompt"], row["completion"])


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
