"""A runner's memory over time as a PNG; matplotlib draws it, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft_scheduler.records import MemorySample

NEEDS_MATPLOTLIB = (
    "`--png` needs matplotlib on this machine; `pip install '.[plot]'` in Graft's folder installs it"
)
MIB, GIB = 1 << 20, 1 << 30
INCHES = (9.0, 4.5)
DOTS = 150
SHADES = {"preparing": "#e8eef7", "training": "#eaf5ea", "evaluating": "#fdf3dc", "saving": "#f6e7ef"}


def draw(
    samples: Sequence[MemorySample],
    file: Path,
    title: str,
    predicted_bytes: int | None,
    measured_bytes: int | None,
) -> None:
    """Write the picture to `file`.

    Raises:
        InvalidInput: matplotlib is missing, there is nothing to draw, or the file cannot be written.
    """
    from graft_scheduler.errors import InvalidInput

    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInput(NEEDS_MATPLOTLIB) from error
    if not samples:
        raise InvalidInput("`--png` has nothing to draw: no memory was recorded")
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    highest = max(*(one.footprint_bytes for one in samples), predicted_bytes or 0, measured_bytes or 0)
    unit, name = (GIB, "GB") if highest >= GIB else (MIB, "MB")
    _shade_phases(axes, samples)
    _draw_lines(axes, samples, unit)
    _mark(axes, predicted_bytes, unit, "predicted peak of MLX", {"color": "tab:red", "lw": 2, "ls": ":"})
    _mark(axes, measured_bytes, unit, "measured peak of MLX", {"color": "tab:green", "lw": 1, "ls": "--"})
    axes.set(xlabel="seconds", ylabel=f"memory ({name})", title=title)
    axes.set_xlim(samples[0].seconds, max(samples[-1].seconds, samples[0].seconds + 0.1))
    axes.set_ylim(bottom=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    try:
        figure.savefig(file, dpi=DOTS, format="png")
    except OSError as error:
        raise InvalidInput(f"`--png` is {file}, which cannot be written: {error.strerror}") from error


def _draw_lines(axes: Any, samples: Sequence[MemorySample], unit: int) -> None:
    seconds = [one.seconds for one in samples]
    axes.plot(
        seconds,
        [one.footprint_bytes / unit for one in samples],
        color="tab:gray",
        label="footprint of the process",
    )
    for name, values, color in (
        ("active arrays of MLX", [one.active_bytes for one in samples], "tab:blue"),
        ("cache of MLX", [one.cache_bytes for one in samples], "tab:orange"),
    ):
        if any(value is not None for value in values):
            known = [float("nan") if value is None else value / unit for value in values]
            axes.plot(seconds, known, color=color, label=name, drawstyle="steps-post")


def _mark(axes: Any, value: int | None, unit: int, name: str, line: dict[str, Any]) -> None:
    if value is not None:
        axes.axhline(value / unit, label=name, **line)


def _shade_phases(axes: Any, samples: Sequence[MemorySample]) -> None:
    """A background for each stretch of one phase, named once in the legend."""
    named: set[str] = set()
    start = 0
    for index in range(1, len(samples) + 1):
        if index < len(samples) and samples[index].phase is samples[start].phase:
            continue
        phase = samples[start].phase.value
        end = samples[min(index, len(samples) - 1)].seconds
        label = None if phase in named else phase
        axes.axvspan(samples[start].seconds, end, color=SHADES.get(phase, "#eeeeee"), label=label, lw=0)
        named.add(phase)
        start = index
