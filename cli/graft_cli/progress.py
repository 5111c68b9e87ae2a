"""What a person sees while a job runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from graft_cli.amounts import duration, perplexity, rate, size
from graft_cli.output import out

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graft_scheduler.messages import RunnerMessage
    from graft_scheduler.records import JobProgress

PLAIN_SECONDS = 5.0
"""Between two lines about the same phase, where no bar can be drawn."""
BAR_WIDTH = 28


class View(Protocol):
    """Something that shows a job's progress until it is closed."""

    def show(self, title: str, progress: JobProgress | None) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


class QuietView:
    """Says only what cannot wait."""

    def show(self, title: str, progress: JobProgress | None) -> None:
        pass

    def say(self, text: str) -> None:
        out.note(text)

    def close(self) -> None:
        pass


class LineView:
    """Plain lines, for logs and pipes: at what has not been before, and every few seconds."""

    def __init__(self) -> None:
        self._said: set[str | float] = set()
        self._said_at = 0.0

    def show(self, title: str, progress: JobProgress | None) -> None:
        facts = {progress.phase.value, progress.validation_loss or ""} if progress else {title}
        is_due = progress is not None and time.monotonic() - self._said_at > PLAIN_SECONDS
        if facts <= self._said and not is_due:
            return
        self._said |= facts
        self._said_at = time.monotonic()
        out.note(_line(progress) if progress else title)

    def say(self, text: str) -> None:
        out.note(text)

    def close(self) -> None:
        pass


class BarView:
    """Two lines that are drawn again in place: the bar, and the figures below it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._validation_loss: float | None = None
        self._live.start()

    def show(self, title: str, progress: JobProgress | None) -> None:
        if progress is None:
            self._live.update(_waiting(title))
            return
        if progress.validation_loss is not None and progress.validation_loss != self._validation_loss:
            self._validation_loss = loss = progress.validation_loss
            self.say(f"validation loss {loss:.3f} (perplexity {perplexity(loss)})")
        self._live.update(_bar(progress))

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()


def progress_view() -> View:
    """The bar where stderr is a terminal, else lines."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return BarView()
    return LineView()


class LocalProgress:
    """Shows the messages of a runner that this terminal started by itself."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._view = progress_view()
        self._progress: JobProgress | None = None

    def __enter__(self) -> Self:
        self._view.show(self._title, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.close()

    def take(self, message: RunnerMessage) -> None:
        """Show what the runner just said."""
        from graft_scheduler import messages
        from graft_scheduler.records import JobProgress

        now = self._progress or JobProgress()
        match message:
            case messages.Log(text=text):
                self._view.say(text)
                return
            case messages.PhaseChanged(phase=phase):
                now = now.model_copy(update={"phase": phase})
            case messages.Planned(first_step=first, steps=steps):
                now = now.model_copy(update={"step": first, "steps": steps})
            case messages.Progress():
                now = now.model_copy(update=message.model_dump(exclude={"job", "token", "type"}))
            case messages.Evaluated(loss=loss):
                now = now.model_copy(update={"validation_loss": loss})
            case _:
                return
        self._progress = now
        self._view.show(self._title, now)


def position(progress: JobProgress) -> str:
    """How far it is: `step 12/300`, or nothing before it knows."""
    if progress.steps is None:
        return ""
    return f"step {progress.step}/{progress.steps}"


def figures(progress: JobProgress) -> list[str]:
    """Losses, speed and memory, as far as they are known."""
    known = []
    if progress.loss is not None:
        known.append(f"loss {progress.loss:.3f}")
    if progress.validation_loss is not None:
        known.append(f"validation {progress.validation_loss:.3f}")
    if progress.tokens_per_second is not None:
        known.append(rate(progress.tokens_per_second))
    memory = progress.peak_bytes or progress.memory_bytes
    if memory:
        known.append(size(memory))
    return known


def _line(progress: JobProgress) -> str:
    left = [f"{duration(progress.seconds_left)} left"] if progress.seconds_left is not None else []
    return "  ".join(
        part for part in (progress.phase.value, position(progress), *figures(progress), *left) if part
    )


def _waiting(title: str) -> RenderableType:
    from rich.spinner import Spinner

    return Spinner("dots", text=title)


def _bar(progress: JobProgress) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    left = f"{duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    bar = ProgressBar(total=progress.steps or 1, completed=progress.step, width=BAR_WIDTH)
    grid.add_row(f"{progress.phase.value:<10}", bar, position(progress), left)
    return Group(grid, Text("  ".join(figures(progress)), style="dim"))
