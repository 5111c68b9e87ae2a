"""What a person's program does with the service: submit, watch, stop, fetch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from graft_scheduler import fleet, keys, submission
from graft_scheduler.adapters import Adapters
from graft_scheduler.checkpoints import Which
from graft_scheduler.comparison import ComparisonHandle, Variant
from graft_scheduler.comparison.finding import find_jobs, refuse_known
from graft_scheduler.comparison.preparing import prepare_comparison
from graft_scheduler.data.fleet import Datasets
from graft_scheduler.errors import Conflict, JobFailed, NotAllowed
from graft_scheduler.garbage import (
    GRACE_SECONDS,
    Collected,
    Garbage,
    find_garbage,
    remove_garbage,
)
from graft_scheduler.holdings.board import forget_holdings
from graft_scheduler.holdings.handle import HostModels
from graft_scheduler.job_log import read_log
from graft_scheduler.job_plan import JobPlan, make_plan
from graft_scheduler.jobs import CountJob, TrainJob, current_user
from graft_scheduler.lessons import read_lessons
from graft_scheduler.plan_hosts import host_views
from graft_scheduler.reader import Reader
from graft_scheduler.records import HostRecord, JobRecord
from graft_scheduler.redis_connection import patiently
from graft_scheduler.settings import Settings, load_settings
from graft_scheduler.snapshot import forget_snapshot
from graft_scheduler.states import JobId, JobState, StopReason
from graft_scheduler.store import Store
from graft_scheduler.store.finding import find_store
from graft_scheduler.submission import Submission
from graft_scheduler.transitions import Transitions

if TYPE_CHECKING:
    from graft_scheduler.studies.handle import Studies, StudyHandle

ID_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's alphabet: nothing in it is mistaken for something else."""
ID_LENGTH = 8
POLL_SECONDS = 0.25

