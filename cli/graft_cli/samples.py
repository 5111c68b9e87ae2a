"""The small base model and data set that ship with Graft, and the settings that suit them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "samples"
SETTINGS: dict[str, Any] = {
    "rank": 8,
    "scale": 4.0,
    "learning_rate": 2e-3,
    "batch_size": 8,
    "steps": 70,
    "evaluation.every": 35,
    "evaluation.rows": 32,
}
"""What `graft demo` trains with: about a minute on two cores."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A question that is in no training row, and the answer that would be right."""

    prompt: str
    expected: str


SHOWCASE = HeldOut(
    "Could you send the error report at once?", "{action: send, object: error report, when: at once}"
)
"""No row of the data speaks of an error report."""


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


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
