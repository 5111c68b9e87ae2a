"""A comparison as a PNG: a panel for each figure, a line for each variant; matplotlib draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft_cli.amounts import duration, size

if TYPE_CHECKING:
    from graft_scheduler.comparison import Comparison, Row

NEEDS_MATPLOTLIB = (
    "`--plot` needs matplotlib on this machine; `pip install '.[plot]'` in Graft's folder installs it"
)
PANEL_INCHES, LINE_INCHES, FRAME_INCHES = 2.6, 0.45, 1.5
LEFT_INCHES = 1.4
DOTS = 150
CHOSEN, OTHERS, BAND = "#2a7f4f", "#8fa3b8", "#eaf5ea"
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
"""How a value stands beside its mark."""
ROOM_FOR_TEXT = 1.45
"""How much longer than the longest bar a panel is."""


def check_drawable(file: Path) -> None:
    """Whether a picture could be written there, asked before anything is trained.

    Raises:
        InvalidInput: matplotlib is missing, or the folder is not there.
    """
    from graft_scheduler.errors import InvalidInput

    if find_spec("matplotlib") is None:
        raise InvalidInput(NEEDS_MATPLOTLIB)
    if not file.expanduser().absolute().parent.is_dir():
        raise InvalidInput(f"`--plot` is {file}, and there is no folder {file.parent}")


def draw(comparison: Comparison, file: Path) -> None:
    """Write the picture to `file`; variants without a loss are left out.

    Raises:
        InvalidInput: matplotlib is missing, there is nothing to draw, or the file cannot be written.
    """
    from graft_scheduler.errors import InvalidInput

    check_drawable(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in reversed(comparison.rows) if row.validation_loss is not None]
    if not rows:
        raise InvalidInput("`--plot` has nothing to draw: no variant has a validation loss yet")
    inches = (LEFT_INCHES + 4 * PANEL_INCHES, FRAME_INCHES + LINE_INCHES * len(rows))
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4, sharey=True)
    chosen = comparison.recommendation.variant
    _draw_losses(panels[0], rows, chosen)
    _draw_bars(panels[1], rows, chosen, "peak memory", [row.peak_memory_bytes for row in rows], _bytes)
    _draw_bars(panels[2], rows, chosen, "training time", [row.training_seconds for row in rows], duration)
    _draw_bars(panels[3], rows, chosen, "adapter", [row.adapter_bytes for row in rows], _bytes)
    panels[0].set_yticks(range(len(rows)), [row.variant for row in rows])
    green = f"; green: recommended, {chosen}" if chosen else ""
    figure.suptitle(f"comparison {comparison.name}{green}", fontsize=11)
    try:
        figure.savefig(file.expanduser(), dpi=DOTS, format="png")
    except OSError as error:
        raise InvalidInput(f"`--plot` is {file}, which cannot be written: {error.strerror}") from error


def _draw_losses(axes: Any, rows: Sequence[Row], chosen: str | None) -> None:
    """Points, as losses lie close together far from 0; the band holds those that count as equally good."""
    from graft_scheduler.comparison.recommendation import LOSS_TOLERANCE

    losses = [row.validation_loss or 0.0 for row in rows]
    low, high = min(losses), max(*losses, min(losses) + LOSS_TOLERANCE)
    room = (high - low) * (ROOM_FOR_TEXT - 1)
    axes.axvspan(low, low + LOSS_TOLERANCE, color=BAND, lw=0)
    axes.scatter(losses, range(len(rows)), c=_colors(rows, chosen), s=40, zorder=3)
    for line, loss in enumerate(losses):
        axes.annotate(f"{loss:.3f}", (loss, line), (7, 0), **BESIDE)
    axes.set_xlim(low - room / 4, high + room * 1.3)
    axes.set_title("validation loss (nats)", fontsize=9)
    _tidy(axes)


def _draw_bars(
    axes: Any,
    rows: Sequence[Row],
    chosen: str | None,
    title: str,
    values: Sequence[float | None],
    words: Callable[[float], str],
) -> None:
    known = [value or 0 for value in values]
    axes.barh(range(len(rows)), known, color=_colors(rows, chosen), height=0.55)
    for line, value in enumerate(values):
        text = "unknown" if value is None else words(value)
        axes.annotate(text, (value or 0, line), (4, 0), **BESIDE)
    axes.set_xlim(0, (max(known) or 1) * ROOM_FOR_TEXT)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=8, length=0)
    axes.margins(y=0.15)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _colors(rows: Sequence[Row], chosen: str | None) -> list[str]:
    return [CHOSEN if row.variant == chosen else OTHERS for row in rows]


def _bytes(value: float) -> str:
    return size(int(value))
