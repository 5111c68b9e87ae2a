"""What came of a study: its trials as plain values, for pictures, pages and tables. Pure; without Optuna."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from graft_scheduler.memory.size import format_bytes
from graft_scheduler.studies.space import Value
from graft_scheduler.studies.spec import Objective

GIB = 1 << 30
MOST_DRAWN = 1e100
"""Beyond it a scale would overflow."""
SHORTENED = "…"


class Outcome(StrEnum):
    """What a trial has come to, in words."""

    COMPLETED = "completed"
    INFEASIBLE = "infeasible"
    """It ended, and took more than a constraint allows."""
    PRUNED = "pruned"
    FAILED = "failed"
    RUNNING = "running"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Goal:
    """One objective."""

    name: str
    is_maximized: bool = False

    @property
    def divisor(self) -> float:
        """What a value is divided by in pictures."""
        return GIB if self.name == Objective.PEAK_MEMORY else 1.0

    @property
    def label(self) -> str:
        """The name with its unit, where that is known."""
        match self.name:
            case Objective.PEAK_MEMORY:
                return "peak memory (GB)"
            case Objective.SECONDS:
                return "time (seconds)"
            case _:
                return shorten(self.name.replace("_", " "), 40)

    @property
    def better(self) -> str:
        return "more is better" if self.is_maximized else "less is better"

    def text(self, value: float) -> str:
        """A value as a person reads it."""
        if self.name == Objective.PEAK_MEMORY and math.isfinite(value):
            return format_bytes(round(value))
        return f"{value:,.1f} s" if self.name == Objective.SECONDS else f"{value:.5g}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One searched setting, over all trials that have it."""

    name: str
    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[str, ...] = ()
    """In words, where the setting has values and no range; a trial's place is an index of these."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial; what is not known is `None` or empty."""

    number: int
    outcome: Outcome
    values: tuple[float, ...]
    """One for each goal, or none; a pruned trial's is the last that it reported."""
    settings: Mapping[str, Value]
    places: Mapping[str, float]
    """Where each setting lies on its axis."""
    curve: tuple[tuple[int, float], ...]
    """Steps and what was reported there."""
    constraints: Mapping[str, float]
    job: str | None
    host: str | None
    seconds: float | None
    peak_memory_bytes: int | None
    tokens_per_second: float | None
    why: str | None
    duplicate_of: int | None
    started: datetime | None
    ended: datetime | None

    @property
    def is_finite(self) -> bool:
        """Whether it has values, all of which can be drawn."""
        return bool(self.values) and all(_can_be_drawn(value) for value in self.values)

    @property
    def reported(self) -> list[tuple[int, float]]:
        """What can be drawn of its curve."""
        return [(step, value) for step, value in self.curve if _can_be_drawn(value)]


@dataclass(frozen=True, slots=True)
class StudyResults:
    """A study at one moment."""

    name: str
    goals: tuple[Goal, ...]
    settings: tuple[Setting, ...]
    trials: tuple[TrialResult, ...]
    best: tuple[int, ...]
    """Numbers of the best trial, or of those on the Pareto front; only what completed can be there."""

    @property
    def counts(self) -> dict[Outcome, int]:
        """Trials of each outcome that there is."""
        found = Counter(trial.outcome for trial in self.trials)
        return {outcome: found[outcome] for outcome in Outcome if found[outcome]}

    def of(self, *outcomes: Outcome) -> list[TrialResult]:
        return [trial for trial in self.trials if trial.outcome in outcomes]


def words(value: Value) -> str:
    """A setting's value in words: no quotes, lists without brackets."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return json.dumps(value)


def shorten(text: str, most: int) -> str:
    """One printable line of at most so many characters; its middle goes first."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    if len(line) <= most:
        return line
    head = (most - 1) // 2
    return line[:head] + SHORTENED + line[len(line) - (most - 1 - head) :]


def _can_be_drawn(value: float) -> bool:
    return abs(value) < MOST_DRAWN  # false for what is no number, too
