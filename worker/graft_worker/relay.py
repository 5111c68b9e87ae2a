"""Turns what a runner says and prints into writes to Redis: gathered, fenced, and kept while it is away."""

from __future__ import annotations

import codecs
import logging
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from redis.exceptions import RedisError

from graft_scheduler.checkpoints import KeptCheckpoint, surviving
from graft_scheduler.messages import (
    Evaluated,
    Log,
    PhaseChanged,
    Planned,
    Progress,
    Ready,
    RunnerMessage,
    Shrunk,
)
from graft_scheduler.records import AttemptLog, Hold, JobProgress, JobRecord
from graft_scheduler.transitions import Report, Transitions
from graft_worker.memory_judge import Action
from graft_worker.memory_watch import Note

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
"""Shortest time between two writes."""
AWAY_SECONDS = 3.0
"""Shortest time between two tries while Redis is away: each may take a while to fail."""
MAX_LINE = 4096
MAX_TAIL_BYTES = 1 << 18
"""Read from the log at once; a runner that prints more waits for the next write."""
MAX_LAST_BYTES = 1 << 21
"""Read of it at the end."""
MAX_KEPT_LINES = 10_000
"""Held while Redis is away; the file has them all."""
PROGRESS_FIELDS = set(JobProgress.model_fields) & set(Progress.model_fields)


class Relay:
    """One attempt's reports. All calls come from the attempt's own thread."""

    def __init__(self, transitions: Transitions, hold: Hold, record: JobRecord, log_path: Path) -> None:
        self._transitions = transitions
        self._hold = hold
        self.log_path = log_path
        self._log_position = 0
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest_of_line = ""
        self._lines: list[str] = []
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._checkpoints: list[KeptCheckpoint] = []
        self._logs: list[AttemptLog] = []
        self._progress = record.progress or JobProgress()
        self._has_news = False
        self._next_flush_at = 0.0

    @property
    def progress(self) -> JobProgress:
        return self._progress

    def take(self, message: RunnerMessage) -> None:
        """Note a message; `flush` writes it."""
        match message:
            case Progress():
                self._update(**message.model_dump(include=PROGRESS_FIELDS))
            case PhaseChanged(phase=phase):
                self._update(phase=phase)
                self._event("phase", phase=phase.value)
            case Planned():
                self._update(step=message.first_step, steps=message.steps)
                self._event("planned", **message.model_dump(exclude={"job", "token", "type"}))
            case Ready():
                self._event("ready", **message.model_dump(exclude={"job", "token", "type"}))
            case Evaluated(step=step, loss=loss, perplexity=perplexity):
                self._update(validation_loss=loss)
                self._event("evaluated", step=step, loss=loss, perplexity=perplexity)
            case Shrunk(step=step, cut=cut):
                self._event("shrunk", step=step, cut=cut.model_dump(mode="json"))
            case Log(level=level, text=text):
                self.log(text if level == "info" else f"{level}: {text}")
            case _:
                pass  # hello says nothing new; checkpoints and last words are the attempt's to act on

    def note_spawn(self, pid: int, *, is_warm: bool) -> None:
        """A runner was started just now, or one that waited for a job was given this one."""
        self._event("spawned", pid=pid, warm=is_warm)

    def note_memory(self, note: Note) -> None:
        """Memory runs short; `note` says what was done about it."""
        answer = {Action.SHRINK: "; it computes less at once", Action.STOP: "; it stops at a checkpoint"}
        self.log(f"warning: {note.reason}{answer.get(note.action, '')}")
        self._event(
            "memory",
            action=note.action.name.lower(),
            reason=note.reason,
            footprint_bytes=note.sample.footprint_bytes,
            available_bytes=note.sample.pressure.available_bytes,
        )

    def note_checkpoint(self, checkpoint: KeptCheckpoint) -> None:
        """A checkpoint is in the store: any host can go on from it."""
        earlier = [one for one in self._checkpoints if one.step < checkpoint.step]
        self._checkpoints = surviving([*earlier, checkpoint])
        self._event("checkpoint", step=checkpoint.step, digest=checkpoint.digest, loss=checkpoint.loss)

    def note_not_stored(self, step: int, why: str) -> None:
        """The attempt ends, and its last checkpoint is on this host only."""
        self.log(f"warning: checkpoint {step}, the last one, is not in the store: {why}")
        self._event("checkpoint not stored", step=step, why=why)

    def note_log(self, log: AttemptLog) -> None:
        """The log of an earlier attempt, which could not say so itself, is in the store."""
        self._logs.append(log)

    def log(self, text: str) -> None:
        """A line of our own in the job's log."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        with self.log_path.open("a") as log:
            log.write(f"{stamp} {text}\n")

    def flush(self, is_last: bool = False) -> None:
        """Write what there is, if it is time; without Redis it is kept.

        Raises:
            Fenced: the assignment is lost.
            RedisError: Redis is away, and this was to be the last.
        """
        if not is_last and time.monotonic() < self._next_flush_at:
            return
        self._next_flush_at = time.monotonic() + FLUSH_SECONDS
        self._read_log(is_last)
        if not (self._lines or self._events or self._has_news or self._checkpoints or self._logs):
            return
        report = Report(self._progress, self._checkpoints, self._logs, self._events, self._lines)
        try:
            self._transitions.report(self._hold, report)
        except RedisError as error:
            if is_last:
                raise
            logger.warning("job %s: report kept, Redis is away: %s", self._hold.job, error)
            self._next_flush_at = time.monotonic() + AWAY_SECONDS
            return
        self._lines, self._events, self._checkpoints, self._logs = [], [], [], []
        self._has_news = False

    def _update(self, **fields: Any) -> None:
        self._progress = self._progress.model_copy(update=fields)
        self._has_news = True

    def _event(self, name: str, **data: Any) -> None:
        self._events.append((name, data))

    def _read_log(self, is_last: bool) -> None:
        with self.log_path.open("rb") as log:
            if is_last:
                self._skip_to_the_end(log)
            log.seek(self._log_position)
            chunk = log.read(MAX_LAST_BYTES if is_last else MAX_TAIL_BYTES)
        self._log_position += len(chunk)
        # Progress bars of libraries end their lines with a carriage return.
        *whole, rest = re.split("[\r\n]+", self._rest_of_line + self._decode(chunk, final=is_last))
        if rest and (is_last or len(rest) > MAX_LINE):
            whole.append(rest)
            rest = ""
        self._rest_of_line = rest
        self._lines += [line[:MAX_LINE] for line in whole if line.strip()]
        del self._lines[:-MAX_KEPT_LINES]

    def _skip_to_the_end(self, log: BinaryIO) -> None:
        """Of a runner that printed faster than this could follow only the end is told; the store gets all."""
        behind = log.seek(0, os.SEEK_END) - self._log_position - MAX_LAST_BYTES
        if behind > 0:
            self._log_position += behind
            self._lines.append(f"({behind:,} bytes more are in the log in the store)")
