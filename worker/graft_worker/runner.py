"""The spawned process that does jobs: decodes one, chooses its handler, says how it ended, waits for more.

It knows nothing of Redis or Celery. Two threads guard it: it leaves when its supervisor is gone
and when its deadline has passed, on a clock that counts sleep, so that it can never train on
beside its successor.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from graft_scheduler.channel import Channel, sleepless_clock
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.messages import (
    Done,
    Exit,
    Extend,
    Failed,
    Hello,
    Message,
    RunnerMessage,
    Shrink,
    Start,
    Stop,
    parse_supervisor_message,
)
from graft_scheduler.runner_process import EXIT_DEADLINE, EXIT_ORPHANED
from graft_scheduler.states import FailureClass, StopReason
from graft_worker.cache.disk import FULL
from graft_worker.link import JobError, Link

DONE_MARKER = "DONE"
"""Holds the `Done` message: an attempt's folder with it needs no more work, only to be handed over."""
WATCH_SECONDS = 0.1
KEPT_AFTER_STOP = (None, StopReason.PAUSE, StopReason.PRUNE)
"""Why a job's runner may have stopped, to wait for another: it was done, or a study goes on."""
STARVED_WORDS = ("cannot allocate memory", "failed to map segment", "can't start new thread")
"""From what Python and the loader say when there is no memory for a library or a thread."""

Handler = Callable[[Start, Link], Done]


class JobLink:
    """What one job sees of the channel; what is said of another passes it by."""

    def __init__(self, start: Start, channel: Channel) -> None:
        self.start = start
        self._channel = channel
        self._stop: StopReason | None = None
        self._is_shrink_asked = threading.Event()

    def report(self, message: RunnerMessage) -> None:
        self._channel.send(message)

    def stop_reason(self) -> StopReason | None:
        return self._stop

    def shrink_requested(self) -> bool:
        if not self._is_shrink_asked.is_set():
            return False
        self._is_shrink_asked.clear()
        return True

    def take(self, order: Stop | Shrink) -> None:
        """Note what is asked of the job."""
        match order:
            case Stop(reason=reason):
                self._stop = reason
            case Shrink():
                self._is_shrink_asked.set()


class Pipe:
    """The runner's end of the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._jobs: queue.SimpleQueue[JobLink] = queue.SimpleQueue()
        self._current: JobLink | None = None
        self._deadline = float("inf")

    def watch(self) -> None:
        """Start the two guards."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        threading.Thread(target=self._guard_deadline, name="deadline", daemon=True).start()

    def next_job(self) -> JobLink:
        """The next job, when it comes."""
        return self._jobs.get()

    def rest(self, seconds: float) -> None:
        """No job is done any more; leave after so long without another."""
        self._current = None
        self._deadline = sleepless_clock() + seconds

    def _read(self) -> None:
        while True:
            try:
                frame = self._channel.receive()
            except (EOFError, OSError, ValueError):
                os._exit(EXIT_ORPHANED)
            if frame is not None:
                self._take(frame)

    def _take(self, frame: bytes) -> None:
        link = self._current
        match message := parse_supervisor_message(frame):
            case Start():
                self._deadline = message.deadline
                self._current = JobLink(message, self._channel)
                self._jobs.put(self._current)
            case Exit():
                os._exit(0)
            case _ if link is None or _differ(message, link.start):
                pass  # of a job that has ended
            case Extend(deadline=deadline):
                self._deadline = deadline
            case Stop() | Shrink():
                link.take(message)

    def _guard_deadline(self) -> None:
        while sleepless_clock() < self._deadline:
            time.sleep(WATCH_SECONDS)
        os._exit(EXIT_DEADLINE)


def main(descriptor: int) -> int:
    """Do the jobs that come over the channel; 0 when the outcome of the last was said, whatever it is."""
    pipe, handlers = Pipe(Channel(socket.socket(fileno=descriptor))), Handlers()
    pipe.watch()
    while True:
        link = pipe.next_job()
        start = link.start
        _print_to(start.log_path)
        link.report(Hello(job=start.job, token=start.token, pid=os.getpid()))
        last_word = run(start, link, handlers)
        stays = is_kept(start, last_word)
        if stays:
            pipe.rest(start.stay_seconds)
        link.report(last_word)
        if not stays:
            return 0


def is_kept(start: Start, last_word: Done | Failed) -> bool:
    """Whether the runner waits for another job after its last word on this one; both ends go by this.

    Not after anything that nobody foresaw, after trouble with memory, or when a person wants the job
    off this host.
    """
    match last_word:
        case Done(stopped=reason):
            return start.stay_seconds > 0 and reason in KEPT_AFTER_STOP
        case Failed(failure=failure):
            return start.stay_seconds > 0 and failure is FailureClass.DIVERGED


def run(start: Start, link: Link, handlers: Handlers) -> Done | Failed:
    """The last word on a job."""
    try:
        done = handlers.choose(start)(start, link)
        if done.stopped is None:
            _mark_done(Path(start.work_dir), done)
        return done
    except JobError as error:
        return _failed(start, error.failure, error.text)
    except MemoryError:
        traceback.print_exc()
        return _failed(start, FailureClass.MEMORY, "out of memory")
    except OSError as error:
        traceback.print_exc()
        if error.errno == errno.ENOMEM:
            return _failed(start, FailureClass.MEMORY, f"out of memory: {error}")
        if error.errno in FULL:
            last_word = _failed(start, FailureClass.STORE, f"the host's disk is full: {error}")
            return last_word.model_copy(update={"is_disk_full": True})
        return _failed(start, FailureClass.HOST, f"the host's disk or system failed: {error}")
    except Exception as error:  # the runner's one boundary: everything becomes a message
        traceback.print_exc()
        is_starved = any(word in str(error).lower() for word in STARVED_WORDS)
        failure = FailureClass.MEMORY if is_starved else FailureClass.INTERNAL
        return _failed(start, failure, f"{type(error).__name__}: {error}")


class Handlers:
    """The code for each kind of job, with what it keeps from one job to the next."""

    def __init__(self) -> None:
        self._train: Handler | None = None

    def choose(self, start: Start) -> Handler:
        """The code for the kind of job, imported only now: MLX takes seconds."""
        match start.spec:
            case CountJob():
                from graft_worker import counting

                return counting.count
            case TrainJob():
                self._train = self._train or _training()
                return self._train


def _training() -> Handler:
    from graft_worker.engine.resident import Resident
    from graft_worker.engine.training import train

    gc.freeze()  # what was imported stays: looking through it took a tenth of a second each time
    return partial(train, resident=Resident())


def _differ(message: Message, start: Start) -> bool:
    return (message.job, message.token) != (start.job, start.token)


def _print_to(path: str | None) -> None:
    """From now on; what lies in the buffers of C libraries belongs to where it went before."""
    if path is None:
        return
    ctypes.CDLL(None).fflush(None)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for output in (sys.stdout, sys.stderr):
        output.flush()
        os.dup2(log, output.fileno())
    os.close(log)


def _mark_done(work_dir: Path, done: Done) -> None:
    aside = work_dir / f".{DONE_MARKER}"
    with aside.open("w") as file:
        file.write(done.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    aside.replace(work_dir / DONE_MARKER)


def _failed(start: Start, failure: FailureClass, text: str) -> Failed:
    return Failed(job=start.job, token=start.token, failure=failure, text=text)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
