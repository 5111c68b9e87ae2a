"""The work of one attempt: starts the runner, relays what it says, hands over what it made, and
explains its death.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from redis.exceptions import RedisError

from graft_scheduler import fleet
from graft_scheduler.checkpoints import KeptCheckpoint
from graft_scheduler.errors import Fenced, GraftError, NotAllowed, StoreError, Unreachable
from graft_scheduler.lessons import Measured, measured
from graft_scheduler.memory import Backend
from graft_scheduler.messages import Checkpoint, Done, Failed, Shrink, Start, TrainResult
from graft_scheduler.records import AttemptLog, Failure, Hold, JobRecord, dump_samples
from graft_scheduler.recovery import keep
from graft_scheduler.rooms import HostRoom
from graft_scheduler.runner_process import EXIT_DEADLINE, RunnerProcess
from graft_scheduler.states import FailureClass, JobState, StopReason
from graft_scheduler.transitions import MISSED_BEATS, Ending, ending_after, ending_out_of_memory
from graft_worker.cache.disk import is_disk_full
from graft_worker.cache.uses import Uses
from graft_worker.exits import cause_of_death
from graft_worker.hub_fetching import NoAccess
from graft_worker.lease import LeaseKeeper
from graft_worker.link import JobError
from graft_worker.lost_logs import LOG_FILE, lost_logs
from graft_worker.memory_judge import Budget
from graft_worker.memory_watch import MemoryWatch, Orders
from graft_worker.out_of_memory import decide
from graft_worker.preparation import CHECKPOINTS, Needs, Stopped, Worker, prepare
from graft_worker.relay import Relay
from graft_worker.residency import runner_name
from graft_worker.runner import DONE_MARKER, is_kept
from graft_worker.runners import Engaged, Room
from graft_worker.uploads import UPLOADING, NotStored, Uploader

logger = logging.getLogger(__name__)

RECEIVE_SECONDS = 0.1
RETRY_SECONDS = 1.0
"""Between two tries to write an outcome while Redis is away."""
FLUSH_SECONDS = 600.0
"""How long an attempt that has ended waits for its last checkpoint to be in the store."""
REFUSED_SECONDS = 60.0
"""Before a job is placed again whose base looked as if it were on a host, and was not whole there."""
LEAVE_SECONDS = 5.0
"""How long a worker that was told to stop waits for a Redis that is away."""
MEMORY_FILE = "memory.json"
"""The runner's memory over its life, in the attempt's folder."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The outcome of an attempt, as it was written."""

    state: JobState
    ending: Ending


