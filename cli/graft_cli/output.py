"""The one way to a person's screen: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import typer

STATE_COLORS: Mapping[str, str] = {
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "alive": "green",
    "away": "red",
    "cordoned": "red",
    "draining": "yellow",
    "ok": "green",
    "warning": "yellow",
}
NARROWEST_COLUMN = 6
NARROWEST_TEXT = 30
GAP = "  "


class Output:
    """What commands print through. Streams are looked up at each call, so tests may replace them."""

    def data(self, text: str) -> None:
        """A line that a script may read."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def json(self, value: Any) -> None:
        """One JSON document; nothing else goes to stdout with it."""
        self.data(json.dumps(value, indent=2, default=str, ensure_ascii=False))

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, shrink: Sequence[int] = ()
    ) -> None:
        """Aligned columns; on a terminal the columns in `shrink` are cut until a row fits."""
        rows = [[" ".join(cell.split()) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        if sys.stdout.isatty():
            _shrink(widths, shrink, shutil.get_terminal_size().columns)
        self.data(self._line(header, widths, bold=True))
        for row in rows:
            self.data(self._line(row, widths))

    def pairs(self, title: str, pairs: Sequence[tuple[str, str]]) -> None:
        """A titled block of names and values; pairs without a value are left out."""
        known = [(name, value) for name, value in pairs if value]
        if not known:
            return
        width = max(len(name) for name, _ in known)
        self.data(paint(title, sys.stdout, bold=True))
        for name, value in known:
            first, *more = folded(value, width + 4)
            self.data(f"  {name:<{width}}  {paint(first, sys.stdout, fg=STATE_COLORS.get(value))}")
            for line in more:
                self.data(" " * (width + 4) + line)

    def note(self, text: str = "") -> None:
        """A line for the person who watches."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def hint(self, text: str) -> None:
        """What one may want to do next."""
        self.note(paint("hint: ", sys.stderr, fg="cyan") + text)

    def warning(self, text: str) -> None:
        """Something that works, but not as one may expect."""
        self.note(paint("warning: ", sys.stderr, fg="yellow", bold=True) + text)

    def error(self, text: str) -> None:
        """Why it did not work, in one line."""
        self.note(paint("error: ", sys.stderr, fg="red", bold=True) + text)

    def _line(self, cells: Sequence[str], widths: Sequence[int], *, bold: bool = False) -> str:
        padded = [cut(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[-1] = padded[-1].rstrip()
        return GAP.join(
            paint(text, sys.stdout, fg=STATE_COLORS.get(cell), bold=bold or None)
            for text, cell in zip(padded, cells, strict=True)
        )


def has_color(stream: TextIO) -> bool:
    """Whether to color there: a terminal, and nobody said no (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, stream: TextIO, *, fg: str | None = None, bold: bool | None = None) -> str:
    """The text, colored where `stream` shows colors."""
    if not has_color(stream) or (fg is None and bold is None):
        return text
    return typer.style(text, fg=fg, bold=bold)


def folded(text: str, indent: int) -> list[str]:
    """The text as lines that fit a terminal next to `indent` columns; one line elsewhere."""
    if not sys.stdout.isatty():
        return [text]
    import textwrap

    return textwrap.wrap(text, max(NARROWEST_TEXT, shutil.get_terminal_size().columns - indent)) or [""]


def cut(text: str, width: int) -> str:
    """The text, at most `width` letters of it."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _shrink(widths: list[int], columns: Sequence[int], available: int) -> None:
    """Narrow the widest of `columns` until all fit, as far as that goes."""
    while sum(widths) + len(GAP) * (len(widths) - 1) > available:
        widest = max(columns, key=lambda column: widths[column], default=None)
        if widest is None or widths[widest] <= NARROWEST_COLUMN:
            return
        widths[widest] -= 1


out = Output()
