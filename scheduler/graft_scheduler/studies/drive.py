"""One study on its way: a round looks at its trials and their jobs, and does what is due."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, PatientPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from redis import Redis

from graft_scheduler import fleet, keys
from graft_scheduler.broker import Broker
from graft_scheduler.errors import Conflict, InvalidInput
from graft_scheduler.jobs import TrainJob
from graft_scheduler.records import JobRecord
from graft_scheduler.states import FailureClass, JobId, JobState
from graft_scheduler.studies import telling
from graft_scheduler.studies.best import best_trial
from graft_scheduler.studies.final import final_job
from graft_scheduler.studies.ladder import Ladder
from graft_scheduler.studies.proposals import OURS, RUNG_LOSSES, complete, enqueue, propose, values_of
from graft_scheduler.studies.record import StudyRecord, StudyRecords, StudyState, trial_job
from graft_scheduler.studies.space import with_values
from graft_scheduler.studies.spec import PrunerName, SamplerName, check_packages
from graft_scheduler.studies.storage import StudyStorage
from graft_scheduler.transitions import Transitions

logger = logging.getLogger(__name__)

BY = "the study"
"""In whose name trials are paused, promoted and pruned."""
KIND = "trial"
"""What Flower calls the job of one."""
START, AGAIN = "start", "again_of"
"""User attributes: place among the settings that are tried first; number of the trial that lost its hosts."""
HOPELESS = 5
"""When all of the first so many trials fail, no more is begun."""
MEDIAN_STARTUP = 4
"""Trials that nothing is compared with by the median pruner."""
PATIENCE = 2
"""Evaluations without a better loss, for the patient pruner."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where trials run."""

    redis: Redis
    transitions: Transitions
    broker: Broker


