"""What a person's program does with studies: begin, watch, stop, go on, fetch."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from redis import Redis

from graft_scheduler import fleet
from graft_scheduler.errors import Conflict, InvalidInput, JobFailed, NotFound
from graft_scheduler.jobs import TrainJob
from graft_scheduler.redis_connection import patiently, reachable
from graft_scheduler.store import Store
from graft_scheduler.studies.best import best_trial, is_feasible
from graft_scheduler.studies.journal import LogLost
from graft_scheduler.studies.proposals import is_ours, values_of
from graft_scheduler.studies.record import StudyRecord, StudyRecords, StudyState, trial_job
from graft_scheduler.studies.space import Value
from graft_scheduler.studies.spec import read_study
from graft_scheduler.studies.storage import StudyStorage
from graft_scheduler.studies.telling import DUPLICATE_OF
from graft_scheduler.studies.tuning import Search, new_name, prepare_study
from graft_scheduler.transitions import Transitions

if TYPE_CHECKING:
    from optuna.study import Study

POLL_SECONDS = 0.5
WARM_TRIALS = 3
"""Best settings of an earlier study that a new one begins with."""


class Studies:
    """The studies of one Redis. Methods raise `Unreachable` when it does not answer."""

    def __init__(self, redis: Redis, url: str) -> None:
        self._redis, self._url = redis, url
        self._records = StudyRecords(redis)
        self.storage = StudyStorage(url)

    def tune(
        self,
        job: TrainJob,
        store: Store,
        search: Search | None = None,
        *,
        name: str | None = None,
        warm_start: str | None = None,
        **settings: Any,
    ) -> StudyHandle:
        """Begin a study; see `Client.tune`."""
        earlier = [] if warm_start is None else self.best_settings(warm_start)
        prepared = prepare_study(job, store, search, earlier, name=name or new_name(), **settings)
        directions = [StudyDirection.MINIMIZE for _ in prepared.spec.objectives]
        with reachable(self._url):
            number = self._records.begin(prepared.spec, prepared.known)
        self.storage.begin(number, directions, prepared.spec.name)
        return StudyHandle(self, prepared.spec.name)

    def get(self, name: str) -> StudyRecord:
        """The study of that name, or with that beginning of one, as it is now.

        Raises:
            NotFound: there is none.
            InvalidInput: there are several.
        """
        with reachable(self._url):
            number = self._records.number(name)
            found = None if number is None else self._records.get(number)
            if found is not None:
                return found
            found_all = [one for one in self._records.all() if name and one.name.startswith(name)]
        if len(found_all) > 1:
            names = ", ".join(one.name for one in found_all[:5])
            raise InvalidInput(f"`{name}` is the beginning of {len(found_all)} studies: {names}")
        if not found_all:
            raise NotFound(f"there is no study {name}; `graft study ls` lists them")
        return found_all[0]

    def all(self) -> list[StudyRecord]:
        """Every study, the newest first."""
        with reachable(self._url):
            return self._records.all()

    def study(self, name: str) -> Study:
        """The study as Optuna has it, while it runs and afterwards."""
        return optuna.load_study(study_name=self.get(name).name, storage=self.storage)

    def trials(self, record: StudyRecord) -> list[FrozenTrial]:
        """Its trials so far, in order; those that somebody else asked Optuna for are left out."""
        try:
            found = self.storage.get_all_trials(record.number, deepcopy=False)
        except LogLost:
            self.storage.forget(record.number)
            found = self.storage.get_all_trials(record.number, deepcopy=False)
        except KeyError:  # it was accepted just now, and has no log yet
            return []
        return [one for one in found if is_ours(one)]

    def best(self, record: StudyRecord) -> FrozenTrial | None:
        """The whole trial with the smallest first objective that is within the limits."""
        return best_trial(self.trials(record))

    def best_settings(self, name: str) -> list[dict[str, Value]]:
        """The settings of the best trials of a study, the best first.

        Raises:
            Conflict: none is whole yet.
        """
        record = self.get(name)
        ended = (one for one in self.trials(record) if one.state is TrialState.COMPLETE and is_feasible(one))
        whole = [one for one in ended if DUPLICATE_OF not in one.user_attrs]
        if not whole:
            raise Conflict(f"study {record.name} has no whole trial within its limits to begin with")
        best = sorted(whole, key=lambda one: (one.values[0], one.number))
        return [values_of(one.params, record.spec.space) for one in best[:WARM_TRIALS]]

    def stop(self, name: str) -> StudyRecord:
        """Begin no more trials, and let those that run save checkpoints and give their hosts back.

        Raises:
            Conflict: it is not at work.
        """
        record = self.get(name)
        with reachable(self._url):
            before = self._records.change(
                record.number, StudyState.STOPPING, (StudyState.ACTIVE,), "somebody stopped it"
            )
        if before is not StudyState.ACTIVE:
            raise Conflict(f"study {record.name} is {record.state.value}; there is nothing to stop")
        return self.get(record.name)

    def resume(self, name: str, trials: int | None = None, seconds: float | None = None) -> StudyRecord:
        """Go on with a study: with `trials` in all, and for so many more `seconds`.

        Raises:
            Conflict: it is at work; or it has all its trials, and no more were asked for.
        """
        record = self.get(name)
        wanted = record.trials if trials is None else trials
        read_study({**record.spec.model_dump(), "trials": wanted})
        done = len(self.trials(record))
        if trials is not None and trials < done:
            raise InvalidInput(f"`trials` is {trials}, and study {record.name} has {done} already")
        if record.state in {StudyState.FINISHED, StudyState.FAILED} and wanted <= done:
            raise Conflict(
                f"study {record.name} has all its {done} trials; "
                f"`graft study resume {record.name} --trials {done + 10}` adds some"
            )
        with reachable(self._url):
            until = "" if seconds is None else str(fleet.redis_now(self._redis) + seconds)
            states = (StudyState.STOPPED, StudyState.FINISHED, StudyState.FAILED, StudyState.STOPPING)
            before = self._records.change(
                record.number, StudyState.ACTIVE, states, trials=wanted, until=until, final_job=""
            )
        if before is StudyState.ACTIVE:
            raise Conflict(f"study {record.name} is at work already")
        return self.get(record.name)

    def delete(self, name: str) -> None:
        """Forget a study that is not at work, and end its paused trials; jobs that have ended stay.

        Raises:
            Conflict: it is at work.
        """
        record = self.get(name)
        if record.state.is_at_work:
            raise Conflict(f"study {record.name} is {record.state.value}; stop it first")
        transitions = Transitions(self._redis)
        for trial in self.trials(record):
            if not trial.state.is_finished() and DUPLICATE_OF not in trial.user_attrs:
                with suppress(NotFound):
                    transitions.prune(trial_job(record.number, trial.number), "study rm")
        self.storage.delete(record.number, record.name)


@dataclass(frozen=True, slots=True)
class StudyHandle:
    """A study that was begun."""

    studies: Studies
    name: str

    def record(self) -> StudyRecord:
        """The study as it is now."""
        return self.studies.get(self.name)

    def study(self) -> Study:
        """The study as Optuna has it, while it runs and afterwards."""
        return self.studies.study(self.name)

    def best(self) -> dict[str, Value] | None:
        """The best settings so far, by their dotted names."""
        record = self.record()
        best = self.studies.best(record)
        return None if best is None else values_of(best.params, record.spec.space)

    def stop(self) -> StudyRecord:
        """Begin no more trials, and pause those that run."""
        return self.studies.stop(self.name)

    def resume(self, trials: int | None = None, seconds: float | None = None) -> StudyRecord:
        """Go on with it."""
        return self.studies.resume(self.name, trials, seconds)

    def wait(self, timeout_seconds: float | None = None) -> StudyRecord:
        """The study, ended; it may have been stopped.

        Raises:
            JobFailed: it failed; says why.
            TimeoutError: it has not ended in time; it goes on.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while (record := patiently(self.record)).state.is_at_work:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(
                    f"study {self.name} is still {record.state.value} after {timeout_seconds:g} s"
                )
            time.sleep(POLL_SECONDS)
        if record.state is StudyState.FAILED:
            raise JobFailed(f"study {self.name} failed: {record.why}")
        return record
