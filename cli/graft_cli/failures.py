"""What to do about a failed job, by the class of its failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graft_scheduler.records import JobRecord

REMEDIES: dict[str, str] = {
    "config": "mend the setting that it names and submit again",
    "data": "mend the rows that it names and submit again; `graft logs {id}` has all of them",
    "memory": "a smaller `--max-length`, `--grad-checkpoint` or fewer `--layers` need less memory",
    "diverged": "a lower `--lr` usually helps; `graft logs {id}` shows where the loss left",
    "host": "`graft hosts` shows the hosts; `graft retry {id}` goes on from the last checkpoint",
    "store": "`graft validate` checks the store; then `graft retry {id}`",
    "timeout": "raise `--set limits.seconds=...` and submit again",
    "internal": "`graft logs {id}` ends with the traceback; `graft retry {id}` tries again",
}


def remedy(record: JobRecord) -> str:
    """The next thing to try, in one line."""
    assert record.failure is not None
    return REMEDIES[record.failure.failure.value].format(id=record.id)
