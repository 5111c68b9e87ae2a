"""A study's results as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.resources import files

from graft_scheduler.memory.size import format_bytes
from graft_scheduler.studies.outcomes import Setting, StudyResults, TrialResult, words

_PAGE = files("graft_scheduler.studies") / "page"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
"""What a browser lets the page do, should a name of a study or a setting get past the escapes."""


@dataclass(frozen=True, slots=True)
class Section:
    """A picture of the page, or what to say in its place."""

    name: str
    title: str
    says: str
    svg: str | None


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    key: float | None = None
    """What it is sorted by, where that is a number."""


def as_html(results: StudyResults, sections: Sequence[Section]) -> str:
    """The whole page; all that comes from the study is escaped."""
    script, style = (_PAGE.joinpath(name).read_text("utf-8") for name in ("sort.js", "style.css"))
    policy = POLICY.format(digest=b64encode(hashlib.sha256(script.encode()).digest()).decode())
    title = escape(results.name)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Study {title}</title>\n<style>{style}</style>\n</head>\n<body>",
        f"<h1>Study {title}</h1>",
        _summary(results),
        *(_section(one) for one in sections),
        _trials(results),
        f"<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(seconds)
    for size, name, less, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // less} {smaller}"
    return f"{whole} s"


def _summary(results: StudyResults) -> str:
    counts = ", ".join(f"{count} {outcome.value}" for outcome, count in results.counts.items())
    goals = "; ".join(f"{goal.label}, {goal.better}" for goal in results.goals)
    facts = [("objectives" if len(results.goals) > 1 else "objective", goals)]
    facts.append(("trials", f"{len(results.trials)}: {counts}" if counts else "none"))
    facts += _time(results)
    best = [trial for trial in results.trials if trial.number in results.best]
    if not best:
        return _facts([*facts, ("best", "no trial has completed within the constraints yet")])
    if len(results.goals) == 1:
        return _facts([*facts, *_best(results, best[0])])
    facts.append(("best", f"{len(best)} on the Pareto front"))
    return _facts(facts, f'<h3>Trials on the front</h3>\n<div class="wide">{_table(results, best)}</div>')


def _time(results: StudyResults) -> list[tuple[str, str]]:
    started = [trial.started for trial in results.trials if trial.started is not None]
    ended = [trial.ended for trial in results.trials if trial.ended is not None]
    found = []
    if started and ended:
        first, last = min(started), max(ended)
        text = f"{_moment(first)} to {_moment(last)} ({duration((last - first).total_seconds())})"
        found.append(("from, to", text))
    known = [trial.seconds for trial in results.trials if trial.seconds is not None]
    if known:
        found.append(("time of all trials", duration(sum(known))))
    return found


def _best(results: StudyResults, trial: TrialResult) -> list[tuple[str, str]]:
    (goal,) = results.goals
    facts = [("best", f"{goal.text(trial.values[0])}, trial {trial.number}")]
    if trial.job is not None:
        facts.append(("job of the best", trial.job))
    return facts + [(setting.name, _setting(trial, setting).text) for setting in results.settings]


def _facts(facts: Sequence[tuple[str, str]], more: str = "") -> str:
    rows = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f"<section>\n<h2>Summary</h2>\n<dl>\n{rows}\n</dl>\n{more}</section>"


def _section(one: Section) -> str:
    head = f'<section id="{escape(one.name)}">\n<h2>{escape(one.title)}</h2>'
    if one.svg is None:
        return f"{head}\n<p>Not drawn: {escape(one.says)}.</p>\n</section>"
    picture = f'<div class="wide" role="img" aria-label="{escape(one.title)}">{one.svg}</div>'
    return f"{head}\n<p>{escape(one.says)}</p>\n{picture}\n</section>"


def _trials(results: StudyResults) -> str:
    table = _table(results, results.trials)
    says = "A click on a heading sorts by it."
    return (
        f'<section id="trials">\n<h2>Trials</h2>\n<p>{says}</p>\n<div class="wide">{table}</div>\n</section>'
    )


def _table(results: StudyResults, trials: Sequence[TrialResult]) -> str:
    heads = ["trial", "state", *(goal.label for goal in results.goals)]
    heads += [setting.name for setting in results.settings]
    heads += ["job", "host", "seconds", "peak memory", "tokens/s", "why"]
    row = "".join(f'<th scope="col"><button type="button">{escape(head)}</button></th>' for head in heads)
    rows = "\n".join(_row(results, trial) for trial in trials)
    return f'<table class="sorted">\n<thead><tr>{row}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>'


def _row(results: StudyResults, trial: TrialResult) -> str:
    cells = [_Cell(str(trial.number), trial.number), _Cell(trial.outcome.value)]
    for place, goal in enumerate(results.goals):
        value = trial.values[place] if trial.values else None
        cells.append(_Cell("") if value is None else _Cell(goal.text(value), value))
    cells += [_setting(trial, setting) for setting in results.settings]
    peak, speed = trial.peak_memory_bytes, trial.tokens_per_second
    cells += [_Cell(trial.job or ""), _Cell(trial.host or "")]
    cells.append(_Cell("") if trial.seconds is None else _Cell(f"{trial.seconds:,.1f}", trial.seconds))
    cells.append(_Cell("") if peak is None else _Cell(format_bytes(peak), peak))
    cells.append(_Cell("") if speed is None else _Cell(f"{speed:,.0f}", speed))
    cells.append(_Cell(_why(trial)))
    looks = f"{trial.outcome.value} best" if trial.number in results.best else trial.outcome.value
    return f'<tr class="{looks}">{"".join(map(_cell, cells))}</tr>'


def _setting(trial: TrialResult, setting: Setting) -> _Cell:
    if setting.name not in trial.settings:
        return _Cell("")
    value = trial.settings[setting.name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _Cell(f"{value:.4g}" if isinstance(value, float) else str(value), value)
    return _Cell(words(value))


def _why(trial: TrialResult) -> str:
    same = [] if trial.duplicate_of is None else [f"same as trial {trial.duplicate_of}"]
    return "; ".join([*same, *([trial.why] if trial.why else [])])


def _cell(cell: _Cell) -> str:
    if cell.key is None:
        return f"<td>{escape(cell.text)}</td>"
    return f'<td class="number" data-key="{cell.key}">{escape(cell.text)}</td>'


def _moment(when: datetime) -> str:
    return when.isoformat(sep=" ", timespec="minutes")
