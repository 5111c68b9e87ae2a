"""A comparison that runs or has run: a name and some jobs, and nothing else anywhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft_scheduler.comparison.outcome import Comparison
from graft_scheduler.comparison.row import Row
from graft_scheduler.errors import GraftError
from graft_scheduler.records import JobRecord
from graft_scheduler.states import Digest, JobId

if TYPE_CHECKING:
    from graft_scheduler.client import Client


@dataclass(frozen=True, slots=True)
class ComparisonHandle:
    """The jobs of a comparison."""

    client: Client
    name: str
    jobs: tuple[JobId, ...]
    """In the order of the variants."""
    notes: tuple[str, ...] = ()
    """What was said of the variants when they were queued."""

    def records(self) -> list[JobRecord]:
        """The jobs as they are now."""
        return [self.client.get(job) for job in self.jobs]

    def look(self) -> Comparison:
        """All that is known by now."""
        records = self.records()
        return Comparison.of(self.name, records, self._adapter_bytes(records))

    def rows(self) -> tuple[Row, ...]:
        """A row for each variant, of those that still run too."""
        return self.look().rows

    def wait(self, timeout_seconds: float | None = None) -> Comparison:
        """The comparison, all its jobs ended, however they did.

        Raises:
            TimeoutError: one has not ended in time; it goes on.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for job in self.jobs:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self.client.wait(job, left)
        return self.look()

    def _adapter_bytes(self, records: Sequence[JobRecord]) -> dict[Digest, int]:
        """Sizes of the adapters, as far as the store can be reached and has them."""
        sizes: dict[Digest, int] = {}
        for digest in {record.adapter for record in records if record.adapter}:
            try:
                sizes[digest] = self.client.store().folder_bytes(digest)
            except GraftError:
                continue
        return sizes
