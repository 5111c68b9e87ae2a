"""What every picture of a study shares: matplotlib set up, colours, scales, and how figures become bytes."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from graft_scheduler.errors import InvalidInput
from graft_scheduler.studies.outcomes import Outcome, Setting, StudyResults, shorten

NEEDS_MATPLOTLIB = (
    "pictures of a study need matplotlib on this machine; "
    "`pip install '.[plot]'` in Graft's folder installs it"
)
DOTS = 150
"""Of a PNG, per inch."""
WIDTH = 9.0
"""Of a picture, in inches."""
LOG_FROM = 20.0
"""Values whose largest is this many times their smallest get a log axis: a few bad trials hide no others."""
MOST_VECTORS = 400
"""Trials that are drawn as lines of an SVG; more become an image inside it."""
SMALL_POINT = 12.0
"""Of so many trials: a point's area, in square points."""
LEGIBLE = 0.75
"""Of its size, to which a picture in a page shrinks; in a narrower window it is scrolled."""
MOST_TICKS, FEWEST_TICKS = 8, 3
MOST_IN_ROW = 5
"""Entries of a legend."""

INK, FAINT, PANEL = "#1b1f23", "#d4d9de", "#fefefe"
"""Text, grid and ground; a page puts its own colours in their place."""
BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#8d949b",
)
"""Of Okabe and Ito, which people see who do not tell red from green; all can be seen on black and white."""
MARKS: dict[Outcome, tuple[str, str]] = {
    Outcome.COMPLETED: ("o", BLUE),
    Outcome.INFEASIBLE: ("s", ORANGE),
    Outcome.PRUNED: ("v", GREY),
    Outcome.FAILED: ("X", VERMILION),
    Outcome.RUNNING: ("d", GREEN),
    Outcome.WAITING: ("d", GREEN),
}
Spot = tuple[float, float]
"""Across and up, in what the axes measure."""
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # names of studies and settings are no formulas
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.facecolor": PANEL,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PANEL,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
}
_OF_PAGE = {INK: "var(--ink)", FAINT: "var(--faint)", PANEL: "var(--panel)", BLUE: "var(--blue)"}
_TAG = re.compile(r"<[^<>]*>")


@contextmanager
def drawing() -> Iterator[None]:
    """Everything that draws or saves runs in here: our style, whatever the user's matplotlib is set to.

    Raises:
        InvalidInput: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InvalidInput(NEEDS_MATPLOTLIB) from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # foreign scripts in names
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Any:
    """A figure of this size in inches, with no window anywhere."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def mark(axes: Any, outcome: Outcome, spots: Sequence[Spot], count: int, size: float = 34) -> None:
    """Trials of one outcome as points of this area; `count` trials are in the picture."""
    shape, colour = MARKS[outcome]
    many = count > MOST_VECTORS
    look = {
        "s": SMALL_POINT if many else size,
        "marker": shape,
        "color": colour,
        "alpha": 0.85,
        "lw": 0,
        "zorder": 3,
    }
    if spots:
        axes.scatter(*zip(*spots, strict=True), rasterized=many, **look)


def ring(axes: Any, spots: Sequence[Spot]) -> None:
    """Around the best."""
    if spots:
        axes.scatter(
            *zip(*spots, strict=True),
            s=120,
            facecolors="none",
            edgecolors=INK,
            lw=1.4,
            zorder=5,
            clip_on=False,
        )


def explain(figure: Any, handles: Sequence[Any]) -> None:
    """The legend, below everything, in one row or two of the same length."""
    columns = len(handles) if len(handles) <= MOST_IN_ROW else math.ceil(len(handles) / 2)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def name_figure(figure: Any, results: StudyResults, what: str) -> None:
    """A title, for a PNG that is seen without its page."""
    figure.suptitle(f"{shorten(results.name, 60)}: {what}", x=0.01, ha="left", fontsize=10.5)


def dot(label: str, shape: str, colour: str, **more: Any) -> Any:
    """An entry of the legend with a point."""
    from matplotlib.lines import Line2D

    return Line2D([], [], ls="", marker=shape, color=colour, label=label, **more)


def dots(outcomes: dict[Outcome, int]) -> list[Any]:
    """Entries of the legend for trials of these outcomes, with how many they are."""
    return [dot(f"{one.value} ({count})", *MARKS[one]) for one, count in outcomes.items()]


