"""Looks at a claimed job once more before anything of it is used.

Whoever can write to Redis can write any record; a host's own rules are kept by the host.
"""

from __future__ import annotations

import re

from graft_scheduler.basemodels import looks_like_path
from graft_scheduler.errors import NotAllowed
from graft_scheduler.jobs import TrainJob
from graft_scheduler.records import JobRecord
from graft_scheduler.settings import Settings
from graft_scheduler.states import JobId

_JOB_ID = re.compile(r"[0-9a-z]{1,32}")


def check_id(job_id: JobId) -> None:
    """Raises `NotAllowed` for an id that could lead out of the folder its files go to."""
    if not _JOB_ID.fullmatch(job_id):
        raise NotAllowed(f"{job_id!r} is not an id of a job")


def check_record(record: JobRecord, settings: Settings) -> None:
    """Raises `NotAllowed` for what this host's owner, or nobody, would want to run."""
    spec = record.spec
    if not isinstance(spec, TrainJob):
        return
    if spec.model.trust_remote_code and not settings.allow_remote_code:
        raise NotAllowed("the job wants to run code of the model's own, which this host does not allow")
    if spec.data.digest is None:
        raise NotAllowed("the job's data is not in the store; submit it with `graft train` or the client")
    if spec.model.digest is None and looks_like_path(spec.model.source):
        raise NotAllowed(f"the job's model {spec.model.source!r} is neither in the store nor a hub id")
