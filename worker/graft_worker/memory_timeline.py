"""A runner's memory over its life, in few enough points to keep."""

from __future__ import annotations

from collections.abc import Sequence

from graft_scheduler.records import MemorySample

MAX_SAMPLES = 200
"""The most that are kept; a longer life is kept more coarsely."""


class Timeline:
    """Takes a sample now and then; keeps the largest of every so many."""

    def __init__(self) -> None:
        self._samples: list[MemorySample] = []
        self._every = 1
        self._open: list[MemorySample] = []

    def add(self, sample: MemorySample) -> None:
        """Take one more, later than all before."""
        self._open.append(sample)
        if len(self._open) < self._every:
            return
        self._samples += thinned(self._open, self._every)
        self._open = []
        if len(self._samples) >= MAX_SAMPLES:
            self._samples, self._every = thinned(self._samples, 2), self._every * 2

    @property
    def samples(self) -> tuple[MemorySample, ...]:
        """What is kept, in order of time, with the newest."""
        newest = thinned(self._open, self._every)
        return (*self._samples, *newest)


def thinned(samples: Sequence[MemorySample], every: int) -> list[MemorySample]:
    """The one with the largest footprint of every `every` in a row."""
    groups = (samples[start : start + every] for start in range(0, len(samples), every))
    return [max(group, key=lambda sample: sample.footprint_bytes) for group in groups]
