"""Pictures of searched settings: which matter, all together, and each by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graft_scheduler.studies.canvas import (
    BLUE,
    GREY,
    INK,
    MOST_VECTORS,
    ORANGE,
    PANEL,
    WIDTH,
    dots,
    explain,
    is_wide,
    log_ticks,
    mark,
    name_figure,
    new_figure,
    plain,
    ring,
    ring_entry,
    scale_setting,
    scale_values,
    stroke,
    ticks_of_choices,
)
from graft_scheduler.studies.outcomes import Goal, Outcome, Setting, StudyResults, TrialResult, shorten

MOST_BARS = 20
FEW = 5
"""Trials of a front; more have thinner lines."""
GAP = 1.75
"""Inches between the axes of parallel coordinates: a label of `LETTERS` fits in."""
LETTERS = 18
MANY = 60
"""Lines of a kind; more are drawn more thinly, so that what they have in common is seen."""
PANEL_WIDTH, PANEL_HEIGHT, PANELS = 3.1, 2.7, 4
"""Of a slice, in inches, and how many stand beside each other."""
PANEL_LETTERS = 28
"""Of choices beside each other under a slice; more are slanted."""
GOLDEN = 0.618
"""Spreads points of the same choice, the same way every time."""
BETTER = "#3f93bd"
"""Towards the blue of the best."""
_VALUED = (Outcome.PRUNED, Outcome.INFEASIBLE, Outcome.COMPLETED)


def draw_importance(results: StudyResults, shares: dict[str, float]) -> Any:
    """Shares of 1, the largest on top."""
    shown = list(shares.items())[:MOST_BARS]
    figure = new_figure(WIDTH, 1.2 + 0.36 * len(shown))
    axes = figure.add_subplot()
    places = range(len(shown))
    bars = axes.barh(places, [100 * share for _, share in shown], color=BLUE, height=0.62)
    axes.bar_label(bars, labels=[f"{share:.0%}" for _, share in shown], padding=4, color=INK)
    axes.set_yticks(places, labels=[shorten(name, 40) for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, min(100.0, 100 * shown[0][1]) * 1.1)
    axes.set_xlabel("share of all importance (%)")
    axes.grid(visible=False, axis="y")
    left_out = len(shares) - len(shown)
    more = f", {left_out} lesser ones left out" if left_out else ""
    name_figure(figure, results, f"importance of settings{more}")
    return figure


@dataclass(frozen=True, slots=True)
class _Axis:
    """One of the parallel axes: its head, where numbers lie between 0 and 1, and its ticks."""

    head: str
    low: float
    high: float
    is_log: bool
    ticks: tuple[tuple[float, str], ...]

    def height(self, number: float) -> float:
        if self.low >= self.high:
            return 0.5
        if self.is_log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)


def draw_parallel(results: StudyResults) -> Any:
    """A line for each trial, through its settings to its values."""
    valued = [one for one in results.of(*_VALUED) if one.is_finite]
    axes_of_settings = [_setting_axis(setting) for setting in results.settings]
    axes_of_goals = [_goal_axis(results.goals[place], valued, place) for place in range(len(results.goals))]
    scales = [*axes_of_settings, *axes_of_goals]
    figure = new_figure(max(WIDTH, GAP * (len(scales) + 0.3)), 5.0)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.35, len(scales) - 1 + 0.6)
    axes.set_ylim(-0.03, 1.03)
    for place, scale in enumerate(scales):
        _draw_axis(axes, place, scale)
    groups = _groups(results, valued)
    for group in groups:
        _draw_group(axes, group, [_line(results, one, scales) for one in group.trials], len(valued))
    name_figure(figure, results, "settings together")
    entries = [
        stroke(words, colour, lw=group.width, ls=group.style)
        for group in reversed(groups)
        for words, colour in reversed(group.entries)
    ]
    explain(figure, entries)
    return figure


def draw_slices(results: StudyResults) -> Any:
    """For each objective and setting, where trials were and what they came to."""
    columns = min(PANELS, len(results.settings))
    blocks = -(-len(results.settings) // columns)
    rows = blocks * len(results.goals)
    figure = new_figure(max(7.0, PANEL_WIDTH * columns), PANEL_HEIGHT * rows + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False)
    for place, goal in enumerate(results.goals):
        part = panels[place * blocks : (place + 1) * blocks].ravel()
        for turn, axes in enumerate(part):
            if turn >= len(results.settings):
                axes.remove()
                continue
            _slice(axes, results, results.settings[turn], place)
            scale_values(axes, "y", _values(results, place), f"{goal.label}\n{goal.better}")
            if turn % columns:
                axes.set_ylabel("")
                axes.tick_params(labelleft=False)
            if turn:
                axes.set_ylim(part[0].get_ylim())
    name_figure(figure, results, "settings one by one")
    counts = {one: len(found) for one in reversed(_VALUED) if (found := _valued(results, one))}
    explain(figure, [*dots(counts), *([ring_entry(_best_words(results))] if results.best else [])])
    return figure


def _setting_axis(setting: Setting) -> _Axis:
    group, _, last = setting.name.rpartition(".")
    head = (
        f"{shorten(group, LETTERS + 2)}\n{shorten(last, LETTERS + 2)}"
        if group
        else shorten(last, LETTERS + 2)
    )
    if setting.choices:
        places, labels = ticks_of_choices(setting, LETTERS)
        ticks = tuple((float(place), label) for place, label in zip(places, labels, strict=True))
        return _Axis(head, 0.0, len(setting.choices) - 1.0, False, ticks)
    low, high = setting.low, setting.high
    return _Axis(head, low, high, setting.is_log, _ticks(low, high, setting.is_log, setting.is_whole))


def _goal_axis(goal: Goal, trials: Sequence[TrialResult], place: int) -> _Axis:
    values = [one.values[place] / goal.divisor for one in trials]
    low, high, is_log = min(values), max(values), is_wide(values)
    return _Axis(
        f"{shorten(goal.label, LETTERS + 2)}\n{goal.better}", low, high, is_log, _ticks(low, high, is_log)
    )


def _ticks(low: float, high: float, is_log: bool, is_whole: bool = False) -> tuple[tuple[float, str], ...]:
    from matplotlib.ticker import MaxNLocator

    if low >= high:
        return ((low, plain(low)),)
    if is_log:
        return tuple((one, plain(one)) for one in log_ticks(low, high))
    edge = 1e-9 * (high - low)
    found = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=is_whole).tick_values(low, high)
    return tuple((float(one), plain(float(one))) for one in found if low - edge <= one <= high + edge)


def _draw_axis(axes: Any, place: int, scale: _Axis) -> None:
    axes.plot([place, place], [0, 1], color=INK, lw=1.0, zorder=4)
    axes.annotate(
        scale.head, (place, 1), (0, 12), textcoords="offset points", ha="center", va="bottom", fontsize=9
    )
    box = {"facecolor": PANEL, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    for number, label in scale.ticks:
        height = scale.height(number)
        axes.plot([place - 0.015, place + 0.015], [height, height], color=INK, lw=0.8, zorder=4)
        axes.annotate(
            label,
            (place, height),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox=box,
            zorder=6,
        )


def _line(results: StudyResults, trial: TrialResult, scales: Sequence[_Axis]) -> list[tuple[float, float]]:
    """Its way from axis to axis, with a gap where it lacks a setting."""
    numbers = [trial.places.get(setting.name, math.nan) for setting in results.settings]
    numbers += [value / goal.divisor for value, goal in zip(trial.values, results.goals, strict=True)]
    return [
        (float(place), math.nan if math.isnan(number) else scale.height(number))
        for place, (number, scale) in enumerate(zip(numbers, scales, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class _Group:
    """Trials whose lines look alike."""

    trials: Sequence[TrialResult]
    colours: Sequence[Any]
    width: float
    """In points."""
    opaque: float
    entries: tuple[tuple[str, str], ...]
    """Of the legend: words and colour."""
    style: str = "-"


def _groups(results: StudyResults, valued: Sequence[TrialResult]) -> list[_Group]:
    """From those that matter least to those that matter most."""
    others = [one for one in valued if one.outcome is not Outcome.COMPLETED]
    best = [one for one in valued if one.number in results.best]
    rest = [one for one in valued if one.outcome is Outcome.COMPLETED and one.number not in results.best]
    if len(results.goals) > 1:
        colours: list[Any] = [ORANGE] * len(rest)
        entries: tuple[tuple[str, str], ...] = (("completed, not on it", ORANGE),)
    else:
        rest.sort(key=lambda one: one.values[0], reverse=not results.goals[0].is_maximized)
        colours = _shades(len(rest))
        entries = (("completed, worse", ORANGE), ("completed, better", BETTER))
    words = _best_words(results) if best else ""
    thick = 2.4 if len(best) <= FEW else 1.5
    found = [
        _Group(others, [GREY] * len(others), 0.8, 0.5, (("pruned or infeasible", GREY),), "--"),
        _Group(rest, colours, 1.1, 0.75, entries),
        _Group(best, [BLUE] * len(best), thick, 1.0, ((words, BLUE),)),
    ]
    return [group for group in found if group.trials]


def _shades(count: int) -> list[Any]:
    """From the worst to the best."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("from worst to best", [ORANGE, BETTER])
    return [shades(turn / max(1, count - 1)) for turn in range(count)]


