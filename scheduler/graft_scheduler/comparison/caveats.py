"""What keeps figures of a comparison from being compared, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from graft_scheduler.comparison.row import Row


def caveats_of(rows: Sequence[Row]) -> Iterator[str]:
    """One sentence for each thing that a reader of the table should know."""
    done = [row for row in rows if row.is_completed]
    if has_several_devices(done):
        devices = ", ".join(sorted({row.device for row in done if row.device}))
        yield (
            f"the variants ran on different devices ({devices}): their times are not comparable, and "
            "their memory only roughly"
        )
    if together := _names(row for pair in combinations(done, 2) if _shared_a_host(*pair) for row in pair):
        yield f"{together} ran on one host at the same time, which makes each of them slower"
    recomputed = [row for row in done if row.gradient_checkpointing]
    if recomputed and len(recomputed) < len(done):
        yield (
            f"{_names(recomputed)} had to be computed with gradient checkpointing, which takes less memory "
            "and more time; the others were not"
        )
    if early := _names(row for row in done if row.stopped_early):
        yield f"{early} stopped early, as the validation loss no longer improved"


def has_several_devices(rows: Sequence[Row]) -> bool:
    """Whether times tell of the machines too."""
    return len({row.device for row in rows if row.device}) > 1


def _shared_a_host(one: Row, other: Row) -> bool:
    times = (one.started_at, one.finished_at, other.started_at, other.finished_at)
    if one.host is None or one.host != other.host or None in times:
        return False
    start, end, other_start, other_end = (time or 0.0 for time in times)
    return start < other_end and other_start < end


def _names(rows: Sequence[Row] | Iterator[Row]) -> str:
    names = list(dict.fromkeys(row.variant for row in rows))
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
