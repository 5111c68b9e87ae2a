"""What Optuna's own tests of storages leave out: several at once, lost writes, broken connections."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from redis import Redis, exceptions

from graft_scheduler import keys
from graft_scheduler.errors import Unreachable
from graft_scheduler.studies.journal import LogLost, StudyJournal
from graft_scheduler.studies.storage import StudyStorage, study_storage
from tests.services import RedisServer

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def open_storage(redis: Redis, redis_server: RedisServer) -> Callable[[], StudyStorage]:
    return lambda: study_storage(redis_server.url)


def objective(trial: optuna.Trial) -> float:
    rate = trial.suggest_float("rate", 1e-5, 1e-3, log=True)
    for step in range(3):
        trial.report(rate / (step + 1), step)
    return rate


def test_each_study_has_one_list_of_json_under_our_prefix(
    redis: Redis, open_storage: Callable[[], StudyStorage]
) -> None:
    storage = open_storage()
    for name in ("one", "two"):
        optuna.create_study(storage=storage, study_name=name).optimize(objective, n_trials=2)

    logs = sorted(str(key) for key in redis.keys("*:log"))
    assert logs == [keys.study_log(1), keys.study_log(2)]
    entries: Any = redis.lrange(logs[0], 0, -1)
    assert all(isinstance(json.loads(entry), dict) for entry in entries)
    assert {str(key) for key in redis.keys("*")} == {
        keys.STUDIES,
        keys.STUDY_SEQUENCE,
        *logs,
        keys.study_writers(1),
        keys.study_writers(2),
    }


def test_trials_of_different_studies_have_different_ids(open_storage: Callable[[], StudyStorage]) -> None:
    storage = open_storage()
    for name in ("one", "two"):
        optuna.create_study(storage=storage, study_name=name).optimize(objective, n_trials=2)

    ids = [trial._trial_id for number in (1, 2) for trial in storage.get_all_trials(number)]
    assert len(set(ids)) == 4
    assert [storage.get_trial(one)._trial_id for one in ids] == ids


def test_another_process_sees_the_study_while_it_runs(open_storage: Callable[[], StudyStorage]) -> None:
    study = optuna.create_study(storage=open_storage(), study_name="s")
    other = optuna.load_study(study_name="s", storage=open_storage())
    trial = study.ask()
    trial.suggest_float("rate", 1e-5, 1e-3)
    trial.report(0.5, 1)

    assert other.trials[0].intermediate_values == {1: 0.5}
    optuna.Trial(other, other.trials[0]._trial_id).report(0.25, 2)
    study.tell(trial, 0.25)
    assert other.trials[0].intermediate_values == {1: 0.5, 2: 0.25}
    assert other.best_value == 0.25


def _work(url: str, count: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name="s", storage=study_storage(url))
    study.optimize(objective, n_trials=count)


def test_processes_that_write_at_once_lose_and_double_nothing(
    redis_server: RedisServer, open_storage: Callable[[], StudyStorage]
) -> None:
    optuna.create_study(storage=open_storage(), study_name="s")
    context = multiprocessing.get_context("spawn")
    several = [context.Process(target=_work, args=(redis_server.url, 15)) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join(120)

    assert [process.exitcode for process in several] == [0, 0, 0]
    trials = open_storage().get_all_trials(1)
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 45}
    assert sorted(trial.number for trial in trials) == list(range(45))
    assert all(len(trial.intermediate_values) == 3 for trial in trials)


def test_two_that_create_one_name_at_once_make_one_study(open_storage: Callable[[], StudyStorage]) -> None:
    one, other = open_storage(), open_storage()
    optuna.create_study(storage=one, study_name="s")

    with pytest.raises(optuna.exceptions.DuplicatedStudyError, match="study_name='s' already exists"):
        optuna.create_study(storage=other, study_name="s")
    study = optuna.create_study(storage=other, study_name="s", load_if_exists=True)
    assert study._study_id == 1


def test_a_log_that_lost_its_end_is_noticed_and_what_is_left_can_be_opened(
    redis: Redis, open_storage: Callable[[], StudyStorage]
) -> None:
    study = optuna.create_study(storage=open_storage(), study_name="s")
    study.optimize(objective, n_trials=2)
    redis.rpop(keys.study_log(1), 3)

    with pytest.raises(LogLost, match="open the study again"):
        study.ask()
    again = optuna.load_study(study_name="s", storage=open_storage())
    assert again.trials[0].state is TrialState.COMPLETE


def test_a_log_that_was_written_anew_to_the_same_length_is_noticed(
    redis: Redis, open_storage: Callable[[], StudyStorage]
) -> None:
    study = optuna.create_study(storage=open_storage(), study_name="s")
    study.set_user_attr("a", 1)
    redis.rpop(keys.study_log(1))
    optuna.load_study(study_name="s", storage=open_storage()).set_user_attr("b", 2)

    with pytest.raises(LogLost):
        study.ask()


def test_a_study_that_another_deleted_is_gone_and_does_not_come_back(
    redis: Redis, open_storage: Callable[[], StudyStorage]
) -> None:
    study = optuna.create_study(storage=open_storage(), study_name="s")
    study.set_user_attr("a", 1)
    optuna.delete_study(study_name="s", storage=open_storage())

    with pytest.raises(KeyError):
        study.ask()
    assert [str(key) for key in redis.keys("*")] == [keys.STUDY_SEQUENCE]


def test_an_entry_whose_answer_was_lost_is_written_once(
    redis: Redis,
    redis_server: RedisServer,
    open_storage: Callable[[], StudyStorage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optuna.create_study(storage=open_storage(), study_name="s")
    journal = StudyJournal(redis, redis_server.url, 1)
    parse: Any = type(redis).parse_response
    failed: list[Any] = []

    def lose_one(self: Any, connection: Any, command: Any, **options: Any) -> Any:
        answer = parse(self, connection, command, **options)
        if command == "EVALSHA" and not failed:
            failed.append(answer)
            raise exceptions.ConnectionError("the answer was lost")
        return answer

    monkeypatch.setattr(type(redis), "parse_response", lose_one)
    journal.append_logs([{"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {"a": 1}}])

    assert failed
    assert redis.llen(keys.study_log(1)) == 2


def test_a_redis_that_does_not_answer_is_said_with_the_remedy() -> None:
    storage = study_storage("redis://127.0.0.1:1/0")

    with pytest.raises(Unreachable, match="graft up"):
        optuna.create_study(storage=storage, study_name="s")
