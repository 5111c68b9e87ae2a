"""Drives the studies: asks Optuna, submits trials as jobs, reports, prunes, promotes, and tells.

Runs beside the leader's rounds, in its process. Each round looks at what is there, in Optuna's journal
and in the jobs, and does what follows from it; each single write may be the last before this process
dies, and whoever leads next goes on from there. The journal refuses the writes of one who does not lead.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable

import optuna
from optuna.exceptions import ExperimentalWarning
from redis import Redis
from redis.exceptions import RedisError

from graft_scheduler import keys
from graft_scheduler.broker import Broker
from graft_scheduler.errors import Fenced, GraftError, Unreachable
from graft_scheduler.studies.drive import Drive
from graft_scheduler.studies.journal import LogLost
from graft_scheduler.studies.record import StudyRecords, StudyState
from graft_scheduler.studies.storage import StudyStorage
from graft_scheduler.studies.trial_jobs import Fleet
from graft_scheduler.transitions import Transitions

logger = logging.getLogger(__name__)

ROUND_SECONDS = 1.0
"""Longest time between two rounds; a job that comes to rest starts one at once."""
TIMES_BROKEN = 10
"""Rounds in a row that fail by an error nobody foresaw; then the study is given up, with its text."""


class StudyDriver:
    """All studies of one Redis, while `leader` gives the value of a lead."""

    def __init__(
        self,
        redis: Redis,
        url: str,
        transitions: Transitions,
        broker: Broker,
        leader: Callable[[], str | None],
    ) -> None:
        self._redis, self._leader = redis, leader
        self._records = StudyRecords(redis, self._lead)
        self._storage = StudyStorage(url, self._lead)
        self._fleet = Fleet(redis, transitions, broker, self._lead)
        self._drives: dict[int, Drive] = {}
        self._broken: dict[int, int] = {}

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop`; Redis may come and go."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", ExperimentalWarning)
        while not stop.is_set():
            try:
                if self._leader() is None:
                    self._forget_all()
                    stop.wait(ROUND_SECONDS)
                    continue
                self.round()
                self._redis.blpop([keys.STUDY_WAKE], timeout=ROUND_SECONDS)
            except Fenced:
                self._forget_all()
                stop.wait(ROUND_SECONDS)
            except (RedisError, GraftError) as error:
                logger.warning("the studies wait: %s", error)
                self._forget_all()
                stop.wait(ROUND_SECONDS)

    def round(self) -> None:
        """Look at every study once.

        Raises:
            Fenced: another scheduler leads.
            Unreachable, RedisError: Redis does not answer.
        """
        for number in self._records.at_work():
            if self._leader() is None:
                return
            try:
                self._drive(number)
                self._broken.pop(number, None)
            except (RedisError, Fenced, Unreachable):
                raise
            except LogLost as error:  # opened again, it goes on from what is left
                logger.warning("study %d: %s", number, error)
                self._forget(number)
            except Exception as error:  # what is wrong with one study must not stop the others
                logger.exception("study %d: this round failed", number)
                self._give_up(number, error)

    def _drive(self, number: int) -> None:
        drive = self._drives.get(number)
        record = self._records.get(number) if drive is None else self._records.refresh(drive.record)
        if record is None:
            return
        if drive is None:
            drive = self._drives[number] = Drive(record, self._storage, self._records, self._fleet)
            logger.info("study %s: driving it", record.name)
        if not drive.round(record):
            self._forget(number)

    def _give_up(self, number: int, error: Exception) -> None:
        self._forget(number)
        self._broken[number] = self._broken.get(number, 0) + 1
        if self._broken[number] >= TIMES_BROKEN:
            why = f"the scheduler cannot drive it: {type(error).__name__}: {error}"
            self._records.change(number, StudyState.FAILED, (StudyState.ACTIVE, StudyState.STOPPING), why)

    def _forget_all(self) -> None:
        """Whoever leads meanwhile changes the state: it is read anew."""
        for number in list(self._drives):
            self._forget(number)

    def _forget(self, number: int) -> None:
        self._drives.pop(number, None)
        self._storage.forget(number)

    def _lead(self) -> str:
        return self._leader() or "nobody"
