"""A runner's memory over time: how it is sampled from outside, and how it reads as a table."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from graft_cli.amounts import size
from graft_cli.bars import bar_width, shades, stacked
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.messages import RunnerMessage
    from graft_scheduler.records import MemorySample
    from graft_scheduler.states import Phase

SAMPLE_SECONDS = 0.1
MOST_LINES = 24
"""Of a table: a longer timeline is told by the largest samples of each stretch."""
HEADER = ("SECONDS", "PHASE", "ACTIVE", "CACHE", "FOOTPRINT", "")
LAYERS = ("arrays of MLX", "its cache", "the rest of the process")


class Sampler:
    """Looks at a runner's process from outside, and remembers what its messages say beside that."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._samples: list[MemorySample] = []
        self._phase: Phase | None = None
        self._active: int | None = None
        self._cache: int | None = None
        self._pid: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def samples(self) -> tuple[MemorySample, ...]:
        return tuple(self._samples)

    def take(self, message: RunnerMessage) -> None:
        """Remember what the runner just said of itself."""
        from graft_scheduler import messages

        match message:
            case messages.Hello(pid=pid):
                self._pid = pid
            case messages.PhaseChanged(phase=phase):
                self._phase = phase
            case messages.Progress(memory_bytes=active, cache_bytes=cache):
                self._active, self._cache = active, cache
            case _:
                pass

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            if self._pid is not None and (footprint := resident_bytes(self._pid)) is not None:
                self._samples.append(self._sample(footprint))

    def _sample(self, footprint: int) -> MemorySample:
        from graft_scheduler.records import MemorySample
        from graft_scheduler.states import Phase

        return MemorySample(
            seconds=round(time.monotonic() - self._began, 2),
            phase=self._phase or Phase.PREPARING,
            active_bytes=self._active,
            cache_bytes=self._cache,
            footprint_bytes=footprint,
        )


def resident_bytes(pid: int) -> int | None:
    """What the process holds of the machine's memory; nothing once it has ended."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss) or None
    except psutil.Error:
        return None


def print_timeline(samples: Sequence[MemorySample]) -> None:
    """The timeline as a table, with a picture of each line."""
    if not samples:
        return
    kept = thinned(samples, MOST_LINES)
    cells = [_cells(one) for one in kept]
    taken = [max(len(row[i]) for row in (HEADER, *cells)) + 2 for i in range(len(HEADER) - 1)]
    width, most = bar_width(sum(taken)), max(one.footprint_bytes for one in kept)
    pictures = [stacked(_layers(one), most, width) for one in kept]
    out.data("")
    out.table(HEADER, [(*row, picture) for row, picture in zip(cells, pictures, strict=True)])
    out.note(", ".join(f"{shade} {name}" for shade, name in zip(shades(), LAYERS, strict=True)))


def thinned(samples: Sequence[MemorySample], most: int) -> list[MemorySample]:
    """At most so many: the one with the largest footprint of each stretch.

    A stretch is of one phase, as long as phases do not change all the time.
    """
    if len(samples) <= most:
        return list(samples)
    runs: list[list[MemorySample]] = []
    for sample in samples:
        if not runs or runs[-1][0].phase is not sample.phase:
            runs.append([])
        runs[-1].append(sample)
    if len(runs) > most // 2:
        runs = [list(samples)]
    stretch = -(-len(samples) // (most - len(runs)))
    parts = [run[start : start + stretch] for run in runs for start in range(0, len(run), stretch)]
    return [max(part, key=lambda one: one.footprint_bytes) for part in parts]


def as_plain(samples: Sequence[MemorySample]) -> list[dict[str, Any]]:
    """The timeline for `--json`."""
    return [one.model_dump(mode="json") for one in samples]


def _cells(sample: MemorySample) -> tuple[str, ...]:
    def shown(value: int | None) -> str:
        return "-" if value is None else size(value)

    return (
        f"{sample.seconds:.1f}",
        sample.phase.value,
        shown(sample.active_bytes),
        shown(sample.cache_bytes),
        size(sample.footprint_bytes),
    )


def _layers(sample: MemorySample) -> tuple[int, int, int]:
    """Active, cache and the rest, which together are no more than the footprint."""
    active = min(sample.active_bytes or 0, sample.footprint_bytes)
    cache = min(sample.cache_bytes or 0, sample.footprint_bytes - active)
    return active, cache, sample.footprint_bytes - active - cache