class Drive:
    """One study. Everything that matters is in Redis; what is kept here only saves reading."""

    def __init__(
        self, record: StudyRecord, storage: StudyStorage, records: StudyRecords, fleet: Fleet
    ) -> None:
        self._number, self._spec, self._known = record.number, record.spec, record.known
        self._storage, self._records, self._fleet = storage, records, fleet
        self._record = record
        directions = [StudyDirection.MINIMIZE for _ in record.spec.objectives]
        storage.begin(record.number, directions, record.name)
        self._study = optuna.load_study(study_name=record.name, storage=storage)
        self._ladder = Ladder(record.spec.pruner)
        self._steps: dict[int, int] = {}
        """Optimizer steps of each trial."""
        self._seen: dict[int, str] = {}
        """The last event read of each trial's job."""
        self._jobs: dict[int, JobRecord] = {}
        """Of trials at rest."""

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
        jobs = self._look()
        in_flight, waiting = self._follow(jobs)
        self._advance(in_flight, waiting)

    # --- what is there

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials that are ours, in order."""
        found = self._storage.get_all_trials(self._study._study_id, False, states or None)
        return [one for one in found if OURS in one.user_attrs]

    def _job_id(self, trial: FrozenTrial) -> JobId:
        return trial_job(self._number, trial.number)

    def _look(self) -> dict[int, JobRecord | None]:
        """The jobs of the trials that are not told, by number; those of doubles are left out."""
        trials = [
            one for one in self._trials(TrialState.RUNNING) if telling.DUPLICATE_OF not in one.user_attrs
        ]
        return dict(zip((one.number for one in trials), self._read_jobs(trials), strict=True))

    def _read_jobs(self, trials: Sequence[FrozenTrial]) -> Iterator[JobRecord | None]:
        """Records; one that is paused, and was when it was last read, is not read again."""
        pipeline = self._fleet.redis.pipeline(transaction=False)
        for trial in trials:
            pipeline.hmget(keys.job(self._job_id(trial)), "state", "token", "pause_step")
        heads = pipeline.execute()
        news = [trial for trial, head in zip(trials, heads, strict=True) if not self._is_known(trial, head)]
        for trial in news:
            pipeline.hgetall(keys.job(self._job_id(trial)))
        fields = dict(zip((one.number for one in news), pipeline.execute(), strict=True))
        for trial in trials:
            if trial.number not in fields:
                yield self._jobs[trial.number]
                continue
            self._jobs.pop(trial.number, None)
            found = fields[trial.number]
            job = JobRecord.parse(self._job_id(trial), found) if found else None
            if job is not None and job.state is JobState.PAUSED:
                self._jobs[trial.number] = job
            yield job

    def _is_known(self, trial: FrozenTrial, head: Sequence[str | None]) -> bool:
        job = self._jobs.get(trial.number)
        step = "" if job is None or job.pause_step is None else str(job.pause_step)
        return job is not None and list(head) == [JobState.PAUSED.value, str(job.token), step]

    # --- what has happened

    def _follow(self, jobs: dict[int, JobRecord | None]) -> tuple[int, set[int]]:
        """Report, tell and submit what is due; how many trials are on their way, and which wait at a rung."""
        in_flight, waiting = 0, set()
        for trial in self._trials(TrialState.RUNNING):
            if trial.number not in jobs:
                self._follow_twin(trial)
                continue
            job = jobs[trial.number]
            if job is None:
                in_flight += self._submit(trial)
            elif job.state.is_terminal:
                self._report(trial, job)
                self._tell(trial, job)
            elif job.state is JobState.PAUSED:
                if self._has_come_to_its_rung(trial, job):
                    self._note_rung(trial, job)
                    waiting.add(trial.number)
                else:
                    self._resume(job, "same")
                    in_flight += 1
            else:
                in_flight += 1
                self._report(trial, job)
                self._prune_if_weak(trial, job)
        return in_flight, waiting

    def _submit(self, trial: FrozenTrial) -> bool:
        """Submit the job of a trial that has none, with all its settings; whether it is on its way now."""
        if set(trial.params) < set(self._spec.space.parameters):
            complete(self._study, self._spec, trial._trial_id)
            trial = self._storage.get_trial(trial._trial_id)
        if (twin := self._twin(trial)) is not None:
            telling.note(self._study, trial, **{telling.DUPLICATE_OF: twin.number})
            self._follow_twin(trial)
            return False
        try:
            spec = self._job_spec(trial)
            submission = self._known.submission(spec)
        except InvalidInput as error:
            telling.tell_failed(self._study, trial, str(error), FailureClass.CONFIG)
            return False
        job_id, rungs = self._job_id(trial), self._rungs(trial)
        transitions, request = self._fleet.transitions, submission.request(self._known.store_id)
        telling.note(self._study, trial, **{telling.JOB: job_id})
        try:
            transitions.submit(
                job_id, spec, request, submission.demands, kind=KIND, pause_step=rungs[0] if rungs else None
            )
        except Conflict:  # submitted, and read before that
            return True
        self._fleet.broker.announce_waiting([(job_id, 0, KIND, spec.submitter)])
        return True

    def _job_spec(self, trial: FrozenTrial) -> TrainJob:
        spec, name = self._spec, self._record.name
        job = with_values(spec.base, values_of(trial.params, spec.space))
        labels = {**job.labels, "study": name, "trial": str(trial.number)}
        return job.model_copy(
            update={"name": f"{name}/{trial.number}", "labels": labels, "submitter": spec.submitter}
        )

    def _twin(self, trial: FrozenTrial) -> FrozenTrial | None:
        """An earlier trial with the same settings, unless it failed."""
        settings = _settings(trial)
        for earlier in self._trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED):
            if earlier.number < trial.number and _settings(earlier) == settings:
                return earlier
        return None

    def _follow_twin(self, trial: FrozenTrial) -> None:
        """Tell a double what its twin was told, if that is known; one whose twin failed is on its own."""
        trial = self._storage.get_trial(trial._trial_id)
        number = trial.user_attrs[telling.DUPLICATE_OF]
        storage = self._storage
        twin = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self._number, number))
        if twin.state is TrialState.FAIL:
            telling.tell_failed(self._study, trial, f"as trial {number}, which has the same settings")
        elif twin.state.is_finished():
            telling.tell_as(self._study, trial, twin)

    def _report(self, trial: FrozenTrial, job: JobRecord) -> None:
        """Pass the evaluations on that the job has made since; that of the untrained model is none."""
        after = self._seen.get(trial.number, "0")
        entries: Any = self._fleet.redis.xrange(keys.job_events(job.id), f"({after}" if after != "0" else "-")
        for entry, fields in entries:
            if fields["name"] == "evaluated":
                found = json.loads(fields["data"])
                if found["step"] > 0:
                    telling.report(self._study, self._storage.get_trial(trial._trial_id), *_evaluation(found))
            self._seen[trial.number] = entry

    def _tell(self, trial: FrozenTrial, job: JobRecord) -> None:
        telling.tell_ended(self._study, self._storage.get_trial(trial._trial_id), job, self._spec)
        self._seen.pop(trial.number, None)
        told = self._storage.get_trial(trial._trial_id)
        logger.info(
            "study %s: trial %d is told as %s", self._record.name, told.number, told.state.name.lower()
        )
        is_lost = told.user_attrs.get(telling.FAILURE) == FailureClass.HOST and AGAIN not in told.user_attrs
        if told.state is TrialState.FAIL and is_lost:
            self._enqueue_again(told)

    def _has_come_to_its_rung(self, trial: FrozenTrial, job: JobRecord) -> bool:
        """Whether the job paused where it was to; else somebody asked it to."""
        return job.pause_step is not None and job.result is not None and job.result.steps >= job.pause_step

    def _note_rung(self, trial: FrozenTrial, job: JobRecord) -> None:
        """Write the loss at the rung, once."""
        losses = list(trial.user_attrs.get(RUNG_LOSSES, []))
        rungs = self._rungs(trial)
        assert job.pause_step is not None
        assert job.result is not None
        if len(losses) > rungs.index(job.pause_step) or job.result.final_loss is None:
            return
        self._report(trial, job)
        trial = self._storage.get_trial(trial._trial_id)
        telling.report(self._study, trial, job.pause_step, job.result.final_loss)
        telling.note(self._study, trial, **{RUNG_LOSSES: [*losses, job.result.final_loss]})

    def _rungs(self, trial: FrozenTrial) -> list[int]:
        """The steps at which the trial pauses."""
        if trial.number not in self._steps:
            self._steps[trial.number] = self._known.steps(self._job_spec(trial))
        return self._ladder.steps(trial.number, self._steps[trial.number])

    def _prune_if_weak(self, trial: FrozenTrial, job: JobRecord) -> None:
        """Stop a running trial that the median pruner, or the patient one, gives up."""
        pruner = _pruner(self._spec.pruner)
        if pruner is None or telling.PRUNED in trial.user_attrs:
            return
        trial = self._storage.get_trial(trial._trial_id)
        if trial.last_step is not None and pruner.prune(self._study, trial):
            step, loss = trial.last_step, trial.intermediate_values[trial.last_step]
            why = f"its loss of {loss:.4g} at step {step} is worse than the median of the others there"
            telling.note(self._study, trial, **{telling.PRUNED: True, telling.WHY: why})
            self._fleet.transitions.prune(job.id, BY)

    # --- what comes next

    def _advance(self, in_flight: int, waiting: set[int]) -> None:
        """Prune, promote and begin trials as far as they may be on their way at once; end the study."""
        trials = self._trials()
        is_over = self._is_over(trials)
        unborn = range(len(trials), len(trials) if is_over else self._record.trials)
        verdict = self._ladder.judge(trials, waiting, unborn)
        by_number = {one.number: one for one in trials}
        for number in verdict.pruned:
            self._prune(by_number[number])
        promoted = [number for rung in verdict.promoted for number in rung]
        is_eager = self._record.until is not None
        if is_eager:
            promoted = [number for rung in reversed(verdict.promoted) for number in rung]
        free = self._spec.parallel - in_flight
        left = len(unborn)
        if not is_eager:
            free, left = self._begin(free, left)
        for number in promoted[: max(0, free)]:
            self._promote(by_number[number])
        free -= min(len(promoted), max(0, free))
        if is_eager:
            free, left = self._begin(free, left)
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
        return self._record.until is not None and fleet.redis_now(self._fleet.redis) >= self._record.until

    def _prune(self, trial: FrozenTrial) -> None:
        """End a trial that waits at a rung."""
        losses = trial.user_attrs[RUNG_LOSSES]
        why = f"its loss of {losses[-1]:.4g} is not among the best third at rung {len(losses)}"
        telling.note(self._study, trial, **{telling.PRUNED: True, telling.WHY: why})
        self._fleet.transitions.prune(self._job_id(trial), BY)
        (job,) = self._read_jobs([trial])
        if job is not None and job.state.is_terminal:
            self._tell(trial, job)

    def _promote(self, trial: FrozenTrial) -> None:
        """Let a trial that waits at a rung go on to the next one, or to its end."""
        rungs = self._rungs(trial)
        passed = len(trial.user_attrs[RUNG_LOSSES])
        job = self._jobs[trial.number]
        self._resume(job, rungs[passed] if passed < len(rungs) else None)

    def _resume(self, job: JobRecord, pause_step: Any) -> None:
        self._fleet.transitions.resume(job.id, BY, pause_step)
        self._fleet.broker.announce_waiting([(job.id, job.token, KIND, job.spec.submitter)])

    # --- beginnings and ends

    def _enqueue_first(self) -> None:
        """Enqueue the settings that are tried first, those that are not there yet."""
        if self._spec.sampler is SamplerName.GRID:
            return
        there = {
            one.user_attrs.get(START) for one in self._storage.get_all_trials(self._study._study_id, False)
        }
        for place, values in enumerate(self._spec.first[: self._spec.trials]):
            if place not in there:
                enqueue(self._study, self._spec, values, **{START: place})

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        """Try the settings of a trial whose hosts were lost once more."""
        everything = self._storage.get_all_trials(self._study._study_id, False)
        if all(one.user_attrs.get(AGAIN) != trial.number for one in everything):
            enqueue(
                self._study, self._spec, values_of(trial.params, self._spec.space), **{AGAIN: trial.number}
            )

    def _stop(self) -> None:
        """Pause what is on its way; once nothing is, the study is stopped."""
        live = [
            job
            for job in self._look().values()
            if job is not None and not job.state.is_terminal and job.state is not JobState.PAUSED
        ]
        for job in live:
            self._fleet.transitions.pause(job.id, BY)
        if not live:
            self._end(StudyState.STOPPED, self._record.why)

    def _finish(self) -> None:
        trials = self._trials()
        whole = [one for one in trials if one.state is TrialState.COMPLETE]
        if not whole:
            self._end(StudyState.FAILED, _why_nothing_came(trials))
            return
        best = best_trial(trials)
        if best is None:
            self._end(StudyState.FAILED, f"none of its {len(whole)} whole trials is within the limits")
            return
        fields = {"final_job": self._final(best)} if len(self._study.directions) == 1 else {}
        self._end(StudyState.FINISHED, "", **fields)

    def _final(self, best: FrozenTrial) -> JobId:
        """The job whose adapter is the result: the best trial's, or a longer one that is submitted now."""
        spec, number = self._spec, best.user_attrs.get(telling.DUPLICATE_OF, best.number)
        if spec.final is None or (spec.final.epochs is None and spec.final.steps is None):
            return trial_job(self._number, number)
        job_id = JobId(f"s{self._number}final{len(self._trials())}")
        job = final_job(spec, self._record.name, values_of(best.params, spec.space))
        submission = self._known.submission(job)
        try:
            self._fleet.transitions.submit(
                job_id, job, submission.request(self._known.store_id), submission.demands
            )
        except Conflict:
            return job_id
        self._fleet.broker.announce_waiting([(job_id, 0, job.kind, job.submitter)])
        return job_id

    def _end(self, state: StudyState, why: str, **fields: str | int) -> None:
        before = (StudyState.ACTIVE, StudyState.STOPPING)
        self._records.change(self._number, state, before, why, **fields)
        logger.info("study %s is %s%s", self._record.name, state.value, f": {why}" if why else "")


def _settings(trial: FrozenTrial) -> str:
    return json.dumps(trial.params, sort_keys=True)


def _evaluation(found: dict[str, Any]) -> tuple[int, float]:
    return int(found["step"]), float(found["loss"])


def _pruner(name: PrunerName) -> BasePruner | None:
    median = MedianPruner(n_startup_trials=MEDIAN_STARTUP)
    match name:
        case PrunerName.MEDIAN:
            return median
        case PrunerName.PATIENT:
            return PatientPruner(median, patience=PATIENCE)
        case _:
            return None


def _why_nothing_came(trials: Sequence[FrozenTrial]) -> str:
    """Why no trial came to its end, with the first reason of all."""
    reasons = [
        (one.number, str(one.user_attrs[telling.WHY])) for one in trials if telling.WHY in one.user_attrs
    ]
    first = f"; the first, trial {reasons[0][0]}: {reasons[0][1]}" if reasons else ""
    failed = sum(one.state is TrialState.FAIL for one in trials)
    what = f"all of its {len(trials)} trials failed" if failed == len(trials) else "no trial came to its end"
    return what + first
