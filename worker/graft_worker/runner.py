"""The spawned process that does a job: decodes it, chooses its handler, says how it ended.

It knows nothing of Redis or Celery. Two threads guard it: it leaves when its supervisor is gone
and when its deadline has passed, on a clock that counts sleep, so that it can never train on
beside its successor.
"""

from __future__ import annotations

import errno
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from graft_scheduler.channel import Channel, sleepless_clock
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.messages import (
    Done,
    Exit,
    Extend,
    Failed,
    Hello,
    RunnerMessage,
    Shrink,
    Start,
    Stop,
    parse_supervisor_message,
)
from graft_scheduler.runner_process import EXIT_DEADLINE, EXIT_ORPHANED
from graft_scheduler.states import FailureClass, StopReason
from graft_worker.link import JobError, Link

DONE_MARKER = "DONE"
"""Holds the `Done` message: an attempt's folder with it needs no more work, only to be handed over."""
WATCH_SECONDS = 0.1
STARVED_WORDS = ("cannot allocate memory", "failed to map segment", "can't start new thread")
"""From what Python and the loader say when there is no memory for a library or a thread."""

Handler = Callable[[Start, Link], Done]


class PipeLink:
    """The runner's end of the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._starts: queue.SimpleQueue[Start] = queue.SimpleQueue()
        self._stop: StopReason | None = None
        self._is_shrink_asked = threading.Event()
        self._deadline = float("inf")

    def watch(self) -> None:
        """Start the two guards."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        threading.Thread(target=self._guard_deadline, name="deadline", daemon=True).start()

    def next_start(self) -> Start:
        """The next job, when it comes."""
        return self._starts.get()

    def report(self, message: RunnerMessage) -> None:
        self._channel.send(message)

    def stop_reason(self) -> StopReason | None:
        return self._stop

    def shrink_requested(self) -> bool:
        if not self._is_shrink_asked.is_set():
            return False
        self._is_shrink_asked.clear()
        return True

    def _read(self) -> None:
        while True:
            try:
                frame = self._channel.receive()
            except (EOFError, OSError, ValueError):
                os._exit(EXIT_ORPHANED)
            if frame is not None:
                self._take(frame)

    def _take(self, frame: bytes) -> None:
        match parse_supervisor_message(frame):
            case Start() as start:
                self._deadline = start.deadline
                self._starts.put(start)
            case Extend(deadline=deadline):
                self._deadline = deadline
            case Stop(reason=reason):
                self._stop = reason
            case Shrink():
                self._is_shrink_asked.set()
            case Exit():
                os._exit(0)

    def _guard_deadline(self) -> None:
        while sleepless_clock() < self._deadline:
            time.sleep(WATCH_SECONDS)
        os._exit(EXIT_DEADLINE)


def main(descriptor: int) -> int:
    """Do the job that comes over the channel; 0 when its outcome was said, whatever it is."""
    link = PipeLink(Channel(socket.socket(fileno=descriptor)))
    link.watch()
    start = link.next_start()
    link.report(Hello(job=start.job, token=start.token, pid=os.getpid()))
    link.report(run(start, link))
    return 0


def run(start: Start, link: Link) -> Done | Failed:
    """The last word on a job."""
    try:
        done = choose_handler(start)(start, link)
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
        return _failed(start, FailureClass.HOST, f"the host's disk or system failed: {error}")
    except Exception as error:  # the runner's one boundary: everything becomes a message
        traceback.print_exc()
        is_starved = any(word in str(error).lower() for word in STARVED_WORDS)
        failure = FailureClass.MEMORY if is_starved else FailureClass.INTERNAL
        return _failed(start, failure, f"{type(error).__name__}: {error}")


def choose_handler(start: Start) -> Handler:
    """The code for the kind of job, imported only now: MLX takes seconds."""
    match start.spec:
        case CountJob():
            from graft_worker import counting

            return counting.count
        case TrainJob():
            from graft_worker.engine import training

            return training.train


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