def _draw_group(axes: Any, group: _Group, lines: Sequence[Any], count: int) -> None:
    from matplotlib.collections import LineCollection

    opaque = group.opaque * min(1.0, math.sqrt(MANY / len(lines)))
    look: dict[str, Any] = {"lw": group.width, "alpha": opaque, "ls": group.style}
    many = count > MOST_VECTORS
    axes.add_collection(LineCollection(lines, colors=group.colours, rasterized=many, **look))


def _best_words(results: StudyResults) -> str:
    return f"best: trial {results.best[0]}" if len(results.goals) == 1 else "on the Pareto front"


def _slice(axes: Any, results: StudyResults, setting: Setting, place: int) -> None:
    for outcome in _VALUED:
        trials = [one for one in _valued(results, outcome) if setting.name in one.places]
        spots = [_spot(results, one, setting, place) for one in trials]
        mark(axes, outcome, spots, len(results.trials), size=22)
    best = [one for one in results.trials if one.number in results.best and setting.name in one.places]
    ring(axes, [_spot(results, one, setting, place) for one in best])
    scale_setting(axes, setting, LETTERS)
    axes.set_xlabel(shorten(setting.name, 36) + (", log scale" if setting.is_log else ""))
    if setting.choices:
        labels = ticks_of_choices(setting, LETTERS)[1]
        if sum(map(len, labels)) > PANEL_LETTERS:
            axes.tick_params(axis="x", labelrotation=25)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")


def _spot(results: StudyResults, trial: TrialResult, setting: Setting, place: int) -> tuple[float, float]:
    aside = (trial.number * GOLDEN % 1 - 0.5) * 0.3 if setting.choices else 0.0
    return trial.places[setting.name] + aside, trial.values[place] / results.goals[place].divisor


def _valued(results: StudyResults, outcome: Outcome) -> list[TrialResult]:
    return [one for one in results.of(outcome) if one.is_finite]


def _values(results: StudyResults, place: int) -> list[float]:
    divisor = results.goals[place].divisor
    return [one.values[place] / divisor for outcome in _VALUED for one in _valued(results, outcome)]
