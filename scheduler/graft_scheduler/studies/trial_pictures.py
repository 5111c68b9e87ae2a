"""Pictures of trials: their history, their learning curves, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations
from typing import Any

from graft_scheduler.studies.canvas import (
    BLUE,
    GREY,
    INK,
    MARKS,
    MOST_VECTORS,
    PANEL,
    WIDTH,
    dot,
    dots,
    explain,
    mark,
    name_figure,
    new_figure,
    ring,
    ring_entry,
    scale_values,
    stroke,
)
from graft_scheduler.studies.outcomes import Goal, Outcome, StudyResults, TrialResult
from graft_scheduler.studies.spec import Objective

ENDED = (Outcome.COMPLETED, Outcome.INFEASIBLE, Outcome.PRUNED, Outcome.FAILED)
CURVES = {
    Outcome.FAILED: (0.6, 0.8),
    Outcome.PRUNED: (0.5, 0.8),
    Outcome.INFEASIBLE: (0.8, 1.0),
    Outcome.RUNNING: (0.9, 1.2),
    Outcome.COMPLETED: (0.75, 1.1),
}
"""How opaque, and how many points wide, the curves of trials are; the last lie on top."""
MOST_NUMBERED = 14
"""Trials of a front that are told by number in the picture."""
APART = (30.0, 14.0)
"""Of two numbers, in points across and up, so that they do not touch."""
PAIR = 2
"""Objectives whose front is a line."""
PANELS = 3
"""Pairs of objectives beside each other."""


def draw_history(results: StudyResults) -> Any:
    """The objective of each trial by its number, and the best so far."""
    goal = results.goals[0]
    valued = [one for one in results.of(*ENDED) if one.is_finite]
    others = [one for one in results.of(*ENDED) if not one.is_finite]
    figure = new_figure(WIDTH, 4.6)
    heights = [9, 1] if others else [1]
    all_axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    axes = all_axes[0]
    for outcome in ENDED:
        spots = [(one.number, one.values[0] / goal.divisor) for one in valued if one.outcome is outcome]
        mark(axes, outcome, spots, len(results.trials))
    entries = dots({one: count for one, count in results.counts.items() if one in ENDED})
    entries += _best_so_far(axes, results, goal)
    scale_values(axes, "y", [one.values[0] / goal.divisor for one in valued], f"{goal.label}\n{goal.better}")
    name_figure(figure, results, "history")
    if others:
        _strip(all_axes[1], others, len(results.trials))
    last = results.trials[-1].number
    room = max(0.7, 0.015 * last)
    all_axes[-1].set(xlabel="trial", xlim=(-room, last + room))
    all_axes[-1].xaxis.get_major_locator().set_params(integer=True)
    explain(figure, entries)
    return figure


def draw_curves(results: StudyResults) -> Any:
    """What trials reported, by step."""
    goal = results.goals[0]
    figure = new_figure(WIDTH, 4.6)
    axes = figure.add_subplot()
    entries: list[Any] = []
    for outcome, (opaque, width) in CURVES.items():
        curves = [trial.reported for trial in results.of(outcome) if trial.reported]
        if curves:
            _lines(axes, curves, MARKS[outcome][1], opaque, width)
            entries.insert(0, stroke(f"{outcome.value} ({len(curves)})", MARKS[outcome][1], alpha=opaque))
    for trial in results.trials:
        if trial.number in results.best and trial.reported:
            _lines(axes, [trial.reported], INK, 1.0, 2.2)
            entries.insert(0, stroke(f"best: trial {trial.number}", INK, lw=2.2))
    axes.autoscale_view()
    is_loss = goal.name not in {Objective.SECONDS, Objective.PEAK_MEMORY}
    heights = [value for trial in results.trials for _, value in trial.reported]
    scale_values(axes, "y", heights, goal.label if is_loss else "reported value")
    steps = {step for trial in results.trials for step, _ in trial.reported}
    if len(steps) == 1:
        axes.set_xlim(min(steps) - 1, max(steps) + 1)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    name_figure(figure, results, "learning curves")
    explain(figure, entries)
    return figure


def draw_front(results: StudyResults) -> Any:
    """Two objectives against each other, for every pair of them."""
    pairs = list(combinations(range(len(results.goals)), 2))
    columns = min(PANELS, len(pairs))
    rows = -(-len(pairs) // columns)
    width, height = (WIDTH, 5.4) if columns == 1 else (4.2 * columns, 4.2 * rows + 0.6)
    figure = new_figure(width, height)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (across, up) in zip(panels, pairs, strict=False):
        _pair(axes, results, across, up)
    for axes in panels[len(pairs) :]:
        axes.remove()
    name_figure(figure, results, "Pareto front")
    entries = [
        dot(f"on the front ({len(results.best)})", "o", BLUE, markeredgecolor=INK, ms=8),
        dot(f"completed, not on it ({_dominated(results)})", "o", GREY),
    ]
    if infeasible := sum(one.is_finite for one in results.of(Outcome.INFEASIBLE)):
        entries += dots({Outcome.INFEASIBLE: infeasible})
    explain(figure, entries)
    figure.draw_without_rendering()
    for axes, (across, up) in zip(panels, pairs, strict=False):
        _number(axes, results, across, up)
    return figure


def _best_so_far(axes: Any, results: StudyResults, goal: Goal) -> list[Any]:
    """Its line, a ring around the best, and both for the legend."""
    better = max if goal.is_maximized else min
    rivals = [one for one in results.of(Outcome.COMPLETED) if one.is_finite]
    if not rivals:
        return []
    numbers = [one.number for one in rivals] + [results.trials[-1].number]
    values = list(accumulate((one.values[0] for one in rivals), better))
    heights = [value / goal.divisor for value in [*values, values[-1]]]
    axes.plot(numbers, heights, drawstyle="steps-post", color=INK, lw=1.2, zorder=2)
    (best,) = results.best
    ring(axes, [(best, heights[-1])])
    entry = ring_entry(f"best: trial {best}, {goal.text(values[-1])}")
    return [stroke("best so far", INK, lw=1.2), entry]


def _strip(axes: Any, trials: Sequence[TrialResult], count: int) -> None:
    """Trials that came to no value, below the others."""
    for outcome in ENDED:
        mark(axes, outcome, [(one.number, 0.0) for one in trials if one.outcome is outcome], count)
    axes.set_ylim(-1, 1)
    axes.set_yticks([0], labels=["no value"])
    axes.grid(visible=False)


def _lines(
    axes: Any, curves: Sequence[list[tuple[int, float]]], colour: str, opaque: float, width: float
) -> None:
    from matplotlib.collections import LineCollection

    many = len(curves) > MOST_VECTORS
    look: dict[str, Any] = {"color": colour, "alpha": opaque, "rasterized": many}
    axes.add_collection(LineCollection(curves, lw=width, **look))
    alone = [curve[0] for curve in curves if len(curve) == 1]
    if alone:
        axes.scatter(*zip(*alone, strict=True), s=18, lw=0, **look)


def _pair(axes: Any, results: StudyResults, across: int, up: int) -> None:
    one, other = results.goals[across], results.goals[up]
    valued = [trial for trial in results.of(Outcome.COMPLETED, Outcome.INFEASIBLE) if trial.is_finite]
    spots = {trial.number: _spot(results, trial, across, up) for trial in valued}
    infeasible = {trial.number for trial in valued if trial.outcome is Outcome.INFEASIBLE}
    mark(axes, Outcome.INFEASIBLE, [spots[number] for number in infeasible], len(valued))
    rest = [spot for number, spot in spots.items() if number not in infeasible | set(results.best)]
    if rest:
        many = len(valued) > MOST_VECTORS
        axes.scatter(*zip(*rest, strict=True), s=28, color=GREY, alpha=0.8, lw=0, rasterized=many)
    front = sorted(spots[number] for number in results.best)
    if front and len(results.goals) == PAIR:
        style = "steps-pre" if one.is_maximized else "steps-post"
        axes.plot(*zip(*front, strict=True), drawstyle=style, color=BLUE, lw=1.0, alpha=0.7)
    if front:
        axes.scatter(*zip(*front, strict=True), s=56, color=BLUE, edgecolors=INK, lw=0.9, zorder=4)
    scale_values(axes, "x", [spot[0] for spot in spots.values()], f"{one.label}\n{one.better}")
    scale_values(axes, "y", [spot[1] for spot in spots.values()], f"{other.label}\n{other.better}")


def _number(axes: Any, results: StudyResults, across: int, up: int) -> None:
    """Numbers of trials on the front, where there is room; positions on paper are known by now."""
    placed: list[tuple[float, float]] = []
    scale = 72.0 / axes.figure.dpi
    named = [trial for trial in results.trials if trial.number in results.best]
    for trial in named:
        spot = _spot(results, trial, across, up)
        x, y = axes.transData.transform(spot) * scale
        if any(abs(x - other[0]) < APART[0] and abs(y - other[1]) < APART[1] for other in placed):
            continue
        placed.append((x, y))
        if len(placed) > MOST_NUMBERED:
            return
        box = {"facecolor": PANEL, "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
        axes.annotate(
            str(trial.number), spot, (6, 5), textcoords="offset points", fontsize=8.5, bbox=box, zorder=6
        )


def _spot(results: StudyResults, trial: TrialResult, across: int, up: int) -> tuple[float, float]:
    goals = results.goals
    return trial.values[across] / goals[across].divisor, trial.values[up] / goals[up].divisor


def _dominated(results: StudyResults) -> int:
    completed = [one for one in results.of(Outcome.COMPLETED) if one.is_finite]
    return len(completed) - len(results.best)
