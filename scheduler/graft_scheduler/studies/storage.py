"""All studies of a fleet as one Optuna storage: each has its journal, and ids that no other has."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from graft_scheduler import keys
from graft_scheduler.redis_connection import connect, reachable
from graft_scheduler.studies.journal import NOT_FOUND, StudyJournal, script

MOST_TRIALS = 10**7
"""Of one study; a trial's id is its study's number times this, and its place in the journal."""
INSIDE = 0
"""The id that every study has in its own journal."""


class _Study:
    """One study: its journal, and its trials under the ids by which others know them."""

    def __init__(self, number: int, journal: JournalStorage) -> None:
        self.journal = journal
        self.first = number * MOST_TRIALS
        self._given: dict[int, tuple[FrozenTrial, FrozenTrial]] = {}

    def given(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial under its outer id; the journal replaces a trial that changes, so one copy will do."""
        known = self._given.get(trial._trial_id)
        if known is not None and known[0] is trial:
            return known[1]
        outer = copy.copy(trial)
        outer._trial_id = self.first + trial._trial_id
        self._given[trial._trial_id] = (trial, outer)
        return outer


class StudyStorage(BaseStorage):
    """Optuna's storage on Redis; threads and processes may share it, and it may be pickled.

    The state lives in Optuna's own `JournalStorage`, one for each study that is looked at, which
    replays the study's log and so holds it in memory.
    """

    def __init__(self, url: str, leader: Callable[[], str] = lambda: "") -> None:
        self._url, self._leader = url, leader
        self._redis = connect(url)
        self._delete = self._redis.register_script(script("delete"))
        self._lock = threading.Lock()
        self._studies: dict[int, _Study] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]

    # --- studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        with reachable(self._url):
            number = int(self._redis.incr(keys.STUDY_SEQUENCE))
        self.begin(number, directions, study_name)
        return number

    def begin(self, number: int, directions: Sequence[StudyDirection], study_name: str | None) -> None:
        """Begin the log of a study that has its number; one that has begun stays as it is.

        Raises:
            DuplicatedStudyError: another study has the name.
        """
        journal = self._journal(number)
        journal.create_new_study(directions, study_name)
        with self._lock:
            self._studies.setdefault(number, _Study(number, journal))

    def delete_study(self, study_id: int) -> None:
        self.delete(study_id, self.get_study_name_from_id(study_id))

    def delete(self, study_id: int, name: str) -> None:
        """Forget a study, its record and its name; one whose log is missing too.

        Raises:
            KeyError: there is none of that name and number.
        """
        where = [keys.STUDIES, keys.study_log(study_id), keys.study_writers(study_id)]
        where += [keys.study(study_id), keys.STUDIES_ACTIVE]
        with reachable(self._url):
            was_there = self._delete(keys=where, args=[name, study_id])
        with self._lock:
            self._studies.pop(study_id, None)
        if not was_there:
            raise KeyError(NOT_FOUND)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._of(study_id).journal.set_study_user_attr(INSIDE, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._of(study_id).journal.set_study_system_attr(INSIDE, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        with reachable(self._url):
            number: Any = self._redis.hget(keys.STUDIES, study_name)
        if number is None:
            raise KeyError(NOT_FOUND)
        return int(number)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._of(study_id).journal.get_study_name_from_id(INSIDE)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._of(study_id).journal.get_study_directions(INSIDE)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._of(study_id).journal.get_study_user_attrs(INSIDE)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._of(study_id).journal.get_study_system_attrs(INSIDE)

    def get_all_studies(self) -> list[FrozenStudy]:
        with reachable(self._url):
            numbers: Any = self._redis.hvals(keys.STUDIES)
        found = []
        for number in sorted(map(int, numbers)):
            try:
                (study,) = self._of(number).journal.get_all_studies()
            except KeyError:
                continue  # deleted meanwhile
            study._study_id = number
            found.append(study)
        return found

    def forget(self, number: int) -> None:
        """Read the study's log anew when it is next asked for."""
        with self._lock:
            self._studies.pop(number, None)

    # --- trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        study = self._of(study_id)
        return study.first + study.journal.create_new_trial(INSIDE, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        study, inside = self._of_trial(trial_id)
        study.journal.set_trial_param(inside, param_name, param_value_internal, distribution)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        study = self._of(study_id)
        return study.first + study.journal.get_trial_id_from_study_id_trial_number(INSIDE, trial_number)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        study, inside = self._of_trial(trial_id)
        return study.journal.set_trial_state_values(inside, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        study, inside = self._of_trial(trial_id)
        study.journal.set_trial_intermediate_value(inside, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        study, inside = self._of_trial(trial_id)
        study.journal.set_trial_user_attr(inside, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        study, inside = self._of_trial(trial_id)
        study.journal.set_trial_system_attr(inside, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        study, inside = self._of_trial(trial_id)
        return study.given(study.journal.get_trial(inside))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        study = self._of(study_id)
        trials = [study.given(one) for one in study.journal.get_all_trials(INSIDE, False, states)]
        return copy.deepcopy(trials) if deepcopy else trials

    # --- inside

    def _of_trial(self, trial_id: int) -> tuple[_Study, int]:
        number, inside = divmod(trial_id, MOST_TRIALS)
        return self._of(number), inside

    def _of(self, number: int) -> _Study:
        """The study, its log replayed when it is first asked for."""
        with self._lock:
            study = self._studies.get(number)
            if study is None:
                with reachable(self._url):
                    is_there = self._redis.exists(keys.study_log(number))
                if not is_there:
                    raise KeyError(NOT_FOUND)
                study = self._studies[number] = _Study(number, self._journal(number))
            return study

    def _journal(self, number: int) -> JournalStorage:
        return JournalStorage(StudyJournal(self._redis, self._url, number, self._leader))


def study_storage(url: str) -> StudyStorage:
    """The studies of the fleet whose Redis is at `url`, for any Optuna client.

        optuna.load_study(study_name="sql", storage=study_storage("redis://mac-mini:6379/0"))

    Raises:
        InvalidInput: the URL has no scheme that Redis knows.
    """
    return StudyStorage(url)
