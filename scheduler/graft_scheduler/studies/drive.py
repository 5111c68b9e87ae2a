"""One study on its way: a round looks at its trials and their jobs, and does what is due."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from graft_scheduler import fleet, keys
from graft_scheduler.errors import InvalidInput
from graft_scheduler.records import JobRecord
from graft_scheduler.states import FailureClass, JobId, JobState
from graft_scheduler.studies import telling
from graft_scheduler.studies.best import best_trial
from graft_scheduler.studies.final import final_job
from graft_scheduler.studies.ladder import Ladder
from graft_scheduler.studies.proposals import (
    AGAIN,
    RUNG_LOSSES,
    START,
    begin_trial,
    complete,
    enqueue,
    is_ours,
    values_of,
)
from graft_scheduler.studies.record import StudyRecord, StudyRecords, StudyState, trial_job
from graft_scheduler.studies.spec import SamplerName, check_packages
from graft_scheduler.studies.storage import StudyStorage
from graft_scheduler.studies.trial_jobs import Fleet, TrialJobs
from graft_scheduler.studies.weak import is_weak

logger = logging.getLogger(__name__)

HOPELESS = 5
"""When all of the first so many trials fail, no more is begun."""
MOST_BEGUN = 20
"""Trials in one round, so that other studies have their turn: doubles could be begun without end."""


class Drive:
    """One study. Everything that matters is in Redis; what is kept here only saves reading."""

    def __init__(
        self, record: StudyRecord, storage: StudyStorage, records: StudyRecords, fleet: Fleet
    ) -> None:
        self.record, self._spec = record, record.spec
        """As it was when it was last looked at."""
        self._storage, self.records, self._redis = storage, records, fleet.redis
        storage.begin(record.number, [StudyDirection.MINIMIZE for _ in record.spec.objectives], record.name)
        self._study = optuna.load_study(study_name=record.name, storage=storage)
        self._ladder = Ladder(record.spec.pruner)
        self._jobs = TrialJobs(record, self._ladder, fleet)
        self._settings: dict[int, str] = {}
        """Of trials that have all of them."""
        self._first_with: dict[str, FrozenTrial] | None = None
        """By settings, the first trial that has them and has not failed; of this round."""
        self._noted: dict[int, int] = {}
        """The rung whose loss is written, by trial."""
        self._enqueue_first()

    def round(self, record: StudyRecord) -> bool:
        """Do what is due now, with the record as it is now; whether there will be more to do.

        Raises:
            Fenced: another scheduler leads.
            Unreachable: Redis does not answer.
        """
        self.record, self._first_with = record, None
        if record.state is StudyState.STOPPING:
            return self._stop()
        try:
            check_packages(self._spec.sampler)
        except InvalidInput as error:
            return self._end(StudyState.FAILED, str(error))
        on_their_way, waiting = self._follow()
        return self._advance(on_their_way, waiting)

    # --- what has happened

    def _follow(self) -> tuple[int, set[int]]:
        """Report, tell and submit what is due; how many trials are on their way, and which wait at a rung."""
        running = self._trials(TrialState.RUNNING)
        jobs = self._jobs.read([one for one in running if telling.DUPLICATE_OF not in one.user_attrs])
        on_their_way, waiting = 0, set()
        for trial in running:
            if trial.number not in jobs:
                self._follow_twin(trial)
                continue
            job = jobs[trial.number]
            if job is None:
                on_their_way += self._submit(trial)
            elif job.state.is_terminal:
                self._tell(trial, job)
            elif job.state is not JobState.PAUSED:
                on_their_way += 1
                self._report(trial, job)
                self._prune_if_weak(trial)
            elif _has_come_to_its_rung(job):
                if self._note_rung(trial, job):
                    waiting.add(trial.number)
            else:  # somebody paused the study, and it goes on
                on_their_way += 1
                self._jobs.resume(job)
        return on_their_way, waiting

    def _submit(self, trial: FrozenTrial) -> bool:
        """Submit the job of a trial that has none, with all its settings; whether it is on its way now."""
        if set(trial.params) < set(self._spec.space.parameters):
            try:
                complete(self._study, self._spec, trial._trial_id)
            except InvalidInput as error:
                telling.tell_failed(self._study, trial, str(error), FailureClass.CONFIG)
                return False
            trial = self._now(trial)
        if (twin := self._twin(trial)) is not None:
            telling.note(self._study, trial, **{telling.DUPLICATE_OF: twin.number})
            self._follow_twin(trial)
            return False
        telling.note(self._study, trial, **{telling.JOB: self._jobs.id_of(trial)})
        try:
            self._jobs.submit(trial)
        except InvalidInput as error:
            telling.tell_failed(self._study, trial, str(error), FailureClass.CONFIG)
            return False
        return True

    def _twin(self, trial: FrozenTrial) -> FrozenTrial | None:
        """An earlier trial with the same settings, unless it failed."""
        if self._first_with is None:
            self._first_with = {}
            for one in self._trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED):
                self._first_with.setdefault(self._settings_of(one), one)
        first = self._first_with.setdefault(self._settings_of(trial), trial)
        return first if first.number < trial.number else None

    def _settings_of(self, trial: FrozenTrial) -> str:
        if trial.number not in self._settings:
            text = json.dumps(trial.params, sort_keys=True)
            if len(trial.params) < len(self._spec.space.parameters):
                return text
            self._settings[trial.number] = text
        return self._settings[trial.number]

    def _follow_twin(self, trial: FrozenTrial) -> None:
        """Tell a double what its twin was told, if that is known."""
        trial, storage = self._now(trial), self._storage
        number = trial.user_attrs[telling.DUPLICATE_OF]
        place = storage.get_trial_id_from_study_id_trial_number(self.record.number, number)
        twin = storage.get_trial(place)
        if twin.state is TrialState.FAIL:
            telling.tell_failed(self._study, trial, f"as trial {number}, which has the same settings")
        elif twin.state.is_finished():
            telling.tell_as(self._study, trial, twin)

    def _report(self, trial: FrozenTrial, job: JobRecord) -> None:
        """Pass on the evaluations that the job has made since."""
        for one in self._jobs.evaluations(trial, job):
            telling.report(self._study, self._now(trial), one.step, one.loss)

    def _tell(self, trial: FrozenTrial, job: JobRecord) -> None:
        self._report(trial, job)
        is_lost = job.failure is not None and job.failure.failure is FailureClass.HOST
        if job.state is JobState.FAILED and is_lost and AGAIN not in trial.user_attrs:
            self._enqueue_again(trial)
        telling.tell_ended(self._study, self._now(trial), job, self._spec)
        self._jobs.forget(trial)
        told = self._now(trial)
        name = told.state.name.lower()
        logger.info("study %s: trial %d is told as %s", self.record.name, told.number, name)

    def _note_rung(self, trial: FrozenTrial, job: JobRecord) -> bool:
        """Write the loss at the rung, once; whether the trial may go on from there."""
        assert job.pause_step is not None
        if self._noted.get(trial.number) == job.pause_step:
            return True
        losses = list(trial.user_attrs.get(RUNG_LOSSES, []))
        assert job.result is not None
        loss = job.result.final_loss
        if loss is None:  # nothing to compare it by; its job ends, and then it has failed
            self._jobs.prune(trial)
            return False
        if len(losses) <= self._jobs.rungs_of(trial).index(job.pause_step):
            self._report(trial, job)
            telling.report(self._study, self._now(trial), job.pause_step, loss)
            telling.note(self._study, self._now(trial), **{RUNG_LOSSES: [*losses, loss]})
        if why := telling.constrain(self._study, self._now(trial), job.result, self._spec):
            self._prune(self._now(trial), why)
            return False
        self._noted[trial.number] = job.pause_step
        return True

    def _prune_if_weak(self, trial: FrozenTrial) -> None:
        """Stop a running trial that the median pruner, or the patient one, gives up."""
        if trial.user_attrs.get(telling.PRUNED):  # whoever noted it may have died before it said so
            self._jobs.prune(trial)
            return
        trial = self._now(trial)
        if is_weak(self._study, trial, self._spec.pruner):
            why = f"worse than the median of the others at step {trial.last_step}"
            telling.note(self._study, trial, **{telling.PRUNED: True, telling.WHY: why})
            self._jobs.prune(trial)

    # --- what comes next

    def _advance(self, on_their_way: int, waiting: set[int]) -> bool:
        """Prune, promote and begin trials as far as they may be on their way at once, or end the study;
        whether there will be more to do.

        New trials come first, so that promotions are of the best of many; where time is limited they come
        last, so that the best have come to their ends by then.
        """
        trials = {one.number: one for one in self._trials()}
        left = 0 if self._is_over(list(trials.values())) else self.record.trials - _counted(trials.values())
        next_number = len(self._everything())
        unborn = range(next_number, next_number + left)
        verdict = self._ladder.judge(list(trials.values()), waiting, unborn)
        for number in verdict.pruned:
            rung = len(trials[number].user_attrs[RUNG_LOSSES])
            self._prune(trials[number], f"not among the best third at rung {rung}")
        free = self._spec.parallel - on_their_way
        is_hasty = self.record.until is not None
        if not is_hasty:
            free, left = self._begin(free, left)
        rungs = reversed(verdict.promoted) if is_hasty else verdict.promoted
        promoted = [number for rung in rungs for number in rung][: max(0, free)]
        for number in promoted:
            self._promote(trials[number])
        if is_hasty:
            _, left = self._begin(free - len(promoted), left)
        return left > 0 or bool(self._trials(TrialState.RUNNING)) or self._finish()

    def _begin(self, free: int, left: int) -> tuple[int, int]:
        """Begin trials; how many places and how many trials are left."""
        for _ in range(MOST_BEGUN):
            if free <= 0 or left <= 0:
                return free, left
            free -= self._submit(self._storage.get_trial(begin_trial(self._study)))
            left -= 1
        self._redis.lpush(keys.STUDY_WAKE, 1)  # the others without delay
        return 0, left

    def _is_over(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether no trial begins any more, though there could be more."""
        told = [one for one in trials if one.state.is_finished()]
        if len(told) >= HOPELESS and all(one.state is TrialState.FAIL for one in told):
            return True
        return self.record.until is not None and fleet.redis_now(self._redis) >= self.record.until

    def _prune(self, trial: FrozenTrial, why: str) -> None:
        """End a trial that waits at a rung."""
        telling.note(self._study, trial, **{telling.PRUNED: True, telling.WHY: why})
        self._jobs.prune(trial)
        job = self._jobs.read([trial])[trial.number]
        if job is not None and job.state.is_terminal:
            self._tell(trial, job)

    def _promote(self, trial: FrozenTrial) -> None:
        """Let a trial that waits at a rung go on to the next one, or to its end."""
        rungs, passed = self._jobs.rungs_of(trial), len(trial.user_attrs[RUNG_LOSSES])
        self._jobs.resume(self._jobs.paused(trial), rungs[passed] if passed < len(rungs) else None)

    # --- beginnings and ends

    def _enqueue_first(self) -> None:
        """Enqueue the settings that are tried first, those that are not there yet."""
        if self._spec.sampler is SamplerName.GRID or not self._spec.first:
            return
        there = {one.user_attrs.get(START) for one in self._everything()}
        for place, values in enumerate(self._spec.first[: self._spec.trials]):
            if place not in there:
                enqueue(self._study, self._spec, values, **{START: place})

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        """Try the settings of a trial whose hosts were lost once more."""
        if all(one.user_attrs.get(AGAIN) != trial.number for one in self._everything()):
            values = values_of(trial.params, self._spec.space)
            enqueue(self._study, self._spec, values, **{AGAIN: trial.number})

    def _stop(self) -> bool:
        """Pause what is on its way; once nothing is, the study is stopped."""
        running = self._trials(TrialState.RUNNING)
        jobs = self._jobs.read([one for one in running if telling.DUPLICATE_OF not in one.user_attrs])
        live = [one for one in jobs.values() if one is not None and not one.state.is_terminal]
        moving = [one for one in live if one.state is not JobState.PAUSED]
        for job in moving:
            self._jobs.pause(job)
        return bool(moving) or self._end(StudyState.STOPPED, self.record.why)

    def _finish(self) -> bool:
        """End the study, once the final training has ended too where there is one."""
        trials = self._trials()
        whole = [one for one in trials if one.state is TrialState.COMPLETE]
        best = best_trial(trials)
        if not whole:
            return self._end(StudyState.FAILED, _why_nothing_came(trials))
        if best is None:
            return self._end(StudyState.FAILED, f"none of its {len(whole)} whole trials is within the limits")
        if len(self._study.directions) > 1:
            return self._end(StudyState.FINISHED, "")
        final = self._spec.final
        if final is not None and (final.epochs is not None or final.steps is not None):
            return self._train_finally(best)
        number = best.user_attrs.get(telling.DUPLICATE_OF, best.number)
        return self._end(StudyState.FINISHED, "", final_job=trial_job(self.record.number, number))

    def _train_finally(self, best: FrozenTrial) -> bool:
        """Train the best settings for longer, and end the study with that."""
        record, spec = self.record, self._spec
        job_id = JobId(f"s{record.number}final{best.number}")
        found = self._jobs.read_job(job_id)
        if found is None:
            job = final_job(spec, record.name, values_of(best.params, spec.space))
            self._jobs.submit_job(job_id, job, job.kind)
        if found is None or not found.state.is_terminal:
            return True
        if found.state is JobState.COMPLETED:
            return self._end(StudyState.FINISHED, "", final_job=job_id)
        why = found.failure.text if found.failure else "it was cancelled"
        return self._end(StudyState.FAILED, f"the final training, job {job_id}: {why}")

    def _end(self, state: StudyState, why: str, **fields: str | int) -> bool:
        """Change the state, unless somebody has changed it meanwhile. There is no more to do."""
        before = StudyState.STOPPING if state is StudyState.STOPPED else StudyState.ACTIVE
        self.records.change(self.record.number, state, (before,), why, **fields)
        logger.info("study %s is %s%s", self.record.name, state.value, f": {why}" if why else "")
        return False

    # --- what is there

    def _now(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial as it is after the last write."""
        return self._storage.get_trial(trial._trial_id)

    def _everything(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self.record.number, False)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials that are ours, in order."""
        found = self._storage.get_all_trials(self.record.number, False, states or None)
        return [one for one in found if is_ours(one)]


def _has_come_to_its_rung(job: JobRecord) -> bool:
    """Whether the job paused where it was to; else somebody asked it to."""
    return job.pause_step is not None and job.result is not None and job.result.steps >= job.pause_step


def _counted(trials: Iterable[FrozenTrial]) -> int:
    """Trials of those that the study is to have; one that was lost with its hosts is tried once more."""
    return sum(
        one.user_attrs.get(telling.FAILURE) != FailureClass.HOST or AGAIN in one.user_attrs for one in trials
    )


def _why_nothing_came(trials: Sequence[FrozenTrial]) -> str:
    """Why no trial came to its end, with the first failure's reason."""
    failed = [one for one in trials if one.state is TrialState.FAIL]
    what = (
        f"all of its {len(trials)} trials failed"
        if len(failed) == len(trials)
        else "no trial came to its end"
    )
    for one in [*failed, *trials]:
        if why := one.user_attrs.get(telling.WHY):
            return f"{what}; the first, trial {one.number}: {why}"
    return what
