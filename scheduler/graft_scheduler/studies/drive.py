"""One study on its way: a round looks at its trials and their jobs, and does what is due."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from graft_scheduler import fleet
from graft_scheduler.errors import InvalidInput
from graft_scheduler.records import JobRecord
from graft_scheduler.states import FailureClass, JobId, JobState
from graft_scheduler.studies import telling
from graft_scheduler.studies.best import best_trial
from graft_scheduler.studies.final import final_job
from graft_scheduler.studies.ladder import Ladder
from graft_scheduler.studies.proposals import OURS, RUNG_LOSSES, complete, enqueue, propose, values_of
from graft_scheduler.studies.record import StudyRecord, StudyRecords, StudyState, trial_job
from graft_scheduler.studies.spec import SamplerName, check_packages
from graft_scheduler.studies.storage import StudyStorage
from graft_scheduler.studies.trial_jobs import Fleet, TrialJobs
from graft_scheduler.studies.weak import is_weak

logger = logging.getLogger(__name__)

START, AGAIN = "start", "again_of"
"""User attributes: place among the settings that are tried first; number of the trial that lost its hosts."""
HOPELESS = 5
"""When all of the first so many trials fail, no more is begun."""


class Drive:
    """One study. Everything that matters is in Redis; what is kept here only saves reading."""

    def __init__(
        self, record: StudyRecord, storage: StudyStorage, records: StudyRecords, fleet: Fleet
    ) -> None:
        self._record, self._spec = record, record.spec
        self._storage, self._records, self._redis = storage, records, fleet.redis
        storage.begin(record.number, [StudyDirection.MINIMIZE for _ in record.spec.objectives], record.name)
        self._study = optuna.load_study(study_name=record.name, storage=storage)
        self._ladder = Ladder(record.spec.pruner)
        self._jobs = TrialJobs(record, record.known, fleet)
        self._settings: dict[int, str] = {}
        """Of trials that have all of them."""
        self._noted: dict[int, int] = {}
        """The rung whose loss is written, by trial."""

    def round(self, record: StudyRecord) -> None:
        """Do what is due now, with the record as it is now.

        Raises:
            Fenced: another scheduler leads.
            Unreachable: Redis does not answer.
        """
        self._record = record
        if record.state is StudyState.STOPPING:
            self._stop()
            return
        try:
            check_packages(self._spec.sampler)
        except InvalidInput as error:
            self._end(StudyState.FAILED, str(error))
            return
        self._enqueue_first()
        on_their_way, waiting = self._follow()
        self._advance(on_their_way, waiting)

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
                waiting.add(trial.number)
                self._note_rung(trial, job)
            else:  # somebody paused the study, and it goes on
                on_their_way += 1
                self._jobs.resume(job)
        return on_their_way, waiting

    def _submit(self, trial: FrozenTrial) -> bool:
        """Submit the job of a trial that has none, with all its settings; whether it is on its way now."""
        if set(trial.params) < set(self._spec.space.parameters):
            complete(self._study, self._spec, trial._trial_id)
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
        found = self._trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        settings = self._settings_of(trial)
        same = (one for one in found if one.number < trial.number and self._settings_of(one) == settings)
        return next(same, None)

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
        place = storage.get_trial_id_from_study_id_trial_number(self._record.number, number)
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
        telling.tell_ended(self._study, self._now(trial), job, self._spec)
        self._jobs.forget(trial)
        told = self._now(trial)
        logger.info(
            "study %s: trial %d is told as %s", self._record.name, told.number, told.state.name.lower()
        )
        is_lost = told.user_attrs.get(telling.FAILURE) == FailureClass.HOST and AGAIN not in told.user_attrs
        if told.state is TrialState.FAIL and is_lost:
            self._enqueue_again(told)

    def _note_rung(self, trial: FrozenTrial, job: JobRecord) -> None:
        """Write the loss at the rung, once."""
        assert job.pause_step is not None
        if self._noted.get(trial.number) == job.pause_step:
            return
        self._noted[trial.number] = job.pause_step
        losses = list(trial.user_attrs.get(RUNG_LOSSES, []))
        assert job.result is not None
        loss = job.result.final_loss
        if loss is None:  # nothing to compare it by; its job ends, and then it has failed
            self._jobs.prune(trial)
            return
        if len(losses) > self._jobs.rungs_of(trial).index(job.pause_step):
            return
        self._report(trial, job)
        trial = self._now(trial)
        telling.report(self._study, trial, job.pause_step, loss)
        telling.note(self._study, trial, **{RUNG_LOSSES: [*losses, loss]})

    def _prune_if_weak(self, trial: FrozenTrial) -> None:
        """Stop a running trial that the median pruner, or the patient one, gives up."""
        if telling.PRUNED in trial.user_attrs or not is_weak(
            self._study, self._now(trial), self._spec.pruner
        ):
            return
        trial = self._now(trial)
        why = f"worse than the median of the others at step {trial.last_step}"
        telling.note(self._study, trial, **{telling.PRUNED: True, telling.WHY: why})
        self._jobs.prune(trial)

    # --- what comes next

    def _advance(self, on_their_way: int, waiting: set[int]) -> None:
        """Prune, promote and begin trials as far as they may be on their way at once; end the study.

        New trials come first, so that promotions are of the best of many; where time is limited they come
        last, so that the best have come to their ends by then.
        """
        trials = {one.number: one for one in self._trials()}
        last = len(trials) if self._is_over(list(trials.values())) else self._record.trials
        unborn = range(len(trials), last)
        verdict = self._ladder.judge(list(trials.values()), waiting, unborn)
        for number in verdict.pruned:
            self._prune(trials[number])
        free, left = self._spec.parallel - on_their_way, len(unborn)
        is_hasty = self._record.until is not None
        if not is_hasty:
            free, left = self._begin(free, left)
        rungs = reversed(verdict.promoted) if is_hasty else verdict.promoted
        promoted = [number for rung in rungs for number in rung][: max(0, free)]
        for number in promoted:
            self._promote(trials[number])
        if is_hasty:
            _, left = self._begin(free - len(promoted), left)
        if not left and not self._trials(TrialState.RUNNING):
            self._finish()

    def _begin(self, free: int, left: int) -> tuple[int, int]:
        """Begin trials; how many places and how many trials are left."""
        while free > 0 and left > 0:
            trial = propose(self._study, self._spec)
            free -= self._submit(self._storage.get_trial(trial._trial_id))
            left -= 1
        return free, left

    def _is_over(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether no trial begins any more, though there could be more."""
        told = [one for one in trials if one.state.is_finished()]
        if len(told) >= HOPELESS and all(one.state is TrialState.FAIL for one in told):
            return True
        return self._record.until is not None and fleet.redis_now(self._redis) >= self._record.until

    def _prune(self, trial: FrozenTrial) -> None:
        """End a trial that waits at a rung."""
        why = f"not among the best third at rung {len(trial.user_attrs[RUNG_LOSSES])}"
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

    def _stop(self) -> None:
        """Pause what is on its way; once nothing is, the study is stopped."""
        running = self._trials(TrialState.RUNNING)
        jobs = self._jobs.read([one for one in running if telling.DUPLICATE_OF not in one.user_attrs])
        live = [one for one in jobs.values() if one is not None and not one.state.is_terminal]
        moving = [one for one in live if one.state is not JobState.PAUSED]
        for job in moving:
            self._jobs.pause(job)
        if not moving:
            self._end(StudyState.STOPPED, self._record.why)

    def _finish(self) -> None:
        trials = self._trials()
        whole = [one for one in trials if one.state is TrialState.COMPLETE]
        best = best_trial(trials)
        if not whole:
            self._end(StudyState.FAILED, _why_nothing_came(trials))
        elif best is None:
            self._end(StudyState.FAILED, f"none of its {len(whole)} whole trials is within the limits")
        elif len(self._study.directions) > 1:
            self._end(StudyState.FINISHED, "")
        else:
            self._end(StudyState.FINISHED, "", final_job=self._final(best))

    def _final(self, best: FrozenTrial) -> JobId:
        """The job whose adapter is the result: the best trial's, or a longer one that is submitted now."""
        record, spec = self._record, self._spec
        if spec.final is None or (spec.final.epochs is None and spec.final.steps is None):
            return trial_job(record.number, best.user_attrs.get(telling.DUPLICATE_OF, best.number))
        job_id = JobId(f"s{record.number}final{record.trials}")
        job = final_job(spec, record.name, values_of(best.params, spec.space))
        self._jobs.submit_job(job_id, job, job.kind)
        return job_id

    def _end(self, state: StudyState, why: str, **fields: str | int) -> None:
        before = (StudyState.ACTIVE, StudyState.STOPPING)
        self._records.change(self._record.number, state, before, why, **fields)
        logger.info("study %s is %s%s", self._record.name, state.value, f": {why}" if why else "")

    # --- what is there

    def _now(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial as it is after the last write."""
        return self._storage.get_trial(trial._trial_id)

    def _everything(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._record.number, False)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials that are ours, in order."""
        found = self._storage.get_all_trials(self._record.number, False, states or None)
        return [one for one in found if OURS in one.user_attrs]


def _has_come_to_its_rung(job: JobRecord) -> bool:
    """Whether the job paused where it was to; else somebody asked it to."""
    return job.pause_step is not None and job.result is not None and job.result.steps >= job.pause_step


def _why_nothing_came(trials: Sequence[FrozenTrial]) -> str:
    """Why no trial came to its end, with the first reason of all."""
    reasons = [
        (one.number, str(one.user_attrs[telling.WHY])) for one in trials if telling.WHY in one.user_attrs
    ]
    first = f"; the first, trial {reasons[0][0]}: {reasons[0][1]}" if reasons else ""
    failed = sum(one.state is TrialState.FAIL for one in trials)
    what = f"all of its {len(trials)} trials failed" if failed == len(trials) else "no trial came to its end"
    return what + first
