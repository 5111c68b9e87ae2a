"""One attempt of a job, from the claim to its outcome."""

from __future__ import annotations

import logging
import secrets

from graft_scheduler.errors import GraftError
from graft_scheduler.records import Failure, Hold, JobRecord
from graft_scheduler.states import FailureClass, JobId, JobState, Token
from graft_scheduler.transitions import Ending
from graft_worker.admission import check_id, check_record
from graft_worker.attempt import Attempt, Ended
from graft_worker.lease import LeaseKeeper
from graft_worker.preparation import Worker

logger = logging.getLogger(__name__)


def supervise(worker: Worker, job_id: JobId, token: Token) -> Ended | None:
    """Do one attempt; nothing when the assignment is not to be had.

    Raises:
        Fenced: the assignment was lost on the way; nothing was written since.
        NotAllowed: the id is none; nothing was claimed.
    """
    check_id(job_id)
    hold = Hold(job_id, token, secrets.token_hex(8))
    try:
        record = _claim(worker, hold)
    except GraftError as error:
        return _refuse(worker, hold, error)
    if record is None:
        return None
    logger.info("job %s: attempt %d taken", job_id, token)
    with LeaseKeeper(worker.quick, hold, worker.settings, worker.leaves) as keeper:
        attempt = Attempt(worker, hold, record, keeper)
        ended = attempt.commit(attempt.run())
    attempt.clean(ended.state)
    logger.info("job %s: attempt %d ended, the job is %s", job_id, token, ended.state)
    return ended


def _claim(worker: Worker, hold: Hold) -> JobRecord | None:
    """The job, if it is to be had and this host may run it."""
    lease_seconds = worker.settings.lease_seconds
    record = worker.transitions.claim(hold, worker.info.id, worker.info.boot, lease_seconds)
    if record is not None:
        check_record(record, worker.settings)
    return record


def _refuse(worker: Worker, hold: Hold, error: GraftError) -> Ended:
    """End a job that was claimed and cannot be run by anybody, or not by this host's rules."""
    why = Failure(failure=FailureClass.CONFIG, text=str(error), host_name=worker.info.name, token=hold.token)
    ending = Ending(JobState.FAILED, "failed", why.model_dump(mode="json"), failure=why)
    return Ended(worker.transitions.finish(hold, worker.info.id, ending), ending)