class Attempt:
    """The steps of one attempt, in the order in which they are called."""

    def __init__(self, worker: Worker, hold: Hold, record: JobRecord, keeper: LeaseKeeper) -> None:
        self._worker, self._hold, self._record, self._keeper = worker, hold, record, keeper
        self._dir = worker.folder.attempt_dir(record.id, record.token)
        self._log_path = self._dir / LOG_FILE
        self._relay = Relay(worker.quick, hold, record, self._log_path)
        self._needs = Needs(self._relay, keeper)
        self._watch: MemoryWatch | None = None
        self._uploads = Uploader(worker.store.put_folder, self._dir / UPLOADING)
        self._is_heard = False
        """The runner has said something."""

    def run(self) -> Ending:
        """Work until there is an outcome."""
        try:
            return self._with_memory(self._work())
        finally:
            self._uploads.close()
            self._needs.uses.close()

    def _work(self) -> Ending:
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            self._log_path.touch()
            if (done := self._earlier_done()) is not None:
                return self._hand_over(done)
            self._relay.log(f"attempt {self._record.token} on {self._worker.info.name}")
            for log in lost_logs(self._worker, self._record):
                self._relay.note_log(log)
            start = prepare(self._worker, self._record, self._relay, self._keeper.deadline, self._needs)
            if self._keeper.stop_reason is not None:
                return self._stopped(self._keeper.stop_reason)
            last_word, exit_code = self._drive(start)
            if not self._finish_uploads(last_word) and _pauses_by_itself(last_word, self._keeper):
                return self._failed(FailureClass.STORE, "the checkpoint to go on from is not in the store")
            return self._explain(last_word, exit_code)
        except Fenced:
            raise
        except Stopped:
            return self._stopped(self._keeper.stop_reason or StopReason.YIELD)
        except NoAccess as error:
            return self._refused(error.repository)
        except JobError as error:
            return self._failed(error.failure, error.text)
        except (StoreError, Unreachable, NotAllowed) as error:
            return self._failed(FailureClass.STORE, str(error))
        except OSError as error:
            if is_disk_full(error):
                self._worker.cache.note_full()
                return self._failed(FailureClass.STORE, f"the host's disk is full: {error}")
            return self._failed(FailureClass.HOST, f"the host's disk or system failed: {error}")
        except Exception as error:  # an attempt must not end without an outcome
            logger.exception("job %s: the supervisor failed", self._record.id)
            text = f"the worker failed: {type(error).__name__}: {error}"
            return self._failed(FailureClass.INTERNAL, text, blames_host=True)

    def commit(self, ending: Ending) -> Ended:
        """Write the outcome, for as long as Redis may be away; a worker that leaves waits less.

        What could not be written is not lost: the lease runs out, or the next attempt on this host
        finds what was done.

        Raises:
            Fenced: the assignment is lost.
        """
        started_at = time.monotonic()
        while True:
            try:
                self._flush_last()
                return Ended(
                    self._worker.transitions.finish(self._hold, self._worker.info.id, ending), ending
                )
            except RedisError:
                leaves = self._worker.leaves.is_set()
                patience = LEAVE_SECONDS if leaves else self._worker.settings.outage_seconds
                if time.monotonic() - started_at > patience:
                    raise
                time.sleep(RETRY_SECONDS)

    def _flush_last(self) -> None:
        try:
            self._relay.flush(is_last=True)
        except OSError as error:
            logger.warning("job %s: the end of its log was not read: %s", self._record.id, error)

    def clean(self, state: JobState) -> None:
        """What an ended job leaves on this host is its log; the rest is in the store."""
        if state.is_terminal:
            for folder in [
                self._dir,
                *self._worker.folder.earlier_attempts(self._record.id, self._record.token),
            ]:
                for name in (CHECKPOINTS, UPLOADING, "adapter", "resume", DONE_MARKER):
                    _remove(folder / name)

    def _earlier_done(self) -> Done | None:
        """The result of an earlier attempt that finished here but could not say so."""
        for folder in self._worker.folder.earlier_attempts(self._record.id, self._record.token):
            if (marker := folder / DONE_MARKER).exists():
                self._relay.log(f"attempt {folder.name} had finished here; handing over its result")
                return Done.model_validate_json(marker.read_text())
        return None

    def _drive(self, start: Start) -> tuple[Done | Failed | None, int]:
        """Have a runner do the job: its last word, if it had one, and the exit code of one that ended."""
        runners = self._worker.runners
        room = Room(self._record.reserved_bytes, self._worker.info.budget_bytes)
        while True:
            engaged = runners.take(runner_name(start.spec), room, self._log_path)
            last_word: Done | Failed | None = None
            try:
                last_word = self._converse(engaged, start)
            finally:
                self._keeper.detach()
                exit_code = self._let_go(engaged, start, last_word)
            self._keeper.check()
            if self._is_heard or not engaged.is_warm:
                return last_word, exit_code
            # It left just when it was given the job, of which it has seen nothing.

    def _converse(self, engaged: Engaged, start: Start) -> Done | Failed | None:
        """Hear the runner until its last word; nothing when it ends without one."""
        runner = engaged.process
        last_word: Done | Failed | None = None
        try:
            runner.send(start.model_copy(update={"deadline": self._keeper.deadline}))
            self._keeper.attach(runner)
            self._relay.note_spawn(runner.pid, is_warm=engaged.is_warm)
            self._relay.flush()
            with self._watching(runner) as watch:
                while last_word is None:
                    self._keeper.check()
                    last_word = self._listen(runner, watch)
                    self._relay_notes(watch)
                    self._relay_uploads()
                    self._relay.flush()
        except EOFError:
            pass
        return last_word

    def _let_go(self, engaged: Engaged, start: Start, last_word: Done | Failed | None) -> int:
        """Have the runner wait for another job if it can be trusted with one; else its exit code."""
        watch = self._watch
        is_calm = watch is not None and not watch.is_shrunk and watch.stop_text is None
        if is_calm and last_word is not None and is_kept(start, last_word):
            self._worker.runners.keep(engaged, self._needs.uses)
            self._needs.uses = Uses()  # what the runner has loaded stays for as long as it waits
            return 0
        return self._worker.runners.end(engaged)

    def _watching(self, runner: RunnerProcess) -> MemoryWatch:
        def shrink() -> None:
            runner.send(Shrink(job=self._record.id, token=self._record.token))

        budget = Budget(self._record.reserved_bytes, self._worker.info.backend != Backend.CUDA)
        self._watch = MemoryWatch(runner.pid, budget, Orders(shrink, self._keeper.stop_for_memory))
        return self._watch

    def _relay_notes(self, watch: MemoryWatch) -> None:
        for note in watch.notes():
            self._relay.note_memory(note)

    def _listen(self, runner: RunnerProcess, watch: MemoryWatch) -> Done | Failed | None:
        """Take everything the runner has said by now; its last word, if that was among it."""
        message = runner.receive(RECEIVE_SECONDS)
        while message is not None:
            self._is_heard = True
            watch.hear(message)
            match message:
                case Done() | Failed():
                    return message
                case Checkpoint():
                    self._uploads.add(message)
                case _:
                    self._relay.take(message)
            message = runner.receive(0)
        return None

    def _relay_uploads(self) -> None:
        for one in self._uploads.ended():
            match one:
                case KeptCheckpoint():
                    self._relay.note_checkpoint(one)
                case NotStored(step=step, why=why):
                    self._relay.log(f"warning: checkpoint {step} is not in the store: {why}")

    def _finish_uploads(self, last_word: Done | Failed | None) -> bool:
        """Wait until the last checkpoint is in the store, so that any host can go on from it; whether it is.

        What could not be stored is tried again, unless the job is done: then its adapter is what matters.

        Raises:
            Fenced: the assignment is lost.
        """
        is_done = isinstance(last_word, Done) and last_word.stopped is None
        started_at = time.monotonic()
        while not self._uploads.is_idle(RECEIVE_SECONDS) or (self._uploads.left() and not is_done):
            self._keeper.check()
            self._relay_uploads()
            self._relay.flush()
            if time.monotonic() - started_at > FLUSH_SECONDS or self._leaves_without_store(started_at):
                break
            if self._uploads.is_idle(0):
                time.sleep(RETRY_SECONDS)
                self._uploads.retry()
        self._relay_uploads()
        left = None if is_done else self._uploads.left()
        if left is not None:
            self._relay.note_not_stored(left.step, left.why)
        return left is None

    def _leaves_without_store(self, started_at: float) -> bool:
        """A worker that was told to stop does not wait for a store that is away: what is here stays here."""
        return (
            self._worker.leaves.is_set()
            and self._uploads.is_idle(0)
            and time.monotonic() - started_at > LEAVE_SECONDS
        )

    def _explain(self, last_word: Done | Failed | None, exit_code: int) -> Ending:
        match last_word:
            case Done(stopped=None):
                return self._hand_over(last_word)
            case Done(stopped=StopReason() as reason, result=result):
                return self._stopped(reason, result)
            case Failed(failure=failure, text=text):
                if last_word.is_disk_full:
                    self._worker.cache.note_full()
                return self._failed(failure, text)
            case None if self._keeper.stop_reason is not None:
                return self._stopped(self._keeper.stop_reason)
            case None if exit_code == EXIT_DEADLINE:
                text = "the runner left at its deadline: this worker had stood still"
                return self._failed(FailureClass.HOST, text)
            case _:
                failure, text = cause_of_death(exit_code, self._watch)
                return self._failed(failure, text, blames_host=failure is FailureClass.INTERNAL)

    def _hand_over(self, done: Done) -> Ending:
        adapter = adapter_bytes = None
        if done.output_dir is not None:
            adapter = self._worker.store.put_folder(Path(done.output_dir))
            adapter_bytes = bytes_below(Path(done.output_dir))
        result = done.result
        if result is not None and result.predicted_peak_bytes is None:
            result = result.model_copy(update={"predicted_peak_bytes": self._record.reserved_bytes})
        return Ending(
            JobState.COMPLETED,
            "completed",
            result=result,
            adapter=adapter,
            adapter_bytes=adapter_bytes,
            log=self._store_log(),
            measured=self._measured(result),
        )

    def _measured(self, result: TrainResult | None) -> Measured | None:
        """What the job teaches of ones like it; nothing if it was cut anew in the middle."""
        request, info = self._record.request, self._worker.info
        if request is None or result is None:
            return None
        is_replanned = "probe_factor" in result.facts.get("memory", {})
        if self._watch is not None and self._watch.is_shrunk and not is_replanned:
            return None
        return measured(request, result, info.chip, info.mlx)

    def _stopped(self, reason: StopReason, result: TrainResult | None = None) -> Ending:
        if reason is StopReason.SHRINK:
            seen = self._watch.stop_text if self._watch else None
            return self._failed(FailureClass.MEMORY, f"stopped before memory ran out: {seen}")
        self._relay.log(f"stopped: {reason}")
        if reason is StopReason.CANCEL:
            return Ending(JobState.CANCELLED, "cancelled", log=self._store_log())
        if reason is StopReason.PRUNE:
            return Ending(JobState.CANCELLED, "pruned", result=result, log=self._store_log())
        if reason is StopReason.PAUSE:
            return Ending(JobState.PAUSED, "paused", result=result, log=self._store_log())
        return Ending(JobState.QUEUED, "yielded", {"host": self._worker.info.name}, log=self._store_log())

    def _refused(self, repository: str) -> Ending:
        """The hub does not let this host have the model: another host may, and this one is not asked again
        for a while.
        """
        self._worker.access.note_refused(repository)
        self._tell_host()
        self._relay.log(f"{self._worker.info.name} has no access to {repository}; the job goes elsewhere")
        data = {"host": self._worker.info.name, "model": repository}
        pause = REFUSED_SECONDS if self._seems_at_hand() else 0.0
        return Ending(JobState.QUEUED, "no access", data, log=self._store_log(), pause_seconds=pause)

    def _seems_at_hand(self) -> bool:
        """Whether placement was told that the base needs no fetching here, and so may send the job again."""
        request = self._record.request
        return request is not None and request.model in self._worker.info.cached

    def _tell_host(self) -> None:
        """Before the job is queued again: it must not be placed here once more."""
        try:
            self._worker.tell()
        except RedisError as error:
            logger.warning("job %s: the fleet is not told of this host's state: %s", self._record.id, error)

    def _failed(self, failure: FailureClass, text: str, *, blames_host: bool = False) -> Ending:
        if failure is FailureClass.MEMORY:
            return self._out_of_memory(text)
        if failure is FailureClass.STORE:
            self._tell_host()
        why = self._failure(failure, text)
        return ending_after(why, self._record, self._store_log(), blames_host=blames_host)

    def _out_of_memory(self, text: str) -> Ending:
        """Less at once the next time; after the third time on a larger host, if there is one."""
        cut = self._watch.cut if self._watch else None
        recovery, text = decide(self._worker.info, self._record, cut, text, self._hosts)
        why = self._failure(FailureClass.MEMORY, text)
        return ending_out_of_memory(why, recovery, self._store_log())

    def _hosts(self) -> list[HostRoom] | None:
        try:
            alive_seconds = self._worker.settings.heartbeat_seconds * MISSED_BEATS
            return fleet.read_rooms(self._worker.quick.redis, alive_seconds)
        except RedisError as error:
            logger.warning("job %s: the hosts cannot be read: %s", self._record.id, error)
            return None

    def _with_memory(self, ending: Ending) -> Ending:
        """The ending with what the watch saw, and with the cut that it brought about."""
        if (watch := self._watch) is None:
            return ending
        samples = watch.timeline
        try:
            self._relay_notes(watch)
            (self._dir / MEMORY_FILE).write_text(dump_samples(samples) + "\n")
        except OSError as error:
            logger.warning("job %s: %s is not written: %s", self._record.id, MEMORY_FILE, error)
        limit = ending.memory_limit
        if limit is None and watch.is_shrunk and watch.cut is not None:
            limit = keep(self._record.memory_limit, watch.cut)
        return replace(ending, memory=samples, memory_limit=limit)

    def _failure(self, failure: FailureClass, text: str) -> Failure:
        """The failure, which is in the job's log too."""
        line = f"failed ({failure}): {text}"
        try:
            self._relay.log(line)
        except OSError as error:
            logger.warning("job %s: %s; and its log cannot be written: %s", self._record.id, line, error)
        return Failure(failure=failure, text=text, host_name=self._worker.info.name, token=self._record.token)

    def _store_log(self) -> AttemptLog | None:
        """What this attempt printed, up to now."""
        try:
            size = self._log_path.stat().st_size
            digest = self._worker.store.put_file(self._log_path, size)
            return AttemptLog(token=self._record.token, digest=digest, bytes=size)
        except (GraftError, OSError) as error:
            logger.warning("job %s: the log stays in %s: %s", self._record.id, self._log_path, error)
            return None


def _pauses_by_itself(last_word: Done | Failed | None, keeper: LeaseKeeper) -> bool:
    """Having come to the step at which it pauses, not because somebody wants it to stop now."""
    return (
        isinstance(last_word, Done) and last_word.stopped is StopReason.PAUSE and keeper.stop_reason is None
    )


def bytes_below(folder: Path) -> int:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
