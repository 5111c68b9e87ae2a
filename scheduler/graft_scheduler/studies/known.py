"""What submitting a study found out about its base and data: enough to submit each trial without them.

The scheduler has neither the person's files nor, perhaps, the store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from pydantic import TypeAdapter, ValidationError

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import Lengths
from graft_scheduler.memory import Backend
from graft_scheduler.submission import Resolved, Submission, check_base, submission_of
from graft_scheduler.time_estimate import steps

LEAST_FROZEN_SHARE = 0.2
"""Of the blocks: with fewer below the adapted ones the engine keeps nothing."""
MOST_LENGTHS = 2000
"""Of rows, kept of a larger data set; the longest is among them."""


@dataclass(frozen=True, slots=True)
class Known:
    """See `submission.Resolved`."""

    base: BaseModel | None
    lengths: Lengths
    likely_lengths: Lengths
    valid_rows: int
    store_id: str
    data_bytes: int = 0

    @classmethod
    def of(cls, resolved: Resolved, store_id: str) -> Self:
        """What is worth keeping of it."""
        lengths, likely = (_thinned(one) for one in (resolved.lengths, resolved.likely_lengths))
        rows, size = resolved.valid_rows, resolved.data_bytes
        return cls(resolved.base, lengths, likely, rows, store_id, size)

    @classmethod
    def parse(cls, text: str) -> Known:
        """What `dump` wrote.

        Raises:
            InvalidInput: it is something else.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise InvalidInput(f"what is known of a study's base cannot be read: {error}") from error

    def dump(self) -> str:
        return _ADAPTER.dump_json(self).decode()

    def submission(self, spec: TrainJob) -> Submission:
        """The job of one trial, its size estimated, with room for what trials can compute once for all.

        Raises:
            InvalidInput: the base refuses such a job.
        """
        self.check(spec)
        lengths, likely = self.lengths.cut(spec.max_length), self.likely_lengths.cut(spec.max_length)
        rows, size = self.valid_rows, self.data_bytes
        found = submission_of(Resolved(spec, self.base, lengths, likely, rows, size))
        if found.demands is None or spec.limits.memory_bytes is not None:
            return found
        roomy = {
            name: one.model_copy(
                update={
                    "preferred_bytes": one.preferred_bytes + self._kept_bytes(spec, likely, Backend(name))
                }
            )
            for name, one in found.demands.items()
        }
        return replace(found, demands=roomy)

    def _kept_bytes(self, spec: TrainJob, lengths: Lengths, backend: Backend) -> int:
        """What the outputs of the frozen blocks below take, of all rows: the next trial reads them."""
        base, adapted = self.base, spec.adapter.layers
        if base is None or adapted is None or adapted > base.num_layers * (1 - LEAST_FROZEN_SHARE):
            return 0
        tokens = lengths.mean * (lengths.rows + self.valid_rows)
        is_wide = backend is Backend.CPU or base.dtype == "float32"
        return round(tokens * base.hidden_size * (4 if is_wide else 2))

    def check(self, spec: TrainJob) -> None:
        """Refuse what the base's files show to be impossible.

        Raises:
            InvalidInput: says which setting, and what would be right.
        """
        if self.base is not None:
            check_base(spec, self.base, spec.data)

    def steps(self, spec: TrainJob) -> int:
        """Optimizer steps of a trial; a few less where rows turn out to be unusable."""
        return steps(spec, self.lengths.rows)


def _thinned(lengths: Lengths) -> Lengths:
    count = len(lengths.tokens)
    if count <= MOST_LENGTHS:
        return lengths
    kept = [lengths.tokens[(place + 1) * count // MOST_LENGTHS - 1] for place in range(MOST_LENGTHS)]
    return Lengths(tuple(kept), lengths.rows, lengths.is_counted)


_ADAPTER: TypeAdapter[Known] = TypeAdapter(Known)
