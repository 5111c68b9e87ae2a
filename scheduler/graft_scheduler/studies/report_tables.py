"""A study's trials for other programs: CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from datetime import datetime

from graft_scheduler.studies.outcomes import StudyResults, TrialResult, words

COLUMNS = (
    "job",
    "host",
    "seconds",
    "peak_memory_bytes",
    "tokens_per_second",
    "why",
    "duplicate_of",
    "started",
    "ended",
)
"""Of every trial, after its values and settings; empty where not known."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would compute if a text began with it."""


def as_csv(results: StudyResults) -> str:
    """A line for each trial: `objective.NAME` and `setting.NAME` columns, then the rest.

    A text that a spreadsheet would take for a formula gets a `'` before it; `trials.json` has it as it is.
    """
    out = io.StringIO()
    goals = [f"objective.{goal.name}" for goal in results.goals]
    settings = [f"setting.{setting.name}" for setting in results.settings]
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["number", "state", *map(_cell, [*goals, *settings]), *COLUMNS])
    for trial in results.trials:
        values = trial.values or (None,) * len(goals)
        found = [
            words(trial.settings[setting.name]) if setting.name in trial.settings else None
            for setting in results.settings
        ]
        rest = [getattr(trial, name) for name in COLUMNS]
        lines.writerow([trial.number, trial.outcome.value, *values, *map(_cell, [*found, *rest])])
    return out.getvalue()


def as_json(results: StudyResults) -> str:
    """All that is known of the study and its trials; a number that JSON lacks is a text, as in `"inf"`."""
    document = {
        "name": results.name,
        "objectives": [
            {"name": goal.name, "direction": "maximize" if goal.is_maximized else "minimize"}
            for goal in results.goals
        ],
        "best": list(results.best),
        "trials": [_trial(results, trial) for trial in results.trials],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _trial(results: StudyResults, trial: TrialResult) -> dict[str, object]:
    names = [goal.name for goal in results.goals]
    return {
        "number": trial.number,
        "state": trial.outcome.value,
        "values": _numbers(dict(zip(names, trial.values, strict=False))),
        "settings": {name: _number(value) for name, value in trial.settings.items()},
        "constraints": _numbers(trial.constraints),
        "reported": {str(step): _number(value) for step, value in trial.curve},
        **{name: _written(getattr(trial, name)) for name in COLUMNS},
    }


def _numbers(values: Mapping[str, float]) -> dict[str, object]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _written(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _cell(value: object) -> object:
    value = _written(value)
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(FORMULA) and not _is_number(value)
        else value
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
