"""The trials of one study as jobs: what they are, how they stand, and what they are told to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.broker import Broker
from graft_scheduler.errors import Conflict
from graft_scheduler.jobs import TrainJob
from graft_scheduler.records import JobRecord
from graft_scheduler.states import JobId, JobState
from graft_scheduler.studies.ladder import Ladder
from graft_scheduler.studies.proposals import values_of
from graft_scheduler.studies.record import StudyRecord, trial_job
from graft_scheduler.studies.space import with_values
from graft_scheduler.transitions import Transitions

BY = "the study"
"""In whose name trials are paused, promoted and pruned."""
KIND = "trial"
"""What Flower calls the job of one."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where trials run."""

    redis: Redis
    transitions: Transitions
    broker: Broker
    leader: Callable[[], str]
    """For whom it is that trials are told what to do."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The validation loss of a running trial after a step."""

    step: int
    loss: float


class TrialJobs:
    """The jobs of one study. What is kept here only saves reading it again."""

    def __init__(self, record: StudyRecord, ladder: Ladder, fleet: Fleet) -> None:
        self._number, self._name, self._spec = record.number, record.name, record.spec
        self._known, self._ladder, self._fleet = record.known, ladder, fleet
        self._steps: dict[int, int] = {}
        """Optimizer steps of each trial."""
        self._seen: dict[int, str] = {}
        """The last event read of each trial's job."""
        self._paused: dict[int, tuple[float | None, JobRecord]] = {}
        """Since when, and the record as it was read then."""

    def id_of(self, trial: FrozenTrial) -> JobId:
        return trial_job(self._number, trial.number)

    def spec_of(self, trial: FrozenTrial) -> TrainJob:
        """The job of a trial that has all its settings.

        Raises:
            InvalidInput: they do not fit each other.
        """
        base = self._spec.base
        job = with_values(base, values_of(trial.params, self._spec.space))
        labels = {**base.labels, "study": self._name, "trial": str(trial.number)}
        name = f"{self._name}/{trial.number}"
        return job.model_copy(update={"name": name, "labels": labels, "submitter": self._spec.submitter})

    def rungs_of(self, trial: FrozenTrial) -> list[int]:
        """The steps at which the trial pauses."""
        if trial.number not in self._steps:
            self._steps[trial.number] = self._known.steps(self.spec_of(trial))
        return self._ladder.steps(trial.number, self._steps[trial.number])

    def submit(self, trial: FrozenTrial) -> None:
        """Queue the job of a trial; one that is queued already stays as it is.

        Raises:
            InvalidInput: the settings do not fit each other, or the base.
        """
        rungs = self.rungs_of(trial)
        self.submit_job(self.id_of(trial), self.spec_of(trial), KIND, rungs[0] if rungs else None)

    def submit_job(self, job_id: JobId, job: TrainJob, kind: str, pause_step: int | None = None) -> None:
        """Queue a job under this id, once."""
        submission = self._known.submission(job)
        request = submission.request(self._known.store_id)
        try:
            self._fleet.transitions.submit(
                job_id,
                submission.spec,
                request,
                submission.demands,
                kind=kind,
                pause_step=pause_step,
                leader=self._fleet.leader(),
            )
        except Conflict:
            return
        self._fleet.broker.announce_waiting([(job_id, 0, kind, job.submitter)])

    def read(self, trials: Sequence[FrozenTrial]) -> dict[int, JobRecord | None]:
        """Their records by number; nothing for those that have none."""
        return dict(zip((one.number for one in trials), self._read(trials), strict=True))

    def read_job(self, job_id: JobId) -> JobRecord | None:
        """The record of any job, if there is one."""
        fields: Any = self._fleet.redis.hgetall(keys.job(job_id))
        return JobRecord.parse(job_id, fields) if fields else None

    def paused(self, trial: FrozenTrial) -> JobRecord:
        """The record of a trial that was paused when it was last read."""
        return self._paused[trial.number][1]

    def evaluations(self, trial: FrozenTrial, job: JobRecord) -> Iterator[Evaluation]:
        """Those that are new since this was last asked; that of the untrained model is none."""
        after = self._seen.get(trial.number)
        events = keys.job_events(job.id)
        entries: Any = self._fleet.redis.xrange(events, "-" if after is None else f"({after}")
        for entry, fields in entries:
            if fields["name"] == "evaluated":
                found = json.loads(fields["data"])
                if found["step"] > 0:
                    yield Evaluation(int(found["step"]), float(found["loss"]))
            self._seen[trial.number] = entry

    def forget(self, trial: FrozenTrial) -> None:
        """The trial is told."""
        self._seen.pop(trial.number, None)
        self._paused.pop(trial.number, None)

    def resume(self, job: JobRecord, pause_step: int | Literal["same"] | None = "same") -> None:
        """Let a paused job go on, up to `pause_step` or to its end."""
        self._fleet.transitions.resume(job.id, BY, pause_step, self._fleet.leader())
        self._fleet.broker.announce_waiting([(job.id, job.token, KIND, job.spec.submitter)])

    def pause(self, job: JobRecord) -> None:
        """Ask a job to give its host back."""
        self._fleet.transitions.pause(job.id, BY, self._fleet.leader())

    def prune(self, trial: FrozenTrial) -> None:
        """End a trial's job, at once or at its next step."""
        self._fleet.transitions.prune(self.id_of(trial), BY, self._fleet.leader())

    def _read(self, trials: Sequence[FrozenTrial]) -> Iterator[JobRecord | None]:
        """One that has been paused since it was last read is not read again."""
        ids: list[str] = [self.id_of(trial) for trial in trials]
        since: Any = self._fleet.redis.zmscore(keys.PAUSED, ids) if ids else []
        pipeline = self._fleet.redis.pipeline(transaction=False)
        paused_since = {trial.number: at for trial, at in zip(trials, since, strict=True)}
        news = [trial for trial in trials if not self._is_known(trial, paused_since[trial.number])]
        for trial in news:
            pipeline.hgetall(keys.job(self.id_of(trial)))
        fields = dict(zip((one.number for one in news), pipeline.execute(), strict=True))
        for trial in trials:
            if trial.number not in fields:
                yield self._paused[trial.number][1]
                continue
            self._paused.pop(trial.number, None)
            found = fields[trial.number]
            job = JobRecord.parse(self.id_of(trial), found) if found else None
            if job is not None and job.state is JobState.PAUSED:
                self._paused[trial.number] = paused_since[trial.number], job
            yield job

    def _is_known(self, trial: FrozenTrial, since: float | None) -> bool:
        return since is not None and trial.number in self._paused and self._paused[trial.number][0] == since
