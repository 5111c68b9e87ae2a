"""What came of each variant, as plain values. Pure: the caller has read the records and the store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from graft_scheduler.comparison.caveats import caveats_of
from graft_scheduler.comparison.labels import Membership
from graft_scheduler.comparison.recommendation import Recommendation, recommend
from graft_scheduler.comparison.row import Row
from graft_scheduler.comparison.variant_jobs import differing
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import TrainResult
from graft_scheduler.records import JobRecord
from graft_scheduler.states import Digest, JobState


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison as it is now."""

    name: str
    rows: tuple[Row, ...]
    recommendation: Recommendation
    caveats: tuple[str, ...]
    """Why some figures may not be compared, in words."""

    @classmethod
    def of(cls, name: str, records: Sequence[JobRecord], adapter_bytes: Mapping[Digest, int]) -> Self:
        """Of these jobs; sizes of adapters that could not be read are left out."""
        rows = tuple(row_of(record, adapter_bytes) for record in records)
        specs = [record.spec for record in records if isinstance(record.spec, TrainJob)]
        return cls(name, rows, recommend(rows, differing(specs)), tuple(caveats_of(rows)))

    @property
    def is_over(self) -> bool:
        """Whether all its jobs have ended."""
        return all(row.state.is_terminal for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """For `--json`: plain values."""
        rows = [{**asdict(row), "state": row.state.shown} for row in self.rows]
        return {
            "comparison": self.name,
            "rows": rows,
            "recommendation": asdict(self.recommendation),
            "caveats": list(self.caveats),
        }


def row_of(record: JobRecord, adapter_bytes: Mapping[Digest, int]) -> Row:
    """What the record says of its variant."""
    member = Membership.read(record.spec.labels)
    result = record.result or TrainResult(steps=record.progress.step if record.progress else 0)
    trained = result.facts.get("trainable_parameters")
    cut = result.facts.get("cut") or {}
    return Row(
        variant=(member and member.variant) or record.spec.name or record.id,
        job=record.id,
        state=record.state,
        host=record.host_name,
        device=result.facts.get("device"),
        steps=result.steps,
        total_steps=record.progress.steps if record.progress else None,
        stopped_early=result.stopped_early,
        initial_loss=result.initial_loss,
        validation_loss=_saved_loss(result),
        perplexity=result.perplexity,
        training_seconds=result.training_seconds or None,
        wall_seconds=_between(record.started_at, record.finished_at),
        tokens_per_second=result.tokens_per_second,
        peak_memory_bytes=result.peak_memory_bytes,
        adapter_bytes=adapter_bytes.get(record.adapter) if record.adapter else None,
        trainable_parameters=trained,
        trainable_share=_share(trained, member.base_parameters if member else None),
        gradient_checkpointing=cut.get("gradient_checkpointing"),
        started_at=record.started_at,
        finished_at=record.finished_at,
        failure=_failure(record),
    )


def _saved_loss(result: TrainResult) -> float | None:
    """Of the state that became the adapter, which need not be the last one."""
    return None if result.perplexity is None else math.log(result.perplexity)


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


def _share(trained: int | None, parameters: int | None) -> float | None:
    return None if trained is None or not parameters else trained / parameters


def _failure(record: JobRecord) -> str | None:
    if record.state is not JobState.FAILED:
        return None
    return (
        f"{record.failure.failure.value}: {record.failure.text}" if record.failure else "no reason was given"
    )
