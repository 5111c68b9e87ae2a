"""The driver of studies, with a real Redis and hosts that train in no time; and killed at any command."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.errors import Conflict, GraftError, InvalidInput
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.redis_connection import connect
from graft_scheduler.states import FailureClass, JobId
from graft_scheduler.studies.driver import StudyDriver
from graft_scheduler.studies.handle import Studies
from graft_scheduler.studies.record import StudyRecord, StudyRecords, StudyState, trial_job
from graft_scheduler.studies.space import read_space
from graft_scheduler.studies.spec import StudySpec
from graft_scheduler.transitions import Transitions
from tests.scheduler.studies.players import KNOWN, Hosts, SilentBroker
from tests.services import RedisServer

RATES, RANKS = "learning_rate=log:1e-5..1e-1", "rank=2..16"
MOST_ROUNDS = 2000

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Play:
    """A study, its driver and its hosts, in turns."""

    def __init__(self, server: RedisServer, redis: Redis, **trouble: Any) -> None:
        self.redis, self.url = redis, server.url
        self.studies = Studies(redis, server.url)
        self.hosts = Hosts(redis, **trouble)
        self.dice = random.Random(7)
        self.driver = self.new_driver()

    def new_driver(self, redis: Redis | None = None) -> StudyDriver:
        """Another process takes over."""
        redis = redis or connect(self.url)
        _, leader, _ = Transitions(self.redis).lead("test", 1e6)
        return StudyDriver(redis, self.url, Transitions(redis), SilentBroker(), lambda: leader)

    def begin(self, *search: str, steps: int = 18, job: dict[str, Any] | None = None, **settings: Any) -> str:
        base = build_train_job(
            {"model": "org/base", "data": "rows.jsonl", "batch_size": 4, "steps": steps, **(job or {})}
        )
        values = {"name": "s", "base": base, "space": read_space(search or (RATES, RANKS), base), "trials": 9}
        spec = StudySpec.model_validate({**values, **settings})
        StudyRecords(self.redis).begin(spec, KNOWN)
        return spec.name

    def run(self, name: str, *, in_order: bool = True) -> StudyRecord:
        """Rounds and jobs in turns, until the study has ended."""
        for _ in range(MOST_ROUNDS):
            self.driver.round()
            record = self.studies.get(name)
            if not record.state.is_at_work:
                return record
            self.play_one(in_order=in_order)
        raise AssertionError("it does not end")

    def play_one(self, *, in_order: bool = True) -> None:
        if queued := self.hosts.queued():
            self.hosts.play(queued[0] if in_order else self.dice.choice(queued))

    def trials(self, name: str = "s") -> list[optuna.trial.FrozenTrial]:
        return self.studies.trials(self.studies.get(name))


@pytest.fixture
def play(redis_server: RedisServer, redis: Redis) -> Callable[..., Play]:
    return lambda **trouble: Play(redis_server, redis, **trouble)


Make = Callable[..., Play]


def states(trials: list[optuna.trial.FrozenTrial]) -> dict[str, int]:
    names = [one.state.name for one in trials]
    return {name: names.count(name) for name in set(names)}


def test_halving_trains_nine_trials_a_ninth_three_a_third_and_one_to_its_end(play: Make) -> None:
    one = play()
    record = one.run(one.begin(trials=9, parallel=1))
    assert record.state is StudyState.FINISHED
    trials = one.trials()
    assert states(trials) == {"PRUNED": 8, "COMPLETE": 1}
    assert sorted(len(steps) for steps in one.hosts.steps_taken.values()) == [2] * 6 + [6] * 2 + [18]
    (best,) = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert best.values == [min(trial.value for trial in trials if trial.value is not None)]
    assert record.final_job == trial_job(record.number, best.number)


def test_no_step_is_trained_twice_by_a_trial_that_is_promoted(play: Make) -> None:
    one = play()
    one.run(one.begin(trials=12, parallel=4), in_order=False)
    assert all(steps == list(range(1, len(steps) + 1)) for steps in one.hosts.steps_taken.values())


def test_a_trial_that_waits_at_a_rung_holds_no_host(play: Make, redis: Redis) -> None:
    one = play()
    one.begin(trials=9, parallel=3)
    one.driver.round()
    for job in one.hosts.queued():
        one.hosts.play(job)
    one.driver.round()
    assert redis.hlen(keys.COMMITTED) == 0
    assert redis.zcard(keys.PAUSED) == 3
    assert len(one.hosts.queued()) == 3


@pytest.mark.parametrize("pruner", ["halving", "hyperband", "median", "patient", "none"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_every_pruner_tells_all_trials_once(play: Make, pruner: str, parallel: int) -> None:
    one = play()
    record = one.run(one.begin(trials=10, parallel=parallel, pruner=pruner), in_order=False)
    trials = one.trials()
    assert record.state is StudyState.FINISHED
    assert len(trials) == 10
    assert all(trial.state.is_finished() for trial in trials)
    assert any(trial.state is TrialState.COMPLETE for trial in trials)
    if pruner == "none":
        assert states(trials) == {"COMPLETE": 10}
    assert told_more_than_once(one) == []


def told_more_than_once(one: Play) -> list[int]:
    """Trials that the log ends more than once."""
    import json

    record = one.studies.get("s")
    ends: list[int] = []
    for text in one.redis.lrange(keys.study_log(record.number), 0, -1):
        entry = json.loads(text)
        if entry["op_code"] == 6 and entry["state"] in {1, 2, 3}:
            ends.append(entry["trial_id"])
    assert ends, "no trial was told by such an entry: Optuna's journal has other codes now"
    return [trial for trial in set(ends) if ends.count(trial) > 1]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "qmc"])
def test_each_sampler_has_its_say(play: Make, sampler: str) -> None:
    one = play()
    search = ("learning_rate=1e-4,1e-3,1e-2", "rank=2,4,8") if sampler == "grid" else (RATES, RANKS)
    one.run(one.begin(*search, trials=9, parallel=1, sampler=sampler))
    assert len({str(trial.params) for trial in one.trials()}) >= 7
    if sampler == "grid":
        assert len({str(trial.params) for trial in one.trials()}) == 9


class Killer:
    """Lets a process die at a command: before it is sent, or after, with the answer lost."""

    def __init__(self, dice: random.Random, most: int) -> None:
        self.dice, self.most = dice, most
        self.left = dice.randint(1, most)
        self.deaths = 0

    def watch(self, redis: Redis) -> Redis:
        send = redis.connection_pool.get_connection

        def get_connection(*arguments: Any, **options: Any) -> Any:
            connection = send(*arguments, **options)
            self._arm(connection)
            return connection

        redis.connection_pool.get_connection = get_connection  # type: ignore[method-assign]
        return redis

    def _arm(self, connection: Any) -> None:
        if getattr(connection, "is_armed", False):
            return
        connection.is_armed = True
        send, read = connection.send_packed_command, connection.read_response

        def send_or_die(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and self.dice.random() < 0.5:
                self._die(connection)
            return send(*arguments, **options)

        def read_or_die(*arguments: Any, **options: Any) -> Any:
            answer = read(*arguments, **options)
            if self.left == 0:
                self._die(connection)
            return answer

        connection.send_packed_command, connection.read_response = send_or_die, read_or_die

    def _die(self, connection: Any) -> None:
        self.left = self.dice.randint(1, self.most)
        self.deaths += 1
        connection.disconnect()
        raise Died


class Died(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_driver_that_dies_at_any_command_changes_nothing(
    play: Make, redis_server: RedisServer, redis: Redis, sampler: str, seed: int
) -> None:
    settings: dict[str, Any] = {"trials": 12, "parallel": 1, "sampler": sampler}
    undisturbed = play()
    undisturbed.run(undisturbed.begin(**settings))
    expected = [(trial.params, trial.state, trial.values) for trial in undisturbed.trials()]
    redis.flushall()

    one = play()
    name = one.begin(**settings)
    killer = Killer(random.Random(seed), 60)
    one.driver = mortal_driver(one, killer)
    for _ in range(MOST_ROUNDS):
        try:
            one.driver.round()
        except Died:
            one.driver = mortal_driver(one, killer)
            continue
        if not one.studies.get(name).state.is_at_work:
            break
        one.play_one()

    assert killer.deaths > 5
    assert [(trial.params, trial.state, trial.values) for trial in one.trials()] == expected
    assert told_more_than_once(one) == []
    assert all(steps == list(range(1, len(steps) + 1)) for steps in one.hosts.steps_taken.values())


def mortal_driver(one: Play, killer: Killer) -> StudyDriver:
    redis = killer.watch(connect(one.url))
    driver = one.new_driver(redis)
    killer.watch(driver._storage._redis)
    return driver


def test_who_does_not_lead_any_more_writes_nothing(play: Make, redis: Redis) -> None:
    one = play()
    one.begin(trials=3, parallel=1)
    one.driver.round()
    one.play_one()
    redis.set(keys.LEADER, "another:2", ex=60)
    before = redis.lrange(keys.study_log(1), 0, -1)
    with pytest.raises(GraftError, match="another scheduler"):
        one.driver.round()
    assert redis.lrange(keys.study_log(1), 0, -1) == before


def test_out_of_memory_is_infeasible_and_teaches(play: Make) -> None:
    def trouble(job: TrainJob, step: int) -> FailureClass | None:
        return FailureClass.MEMORY if job.adapter.trained_rank > 8 else None

    one = play(trouble=trouble)
    record = one.run(one.begin(trials=12, parallel=1))
    trials = one.trials()
    infeasible = [trial for trial in trials if trial.constraints.get("memory", 0) > 0]
    assert infeasible
    assert all(trial.state is TrialState.PRUNED for trial in infeasible)
    assert all("memory" in trial.user_attrs["why"] for trial in infeasible)
    assert record.state is StudyState.FINISHED


def test_a_study_whose_trials_all_fail_says_why(play: Make) -> None:
    one = play(trouble=lambda job, step: FailureClass.DATA)
    record = one.run(one.begin(trials=20, parallel=2))
    assert record.state is StudyState.FAILED
    assert "all of its" in record.why
    assert "trial 0: it failed by its data" in record.why
    assert len(one.trials()) < 20, "what fails always is not tried to the end"


def test_a_trial_that_lost_its_hosts_is_tried_once_more(play: Make) -> None:
    lost: set[float] = set()

    def trouble(job: TrainJob, step: int) -> FailureClass | None:
        if job.learning_rate in lost or len(lost) >= 1:
            return None
        lost.add(job.learning_rate)
        return FailureClass.HOST

    one = play(trouble=trouble)
    one.run(one.begin(trials=6, parallel=1, pruner="none"))
    failed = [trial for trial in one.trials() if trial.state is TrialState.FAIL]
    again = [trial for trial in one.trials() if trial.user_attrs.get("again_of") is not None]
    assert len(failed) == len(again) == 1
    assert again[0].params == failed[0].params
    assert again[0].state is TrialState.COMPLETE


@pytest.mark.parametrize("pruner", ["none", "halving"])
def test_settings_that_were_tried_are_not_trained_again(play: Make, pruner: str) -> None:
    one = play()
    one.run(one.begin("rank=2,4", trials=8, parallel=3, sampler="random", pruner=pruner), in_order=False)
    trials = one.trials()
    assert len(trials) == 8
    assert len(one.hosts.steps_taken) == 2
    for trial in trials:
        twin = trial.user_attrs.get("duplicate_of")
        if twin is not None:
            assert trials[twin].params == trial.params
            assert (trial.state, trial.values) == (trials[twin].state, trials[twin].values)


def test_what_is_given_first_is_tried_first_and_once(play: Make) -> None:
    one = play()
    first = [
        {"optimizer.learning_rate": 2e-3, "adapter.rank": 3},
        {"optimizer.learning_rate": 5e-4, "adapter.rank": 5},
    ]
    name = one.begin(trials=5, parallel=1, first=first)
    for _ in range(3):
        one.driver.round()
        one.driver = one.new_driver()
    one.run(name)
    assert [trial.params for trial in one.trials()[:2]] == first
    assert len(one.trials()) == 5


def test_a_study_that_is_stopped_and_resumed_ends_as_if_it_had_not_been(play: Make, redis: Redis) -> None:
    settings: dict[str, Any] = {"trials": 9, "parallel": 1, "sampler": "tpe"}
    undisturbed = play()
    undisturbed.run(undisturbed.begin(**settings))
    expected = [(trial.params, trial.state) for trial in undisturbed.trials()]
    redis.flushall()

    one = play()
    name = one.begin(**settings)
    for _ in range(4):
        one.driver.round()
        one.play_one()
    one.driver.round()
    one.studies.stop(name)
    one.driver.round()
    one.driver.round()
    assert one.studies.get(name).state is StudyState.STOPPED
    assert one.hosts.queued() == []
    with pytest.raises(Conflict, match="nothing to stop"):
        one.studies.stop(name)
    one.studies.resume(name)
    record = one.run(name)
    assert record.state is StudyState.FINISHED
    assert [(trial.params, trial.state) for trial in one.trials()] == expected


def test_a_finished_study_can_be_given_more_trials(play: Make) -> None:
    one = play()
    name = one.begin(trials=3, parallel=1)
    one.run(name)
    with pytest.raises(Conflict, match="--trials 13"):
        one.studies.resume(name)
    one.studies.resume(name, trials=6)
    assert one.run(name).state is StudyState.FINISHED
    assert len(one.trials()) == 6


def test_after_the_time_budget_no_trial_begins_and_one_comes_to_its_end(play: Make, redis: Redis) -> None:
    one = play()
    name = one.begin(trials=50, parallel=1, seconds=1e6)
    for _ in range(6):
        one.driver.round()
        one.play_one()
    born = len(one.trials())
    redis.hset(keys.study(one.studies.get(name).number), "until", "1")
    record = one.run(name)
    assert record.state is StudyState.FINISHED
    assert len(one.trials()) <= born + 1
    assert states(one.trials())["COMPLETE"] >= 1


def test_limits_make_a_trial_infeasible_and_never_the_best(play: Make) -> None:
    one = play()
    limits = {"peak_memory_bytes": 4 << 20}
    record = one.run(one.begin(trials=10, parallel=1, pruner="none", constraints=limits))
    best = one.studies.best(record)
    assert best is not None
    assert best.params["adapter.rank"] <= 4
    over = [trial for trial in one.trials() if trial.params["adapter.rank"] > 4]
    assert over
    assert all("peak_memory is above the limit" in trial.user_attrs["why"] for trial in over)


def test_several_objectives_have_a_front(play: Make) -> None:
    one = play()
    objectives = ["validation_loss", "peak_memory", "seconds"]
    name = one.begin(trials=12, parallel=2, pruner="none", objectives=objectives)
    assert one.run(name).state is StudyState.FINISHED
    study = one.studies.study(name)
    assert len(study.directions) == 3
    assert all(len(trial.values) == 3 for trial in study.best_trials)


def test_the_final_training_is_longer_submitted_once_and_waited_for(play: Make) -> None:
    one = play()
    name = one.begin(trials=3, parallel=1, final={"steps": 36})
    record = one.run(name)
    assert record.final_job is not None
    assert one.hosts.steps_taken[record.final_job] == list(range(1, 37))
    best = one.studies.best(record)
    assert best is not None
    assert record.final_job == f"s{record.number}final{best.number}"


def test_a_final_training_that_fails_fails_the_study(play: Make) -> None:
    one = play(trouble=lambda job, step: FailureClass.DIVERGED if step > 20 else None)
    record = one.run(one.begin(trials=3, parallel=1, final={"steps": 36}))
    assert record.state is StudyState.FAILED
    assert "the final training" in record.why
    assert "diverged" in record.why


def test_a_trial_that_somebody_cancels_is_a_failure_of_that_trial_only(play: Make, redis: Redis) -> None:
    one = play()
    name = one.begin(trials=4, parallel=1, pruner="none")
    one.driver.round()
    Transitions(redis).cancel(one.hosts.queued()[0], "somebody")
    assert one.run(name).state is StudyState.FINISHED
    first = one.trials()[0]
    assert first.state is TrialState.FAIL
    assert first.user_attrs["why"] == "its job was cancelled"


def test_somebody_may_enqueue_settings_from_a_notebook(play: Make) -> None:
    one = play()
    name = one.begin(trials=4, parallel=1)
    one.driver.round()
    one.studies.study(name).enqueue_trial({"optimizer.learning_rate": 7e-4, "adapter.rank": 7})
    one.run(name)
    assert {"optimizer.learning_rate": 7e-4, "adapter.rank": 7} in [trial.params for trial in one.trials()]


def test_trials_of_other_optuna_clients_are_left_to_them(play: Make) -> None:
    one = play()
    name = one.begin(trials=3, parallel=1)
    one.driver.round()
    theirs = one.studies.study(name).ask()
    record = one.run(name)
    assert record.state is StudyState.FINISHED
    assert len(one.trials()) == 3
    found = one.studies.study(name).trials[theirs.number]
    assert found.state is TrialState.RUNNING
    assert one.redis.exists(keys.job(JobId(f"s1t{theirs.number}"))) == 0


def test_a_redis_that_lost_its_last_writes_is_gone_on_with(play: Make, redis: Redis) -> None:
    one = play()
    name = one.begin(trials=6, parallel=1)
    for _ in range(3):
        one.driver.round()
        one.play_one()
    one.driver.round()
    redis.rpop(keys.study_log(one.studies.get(name).number))
    assert one.run(name).state is StudyState.FINISHED
    assert all(trial.state.is_finished() for trial in one.trials())


def test_a_study_that_cannot_be_driven_does_not_stop_the_others(play: Make, redis: Redis) -> None:
    one = play()
    one.begin(trials=3, name="bad")
    redis.hset(keys.study(1), "known", "nonsense")
    name = one.begin(trials=3, parallel=1, name="good")
    for _ in range(MOST_ROUNDS):
        one.driver.round()
        if not one.studies.get(name).state.is_at_work:
            break
        one.play_one()
    assert one.studies.get(name).state is StudyState.FINISHED
    for _ in range(10):
        one.driver.round()
    assert redis.hget(keys.study(1), "state") == StudyState.FAILED
    assert "cannot drive it" in str(redis.hget(keys.study(1), "why"))


@pytest.mark.parametrize("parallel", [1, 4])
def test_limits_hold_at_rungs_too_and_the_best_within_them_comes_to_its_end(
    play: Make, parallel: int
) -> None:
    one = play()
    limits = {"peak_memory_bytes": 6 << 20}
    record = one.run(one.begin(trials=24, parallel=parallel, constraints=limits), in_order=False)
    assert record.state is StudyState.FINISHED
    best = one.studies.best(record)
    assert best is not None
    assert best.params["adapter.rank"] <= 6
    over = [trial for trial in one.trials() if trial.params["adapter.rank"] > 6]
    assert all(trial.constraints["peak_memory"] > 0 for trial in over)
    assert all(len(one.hosts.steps_taken[trial.user_attrs["job"]]) == 2 for trial in over)


@pytest.mark.parametrize("failure", [FailureClass.HOST, FailureClass.DATA])
def test_when_the_last_climber_fails_the_next_takes_its_place(play: Make, failure: FailureClass) -> None:
    fell: list[int] = []

    def trouble(job: TrainJob, step: int) -> FailureClass | None:
        if step > 6 and not fell:
            fell.append(step)
            return failure
        return None

    one = play(trouble=trouble)
    record = one.run(one.begin(trials=9, parallel=1))
    assert fell
    assert record.state is StudyState.FINISHED
    assert all(trial.state.is_finished() for trial in one.trials())
    assert len(one.trials()) == (10 if failure is FailureClass.HOST else 9)


@pytest.mark.parametrize("at", range(1, 60))
def test_an_enqueued_trial_and_a_lost_one_survive_a_death_at_every_command(play: Make, at: int) -> None:
    fell: list[int] = []

    def trouble(job: TrainJob, step: int) -> FailureClass | None:
        if step > 1 and not fell:
            fell.append(step)
            return FailureClass.HOST
        return None

    one = play(trouble=trouble)
    first = [{"optimizer.learning_rate": 2e-3, "adapter.rank": 3}]
    name = one.begin(trials=1, parallel=1, first=first)
    killer = Killer(random.Random(at), 10_000)
    killer.left = at
    one.driver = mortal_driver(one, killer)
    for _ in range(200):
        try:
            one.driver.round()
        except Died:
            one.driver = one.new_driver()
        if not one.studies.get(name).state.is_at_work:
            break
        one.play_one()
    assert one.studies.get(name).state is StudyState.FINISHED
    assert [trial.state for trial in one.trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    assert all(trial.params == first[0] for trial in one.trials())


def test_a_trial_that_was_noted_as_weak_is_stopped_by_whoever_drives_next(play: Make) -> None:
    one = play()
    one.begin(trials=2, parallel=1, pruner="median")
    one.driver.round()
    (job,) = one.hosts.queued()
    one.hosts.take(job)
    study = one.studies.study("s")
    study._storage.set_trial_user_attr(study.get_trials(deepcopy=False)[0]._trial_id, "pruned", True)
    one.new_driver().round()
    assert one.redis.hget(keys.job(job), "stop") == "prune"


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ({"adapter.rank": 8, "optimizer.learning_rate": 1e-3}, True),
        ({"adapter.rank": 8}, True),
        ({"adapter.rank": 9}, False),
        ({"optimizer.learning_rate": "fast"}, False),
        ({"rank": 8}, False),
    ],
)
def test_what_is_enqueued_in_a_notebook_is_taken_as_people_write_it(
    play: Make, given: dict[str, Any], is_taken: bool
) -> None:
    one = play()
    name = one.begin(RATES, "rank=8,16,32", trials=2, parallel=1, pruner="none")
    one.driver.round()
    one.studies.study(name).enqueue_trial(given)
    assert one.run(name).state is StudyState.FINISHED
    enqueued = one.trials()[1]
    assert (enqueued.state is TrialState.COMPLETE) is is_taken
    if not is_taken:
        assert "enqueued" in enqueued.user_attrs["why"]


def test_a_study_whose_time_is_over_can_be_resumed_without_a_limit(play: Make, redis: Redis) -> None:
    one = play()
    name = one.begin(trials=6, parallel=1, seconds=1e6)
    redis.hset(keys.study(one.studies.get(name).number), "until", "1")
    for _ in range(3):
        one.driver.round()
    one.studies.resume(name)
    one.run(name)
    assert len(one.trials()) == 6


def test_resuming_while_it_stops_is_not_undone(play: Make) -> None:
    one = play()
    name = one.begin(trials=3, parallel=1)
    one.driver.round()
    one.studies.stop(name)
    stopping = one.studies.get(name)
    one.studies.resume(name)
    one.driver._drives[stopping.number].round(stopping)  # what it had read before
    assert one.studies.get(name).state is StudyState.ACTIVE
    assert one.run(name).state is StudyState.FINISHED


def test_a_study_that_is_forgotten_leaves_no_paused_jobs(play: Make, redis: Redis) -> None:
    one = play()
    name = one.begin(trials=9, parallel=3)
    one.driver.round()
    for job in one.hosts.queued():
        one.hosts.play(job)
    one.driver.round()
    one.studies.stop(name)
    one.driver.round()
    one.driver.round()
    one.studies.delete(name)
    assert redis.zcard(keys.PAUSED) == 0
    assert redis.zcard(keys.QUEUE) == 0


def test_a_study_without_a_log_yet_is_listed_and_can_be_forgotten(play: Make) -> None:
    one = play()
    name = one.begin(trials=3)
    assert one.studies.trials(one.studies.get(name)) == []
    StudyRecords(one.redis).change(1, StudyState.STOPPED, (StudyState.ACTIVE,))
    one.studies.delete(name)
    assert one.studies.all() == []


def test_a_warm_start_takes_what_is_within_the_limits_and_each_once(play: Make) -> None:
    one = play()
    limits = {"peak_memory_bytes": 2 << 20}
    one.run(one.begin("rank=2,16", trials=6, parallel=1, pruner="none", constraints=limits, sampler="random"))
    assert one.studies.best_settings("s") == [{"adapter.rank": 2}]


@pytest.mark.parametrize("trials", [0, 100_001, 4])
def test_more_trials_are_checked_as_at_the_beginning(play: Make, trials: int) -> None:
    one = play()
    name = one.begin("rank=2,4,8", trials=3, parallel=1, sampler="grid", pruner="none")
    one.run(name)
    with pytest.raises(InvalidInput, match="trials"):
        one.studies.resume(name, trials=trials)


def test_endless_doubles_do_not_keep_other_studies_waiting(play: Make) -> None:
    one = play()
    one.begin("rank=2,4", trials=2000, parallel=2, sampler="random", pruner="none")
    one.driver.round()
    for job in one.hosts.queued():
        one.hosts.play(job)
    one.driver.round()
    before = len(one.trials())
    one.driver.round()
    assert 0 < len(one.trials()) - before <= 20
