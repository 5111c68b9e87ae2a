"""Staying with the jobs of a comparison until the last has ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from graft_cli.output import out
from graft_cli.progress import figures, position

if TYPE_CHECKING:
    from graft_scheduler.comparison import ComparisonHandle
    from graft_scheduler.records import JobRecord
    from graft_scheduler.states import JobId

TICK_SECONDS = 0.5
EXPLAIN_SECONDS = 5.0
"""How often jobs that wait are asked why."""


def watch(handle: ComparisonHandle, timeout: float | None, tick_seconds: float = TICK_SECONDS) -> set[JobId]:
    """Show the jobs until each has ended or can never run; those that never can.

    Raises:
        TimeoutError: it took longer than `timeout`; the jobs go on.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    view, waiting = comparison_view(), Waiting(handle)
    try:
        while True:
            records = read(handle)
            view.show(records)
            waiting.look(records, view.say)
            live = [one for one in records if not one.state.is_terminal and one.id not in waiting.stuck]
            if not live:
                return waiting.stuck
            if deadline is not None and time.monotonic() > deadline:
                names = ", ".join(f"{variant_of(one)} ({one.id})" for one in live)
                raise TimeoutError(f"not ended within {timeout:g} s: {names}; they go on")
            time.sleep(tick_seconds)
    finally:
        view.close()


def read(handle: ComparisonHandle) -> list[JobRecord]:
    """The records, waiting a while for a Redis that has gone away."""
    from graft_scheduler.redis_connection import patiently

    return patiently(handle.records)


class Waiting:
    """Asks once in a while why jobs wait: finds those that can never run, and tells why nothing runs."""

    def __init__(self, handle: ComparisonHandle, clock: Callable[[], float] = time.monotonic) -> None:
        self.stuck: set[JobId] = set()
        self._client, self._clock = handle.client, clock
        self._next_look = 0.0
        self._idle_since = clock()
        self._said = ""

    def look(self, records: Sequence[JobRecord], say: Callable[[str], None]) -> None:
        """Look at what waits, if it is time to."""
        now = self._clock()
        queued = [one for one in records if one.state.shown == "queued" and one.id not in self.stuck]
        if any(one.state == "running" for one in records):
            self._idle_since = now
        if now < self._next_look or not queued:
            return
        self._next_look = now + EXPLAIN_SECONDS
        for record in queued:
            explanation = self._client.why(record.id)
            if explanation.never_fits:
                self.stuck.add(record.id)
                reasons = "".join(f"\n  {one.host_name}: {one.reason}" for one in explanation.hosts)
                told = f"{variant_of(record)}: no registered host can ever run job {record.id}{reasons}"
                say(f"{told}\n  `graft cancel {record.id}` takes it back")
            elif now - self._idle_since >= EXPLAIN_SECONDS and explanation.summary != self._said:
                self._said = explanation.summary
                say(f"{variant_of(record)} waits: {explanation.summary}")
                return


class ComparisonView(Protocol):
    """Something that shows several jobs at once until it is closed."""

    def show(self, records: Sequence[JobRecord]) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


class LinesView:
    """A line for each change that matters, for logs and pipes."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[object, ...]] = {}

    def show(self, records: Sequence[JobRecord]) -> None:
        width = max(len(variant_of(record)) for record in records)
        for record in records:
            loss = record.progress.validation_loss if record.progress else None
            now = (record.state.shown, loss)
            if self._shown.get(record.id) != now:
                self._shown[record.id] = now
                name, *told = line_of(record)
                out.note("  ".join([name.ljust(width), *filter(None, told)]))

    def say(self, text: str) -> None:
        out.note(text)

    def close(self) -> None:
        pass


class ScreenView:
    """One line a job, drawn again in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def show(self, records: Sequence[JobRecord]) -> None:
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        for record in records:
            grid.add_row(*line_of(record))
        self._live.update(grid)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()


def comparison_view() -> ComparisonView:
    """The screen where stderr is a terminal, else lines."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return ScreenView()
    return LinesView()


def line_of(record: JobRecord) -> tuple[str, str, str, str]:
    """Variant, state with host, position, and figures."""
    state = record.state.shown
    if record.state == "running":
        state = f"{state} on {record.host_name}"
    if record.progress is None or record.state.shown == "queued":
        return variant_of(record), state, "", ""
    return variant_of(record), state, position(record.progress), "  ".join(figures(record.progress))


def variant_of(record: JobRecord) -> str:
    """By its label; a job that a person labelled has its name or id."""
    from graft_scheduler.comparison.labels import VARIANT

    return record.spec.labels.get(VARIANT) or record.spec.name or record.id