J = TypeVar("J", TrainJob, CountJob, TrainJob | CountJob)


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A submitted job."""

    client: Client
    id: JobId
    notes: tuple[str, ...] = ()
    """What the submitter should know."""

    def record(self) -> JobRecord:
        """The job as it is now."""
        return self.client.get(self.id)

    def wait(self, timeout_seconds: float | None = None) -> JobRecord:
        """The completed job.

        Raises:
            JobFailed: it failed or was cancelled.
            TimeoutError: it has not ended in time; it goes on.
        """
        record = self.client.wait(self.id, timeout_seconds)
        if record.state is not JobState.COMPLETED:
            why = record.failure.text if record.failure else "no reason was given"
            raise JobFailed(f"job {self.id} {record.state.value}: {why}")
        return record

    def cancel(self) -> None:
        """Stop it; a running job saves a checkpoint first."""
        self.client.cancel(self.id)

    def pull(self, destination: Path, checkpoint: Which | None = None) -> Path:
        """Fetch the adapter's folder, or a checkpoint's."""
        return self.client.pull(self.id, destination, checkpoint)


class Client(Reader):
    """One Redis and one store, as `settings` name them. Safe to share between threads.

    Methods raise `Unreachable` when Redis or the store does not answer, and `NotFound` for an
    id that no job has. Wherever an id is taken, a unique beginning of one is enough.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings or load_settings())
        self._transitions = Transitions(self._redis)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def submit(self, job: TrainJob | CountJob) -> JobHandle:
        """Check the job, store what it needs and queue it; once this returns it is not lost.

        Raises:
            InvalidInput: says the field, file or line and what would be right; nothing was queued.
            NotAllowed: the hub refuses the model to whoever submits, and no host has it.
        """
        self.ping()
        store = self.store()
        job = self._named(job)
        try:
            return JobHandle(self, self._queue(submission.prepare(job, store), store.id))
        except NotAllowed as error:
            known = self._known_to_hosts(job)
            if known is None:
                raise
            note = f"{error}; a host has it, so the job is queued, for a whole host: its size is not known"
        prepared = submission.prepare(known, store, asks_hub=False)
        return JobHandle(self, self._queue(prepared, store.id), (note,))

    def compare(
        self, job: TrainJob, variants: Sequence[str | Variant] = (), name: str | None = None
    ) -> ComparisonHandle:
        """Queue the job once in each variant, all with the same data and budget; see `comparison`.

        A variant is written as `graft compare --variant` takes it; without any, all methods are compared.
        The name is that of the job where none is given, or a new one.

        Raises:
            InvalidInput: the job or a variant can never work; nothing was queued.
            Conflict: there is a comparison of that name.
        """
        self.ping()
        name = name or job.name
        if name is not None:
            with self._reached():
                refuse_known(self._redis, name)
        store = self.store()
        prepared = prepare_comparison(self._named(job), variants, name, store)
        jobs = tuple(self._queue(one, store.id) for one in prepared.submissions)
        return ComparisonHandle(self, prepared.name, jobs, prepared.notes)

    def comparison(self, name: str) -> ComparisonHandle:
        """The comparison of that name, by the labels of its jobs."""
        with self._reached():
            return ComparisonHandle(self, name, find_jobs(self._redis, name))

    @cached_property
    def studies(self) -> Studies:
        """The studies of this Redis."""
        from graft_scheduler.studies.handle import Studies  # with Optuna, which takes a second to import

        return Studies(self._redis, self.settings.redis_url)

    @cached_property
    def datasets(self) -> Datasets:
        """The data sets that have names in this fleet."""
        return Datasets(self._redis, self.store, self._reached)

    @property
    def models(self) -> HostModels:
        """The models on the hosts of this Redis."""
        return HostModels(self._redis, self.settings.redis_url, self.hosts, self._host)

    def tune(
        self,
        job: TrainJob,
        search: Mapping[str, object] | Sequence[str] | None = None,
        **settings: Any,
    ) -> StudyHandle:
        """Begin a study: a search for the best settings of `job`, whose trials run all over the fleet.

        `search` says what is tried, as `{"learning_rate": "log:1e-5..1e-3", "rank": [8, 16]}`; without it,
        what matters most. `settings` are `name`, `warm_start` (an earlier study) and those of
        `studies.spec.StudySpec`: `trials`, `parallel`, `seconds`, `sampler`, `pruner`, `objectives`, ...

            study = client.tune(job, {"learning_rate": "log:1e-5..1e-3"}, trials=20)
            study.wait()
            print(study.study().best_params)

        Raises:
            InvalidInput: says the setting, the value and what would be right; nothing was queued.
        """
        self.ping()
        return self.studies.tune(self._named(job), self.store(), search, **settings)

    def plan(self, job: TrainJob) -> JobPlan:
        """What the job would take, and what each host answers to it; nothing is stored or queued.

        Raises:
            InvalidInput: says the field, file or line and what would be right.
        """
        store = self.store()
        resolved = submission.resolve(self._named(job), store)
        with self._reached():
            rooms = fleet.read_rooms(self._redis, self._alive_seconds)
            lessons = read_lessons(self._redis)
            waiting: Any = self._redis.zcard(keys.QUEUE)
        views = host_views(resolved, store.id, rooms, lessons)
        return make_plan(resolved, views, waiting=waiting)

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job that waits, or ask its runner to save a checkpoint and stop.

        Raises:
            Conflict: it has ended already.
        """
        with self._reached():
            full = self._full_id(job_id)
            before = self._transitions.cancel(full, current_user())
        record = self.get(full)
        if before is not JobState.RUNNING:
            waiting_for = record.token + (before is JobState.QUEUED)
            self._broker().announce_revoked(full, waiting_for)
        return record

    def pause(self, job_id: str) -> JobRecord:
        """Take a job out of the queue, or ask its runner to save a checkpoint and stop; see `resume`.

        Raises:
            Conflict: it has ended, or is a study's trial.
        """
        with self._reached():
            full = self._full_id(job_id)
            _refuse_trial(self.get(full))
            before = self._transitions.pause(full, current_user())
        if before.is_terminal:
            raise Conflict(f"job {full} is {before.value} already; there is nothing to pause")
        return self.get(full)

    def resume(self, job_id: str) -> JobRecord:
        """Queue a paused job again; it goes on from its newest checkpoint.

        Raises:
            Conflict: it is not paused, or is a study's trial.
        """
        with self._reached():
            full = self._full_id(job_id)
            record = self.get(full)
            _refuse_trial(record)
            asked = record.stop_requested is StopReason.PAUSE
            before = self._transitions.resume(full, current_user())
        if before is not JobState.PAUSED and not asked:
            raise Conflict(f"job {full} is {before.shown}; only paused jobs can be resumed")
        record = self.get(full)
        self._broker().announce_waiting([(full, record.token, record.spec.kind, record.spec.submitter)])
        return record

    def retry(self, job_id: str) -> JobRecord:
        """Queue a failed or cancelled job again; it goes on from its newest checkpoint.

        Raises:
            Conflict: it is neither failed nor cancelled, or is a study's trial.
        """
        with self._reached():
            full = self._full_id(job_id)
            _refuse_trial(self.get(full))
            self._transitions.retry(full, current_user())
        record = self.get(full)
        self._broker().announce_waiting([(full, record.token, record.spec.kind, record.spec.submitter)])
        return record

    def log_lines(self, job_id: str) -> Iterator[str]:
        """The job's log by attempts: all of one that has ended, the newest lines of one that runs."""
        record = self.get(job_id)
        with self._reached():
            lines = self._new_lines(record.id, "0")
        return read_log(record, self.store, lines)

    def follow_log(self, job_id: str) -> Iterator[str]:
        """The job's log so far, then its lines as they come, until it has ended."""
        record = self.get(job_id)
        with self._reached():
            lines = self._new_lines(record.id, "0")
        yield from read_log(record, self.store, lines)
        after, ended = lines[-1].entry if lines else "0", record.state.is_terminal
        while not ended or lines:
            time.sleep(0 if lines else POLL_SECONDS)
            ended = patiently(lambda: self.get(record.id)).state.is_terminal
            with self._reached():
                lines = self._new_lines(record.id, after)
            for line in lines:
                after = line.entry
                yield line.text

    def follow(self, job_id: str) -> Iterator[JobRecord]:
        """The job at each change, until it has ended; Redis may be away for a while."""
        job, last = self.get(job_id).id, None
        while True:
            record = patiently(lambda: self.get(job))
            if record != last:
                yield record
            if record.state.is_terminal:
                return
            last = record
            time.sleep(POLL_SECONDS)

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> JobRecord:
        """The job, ended.

        Raises:
            TimeoutError: it has not ended in time; it goes on.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        job = self.get(job_id).id
        while not (record := patiently(lambda: self.get(job))).state.is_terminal:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {record.state.shown} after {timeout_seconds:g} s")
            time.sleep(POLL_SECONDS)
        return record

    def set_draining(self, host: str, draining: bool) -> HostRecord:
        """Let a host finish what it runs and give it nothing new, or end that."""
        return self._change_host(host, {"draining": str(int(draining))})

    def uncordon(self, host: str) -> HostRecord:
        """Trust a host again that failed too many jobs."""
        return self._change_host(
            host, {"cordoned": "0", "faulty_jobs": "[]", "missed_claims": "0", "rests_until": ""}
        )

    def forget_host(self, host: str) -> None:
        """Remove a host that will not come back.

        Raises:
            Conflict: it reports, or holds jobs.
        """
        record = self._host(host)
        if record.is_alive or record.jobs:
            raise Conflict(f"host {host} is alive or holds jobs; stop its worker first")
        with self._reached():
            self._redis.zrem(keys.HOSTS, record.info.id)
            self._redis.delete(keys.host(record.info.id), keys.host_queue(record.info.id))
            forget_holdings(self._redis, record.info.id)
            forget_snapshot(self._redis)

    @cached_property
    def adapters(self) -> Adapters:
        """What jobs have made: list, describe, name and remove it."""
        return Adapters(self, self._redis, self._reached)

    def pull(
        self, job_id: str, destination: Path, checkpoint: Which | None = None, *, whole: bool = False
    ) -> Path:
        """Fetch the adapter of a job, or the one of that name, into `destination`; see `Adapters.pull`.

        `checkpoint` is `"best"`, `"last"` or a step: also of a job that runs, failed or was cancelled.

        Raises:
            Conflict: the job has no adapter yet, or `destination` holds something else.
        """
        return self.adapters.pull(job_id, destination, checkpoint, whole=whole)

    def find_garbage(self, older_seconds: float = GRACE_SECONDS) -> Garbage:
        """What in the store nobody refers to and is older than that; see `garbage`. Nothing is removed.

        Raises:
            Conflict: a record cannot be understood, or Redis knows nothing of the store.
        """
        with self._reached():
            return find_garbage(self.store(), self._redis, older_seconds)

    def remove_garbage(self, garbage: Garbage) -> Collected:
        """Remove it from the store, but for what was renewed meanwhile."""
        return remove_garbage(self.store(), garbage)

    def _named(self, job: J) -> J:
        """With the digest of its data set, where it names one of the fleet."""
        if not isinstance(job, TrainJob):
            return job
        return job.model_copy(update={"data": self.datasets.named(job.data)})

    def _known_to_hosts(self, job: TrainJob | CountJob) -> TrainJob | None:
        """The job at the commit of its base that a host has, though the submitter may not have it."""
        if not isinstance(job, TrainJob):
            return None
        cached = [name for host in self.hosts() if host.is_alive for name in host.info.cached]
        commit = submission.held_commit(job.model, cached)
        if commit is None:
            return None
        return job.model_copy(update={"model": job.model.model_copy(update={"revision": commit})})

    def _queue(self, prepared: Submission, store_id: str) -> JobId:
        job_id, job = JobId("".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))), prepared.spec
        with self._reached():
            self._transitions.submit(job_id, job, prepared.request(store_id), prepared.demands)
        self._broker().announce_waiting([(job_id, 0, job.kind, job.submitter)])
        return job_id

    def _change_host(self, host: str, fields: dict[Any, Any]) -> HostRecord:
        record = self._host(host)
        with self._reached():
            self._redis.hset(keys.host(record.info.id), mapping=fields)
            forget_snapshot(self._redis)
            self._redis.lpush(keys.WAKE, 1)
        return self._host(record.info.id)

    def store(self) -> Store:
        """Where the fleet's data, models and adapters are.

        Raises:
            NotAllowed: a gateway refuses the token.
        """
        return find_store(self.settings, self._redis)

    def _broker(self) -> Any:
        from graft_scheduler.broker import Broker, make_app  # celery takes 0.4 s to import

        return Broker(make_app(self.settings.redis_url))


def _refuse_trial(record: JobRecord) -> None:
    """A study pauses its trials, lets them go on and tries them again by itself."""
    study = record.spec.labels.get("study")
    if study is not None and "trial" in record.spec.labels:
        raise Conflict(
            f"job {record.id} is a trial of study {study}, which decides when it runs; "
            f"`graft study stop {study}` pauses all of it"
        )