def ring_entry(label: str) -> Any:
    """The entry of the legend for `ring`."""
    return dot(label, "o", "none", markeredgecolor=INK, ms=10, mew=1.4)


def stroke(label: str, colour: str, **more: Any) -> Any:
    """An entry of the legend with a line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **more)


def as_png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DOTS)
    return out.getvalue()


def as_svg(figure: Any, name: str) -> str:
    """An `<svg>` to stand in a page that has other ones: ids begin with `name`, colours are the page's."""
    import matplotlib

    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    for title in figure.texts:
        title.set(visible=False, in_layout=False)  # the page has titles of its own
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", dpi=DOTS, transparent=True, metadata=nothing)
    for title in figure.texts:
        title.set(visible=True, in_layout=True)
    text = out.getvalue()
    return _TAG.sub(lambda tag: _at_home(tag[0], name), text[text.index("<svg") :])


def _at_home(tag: str, name: str) -> str:
    """One tag, its ids made unlike those of other pictures."""
    if tag.startswith("<svg"):
        (box,) = re.findall(r'viewBox="([^"]*)"', tag)
        narrowest = LEGIBLE * float(box.split()[2])
        return f'<svg viewBox="{box}" style="min-width: {narrowest:.0f}pt">'
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    tag = tag.replace("xlink:href=", "href=")
    for colour, own in _OF_PAGE.items():
        tag = tag.replace(colour, own)
    return tag


def is_wide(values: Sequence[float]) -> bool:
    """Whether they reach over orders of magnitude, all above 0."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_FROM


def scale_values(axes: Any, which: Literal["x", "y"], values: Sequence[float], label: str) -> None:
    """The axis of an objective, named; log where its values need that."""
    if not is_wide(values):
        axes.set(**{f"{which}label": label})
        return
    low, high = min(values), max(values)
    room = _log_room(low, high)
    _set_log(axes, which, low, high)
    axes.set(**{f"{which}lim": (low / room, high * room), f"{which}label": f"{label}, log scale"})


def scale_setting(axes: Any, setting: Setting, most_letters: int) -> None:
    """The x axis of a setting: log where its range is, choices in words of at most so many letters."""
    low, high = setting.low, setting.high
    if setting.choices:
        places, labels = ticks_of_choices(setting, most_letters)
        axes.set_xticks(places, labels=labels)
        axes.set_xlim(-0.5, len(setting.choices) - 0.5)
    elif setting.is_log:
        room = _log_room(low, high)
        _set_log(axes, "x", low, high)
        axes.set_xlim(low / room, high * room)
    else:
        room = 0.04 * (high - low) or 0.5
        axes.set_xlim(low - room, high + room)
        if setting.is_whole:
            axes.xaxis.get_major_locator().set_params(integer=True)


def ticks_of_choices(setting: Setting, most_letters: int) -> tuple[list[int], list[str]]:
    """Indices of choices, evenly thinned where there are many, and their labels, no two the same."""
    every = math.ceil(len(setting.choices) / MOST_TICKS)
    places = list(range(0, len(setting.choices), every))
    labels = [_label(setting.choices[place], most_letters) for place in places]
    for turn, label in enumerate(labels):
        if label in labels[:turn]:
            labels[turn] = f"{shorten(label, most_letters - 4)} #{places[turn] + 1}"
    return places, labels


def _label(choice: str, most_letters: int) -> str:
    """Of a long list, the last part of each dotted name: `q_proj, v_proj`."""
    if len(choice) > most_letters and ", " in choice:
        choice = ", ".join(part.rpartition(".")[2] for part in choice.split(", "))
    return shorten(choice, most_letters)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`: powers of ten, or 1, 2 and 5 of each where these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [float(f"{factor}e{power}") for power in powers for factor in factors]
        inside = [one for one in found if low * 0.999 <= one <= high * 1.001]
        if len(inside) >= FEWEST_TICKS:
            return inside[:: math.ceil(len(inside) / MOST_TICKS)]
    return [low, high] if low < high else [low]


def plain(number: float, _: object = None) -> str:
    """A number as a tick has it."""
    return f"{number:.4g}"


def _log_room(low: float, high: float) -> float:
    """What the ends of a log axis are multiplied by, so that no point lies on its edge."""
    return math.exp(0.04 * (math.log(high) - math.log(low))) if low < high else 2.0


def _set_log(axes: Any, which: Literal["x", "y"], low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_locator(NullLocator())
