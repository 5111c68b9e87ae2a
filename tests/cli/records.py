"""Job records as Redis would hold them, for tests of what is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graft_scheduler.jobs import CountJob, dump_job
from graft_scheduler.records import Failure, JobRecord
from graft_scheduler.states import FailureClass, JobId, JobState

QUEUED = JobRecord.parse(
    JobId("a1b2c3d4"),
    {
        "spec": dump_job(CountJob(name="count", submitter="ada")),
        "state": "queued",
        "token": "0",
        "charged": "0",
        "lost": "0",
        "submitted_at": "1700000000000",
        "queued_at": "1700000000000",
    },
)


def record(state: JobState, failure: FailureClass | None = None, **changes: Any) -> JobRecord:
    """A job in that state, failed in that way."""
    why = Failure(failure=failure, text="it broke") if failure else None
    return replace(QUEUED, state=state, failure=why, **changes)
