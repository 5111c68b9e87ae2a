"""Puts checkpoints into the store while the runner trains on.

The runner removes old checkpoints as it goes, so each is held first: the same files under another folder.
At most two wait at a time, the newest and the best; what comes later replaces what has not begun. Of what
could not be stored the newest stays held, to be tried again once the runner makes no newer one.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from graft_scheduler.checkpoints import KeptCheckpoint, best_of, surviving
from graft_scheduler.errors import GraftError
from graft_scheduler.messages import Checkpoint
from graft_scheduler.states import Digest

logger = logging.getLogger(__name__)

UPLOADING = "uploading"
"""A folder of the attempt's own."""


@dataclass(frozen=True, slots=True)
class Held:
    """A checkpoint that nobody can remove meanwhile."""

    step: int
    loss: float | None
    folder: Path
    bytes: int


@dataclass(frozen=True, slots=True)
class NotStored:
    """A checkpoint that is not in the store, and why; a later try, or the next one, may be luckier."""

    step: int
    why: str


class Uploader:
    """One attempt's uploads. All calls come from the attempt's own thread; the work is another's."""

    def __init__(self, put: Callable[[Path], Digest], folder: Path) -> None:
        self._put, self._folder = put, folder
        self._changed = threading.Condition()
        self._waiting: list[Held] = []
        self._current: Held | None = None
        self._failed: tuple[Held, NotStored] | None = None
        """The newest that could not be stored, until one that is as new is in the store."""
        self._ended: list[KeptCheckpoint | NotStored] = []
        self._best: KeptCheckpoint | None = None
        """The best that was uploaded: only a better one is worth more than being the newest."""
        self._thread: threading.Thread | None = None
        self._count = 0
        self._is_closed = False

    def add(self, checkpoint: Checkpoint) -> None:
        """Have it uploaded; one that its runner has replaced already is passed over."""
        held = self._hold(checkpoint)
        if held is None:
            logger.info("job %s: checkpoint %d is gone already", checkpoint.job, checkpoint.step)
            return
        with self._changed:
            waiting = [one for one in self._waiting if one.step < held.step] + [held]
            kept = [one for one in surviving(waiting) if one is held or self._is_better(one)]
            dropped = [one for one in self._waiting if one not in kept]
            self._waiting = kept
            self._changed.notify_all()
        for one in dropped:
            shutil.rmtree(one.folder, ignore_errors=True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"upload {checkpoint.job}", daemon=True)
            self._thread.start()

    def ended(self) -> list[KeptCheckpoint | NotStored]:
        """What has been uploaded, or could not be, since this was last asked; in the order of their steps."""
        with self._changed:
            found, self._ended = self._ended, []
        return found

    def is_idle(self, wait_seconds: float) -> bool:
        """Whether all that was added has been uploaded or given up; waits so long for it."""
        with self._changed:
            return self._changed.wait_for(lambda: self._current is None and not self._waiting, wait_seconds)

    def left(self) -> NotStored | None:
        """The newest of what is not in the store yet, or could not be put there."""
        with self._changed:
            left = [self._failed[1]] if self._failed is not None else []
            under_way = [one for one in (self._current, *self._waiting) if one is not None]
            left += [NotStored(one.step, "its upload has not ended") for one in under_way]
        return max(left, key=lambda one: one.step, default=None)

    def retry(self) -> None:
        """Try once more what could not be stored; for when all is idle, and nothing more will be added."""
        with self._changed:
            if self._failed is not None:
                self._waiting.append(self._failed[0])
                self._changed.notify_all()

    def close(self) -> None:
        """Begin nothing more; an upload that is on its way ends as it may, and nobody hears of it."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is None or self._current is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _is_better(self, one: Held) -> bool:
        if one.loss is None:
            return False
        return self._best is None or self._best.loss is None or one.loss < self._best.loss

    def _hold(self, checkpoint: Checkpoint) -> Held | None:
        """The checkpoint's files under another folder; nothing where they are being removed right now."""
        self._count += 1
        source = Path(checkpoint.path)
        folder = self._folder / f"{checkpoint.step}.{self._count}"
        size = 0
        try:
            identity = source.stat().st_ino
            for path in sorted(source.rglob("*")):
                if path.is_file():
                    target = folder / path.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link(path, target)
                    size += target.stat().st_size
            is_whole = source.stat().st_ino == identity  # what is renamed away is removed, or replaced
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return Held(checkpoint.step, checkpoint.loss, folder, size)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                held = self._current = self._waiting.pop(0)
            ended = self._upload(held)
            with self._changed:
                self._note(held, ended)
                self._current = None
                self._changed.notify_all()

    def _note(self, held: Held, ended: KeptCheckpoint | NotStored) -> None:
        failed, self._failed = self._failed, None
        if isinstance(ended, KeptCheckpoint):
            self._best = best_of([one for one in (self._best, ended) if one is not None])
        else:
            self._failed = (held, ended)
        if failed is None or failed[0] is not held or isinstance(ended, KeptCheckpoint):
            self._ended.append(ended)  # that it failed once more is no news
        if failed is not None and failed[0] is not held:
            self._let_go(failed[0])

    def _upload(self, held: Held) -> KeptCheckpoint | NotStored:
        try:
            digest = self._put(held.folder)
        except (GraftError, OSError) as error:
            return NotStored(held.step, str(error))
        except Exception as error:  # the attempt must hear of it, and the next checkpoint have its turn
            logger.exception("checkpoint %d was not stored", held.step)
            return NotStored(held.step, f"{type(error).__name__}: {error}")
        self._let_go(held)
        return KeptCheckpoint(step=held.step, digest=digest, loss=held.loss, bytes=held.bytes)

    def _let_go(self, held: Held) -> None:
        shutil.rmtree(held.folder, ignore_errors=True)
        with suppress(OSError):
            self._folder.rmdir()


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk has no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
