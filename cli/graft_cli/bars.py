"""Pictures of amounts, drawn with letters: readable in any terminal, without color, and in a file."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from graft_cli.amounts import size

EIGHTHS = " ▏▎▍▌▋▊▉"
FULL = "█"
PLAIN = "#"
"""Where the output's encoding knows no blocks."""
LAYERS = "█▓░"
PLAIN_LAYERS = "#+."
WIDEST = 40
NARROWEST = 8


def bar(value: int, most: int, width: int) -> str:
    """A bar as long as `value` is of `most`, which fills `width`; something is never nothing."""
    if value <= 0 or most <= 0:
        return ""
    eighths = max(1, round(min(value, most) * width * 8 / most))
    if not _knows_blocks():
        return PLAIN * max(1, eighths // 8)
    return (FULL * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()


def stacked(layers: Sequence[int], most: int, width: int) -> str:
    """Bars end to end, each with a shade of its own, on the scale of `most`."""
    ends = [round(sum(layers[: i + 1]) * width / most) for i in range(len(layers))] if most > 0 else []
    starts = [0, *ends[:-1]]
    return "".join(shade * (end - start) for shade, start, end in zip(shades(), starts, ends, strict=False))


def shades() -> str:
    """One letter for each layer of a bar."""
    return LAYERS if _knows_blocks() else PLAIN_LAYERS


def bar_width(taken: int) -> int:
    """What a line has left for a bar beside `taken` columns."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else taken + WIDEST
    return max(NARROWEST, min(WIDEST, columns - taken))


def amounts_with_bars(amounts: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    """Names beside amounts of memory, each with its bar; the largest fills the line."""
    shown = [size(value) for _, value in amounts]
    figures, names = max(map(len, shown), default=0), max((len(name) for name, _ in amounts), default=0)
    width = bar_width(names + figures + len("      "))
    most = max((value for _, value in amounts), default=0)
    return [
        (name, f"{text:>{figures}}  {bar(value, most, width)}".rstrip())
        for (name, value), text in zip(amounts, shown, strict=True)
    ]


def _knows_blocks() -> bool:
    try:
        FULL.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
