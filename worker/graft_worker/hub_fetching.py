"""Brings a model from the hub into the hub's own cache, where it is needed and before a runner starts.

The worker asks a child (`hub_command.py`) to do it, so that it can be given up at any time, and makes room
before anything large is fetched.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, Self

from graft_scheduler.errors import InvalidInput, StoreError, Unreachable
from graft_scheduler.jobs import leads_out
from graft_worker.cache.host_cache import Coming, HostCache, folder_bytes
from graft_worker.cache.items import Item, hub_folder, model_item
from graft_worker.cache.leftovers import clear_blob_partials
from graft_worker.cache.notes import Note
from graft_worker.cache.uses import Uses
from graft_worker.cached_models import has_weights, is_at_hand

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
POLL_SECONDS = 0.25
TELL_SECONDS = 2.0
"""Between two looks at how much has come."""
WORDS = {"commit", "done", "error"}
"""Of which each thing that the child says has one."""
STALLED_SECONDS = 300.0
"""A fetch in which nothing comes for so long is given up."""


class NoAccess(Exception):
    """The hub does not let this host have the model, of this hub id."""

    def __init__(self, repository: str) -> None:
        super().__init__(repository)
        self.repository = repository


class Watch(Protocol):
    """Whoever waits for a fetch."""

    def check(self) -> None:
        """Raises when nobody waits any more."""

    def tell(self, what: str, brought: int, total: int) -> None:
        """So many bytes of so many have come."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be fetched."""

    commit: str
    bytes: int


def fetch_from_hub(cache: HostCache, repository: str, revision: str | None, uses: Uses, watch: Watch) -> Item:
    """The model at this revision, which is here now and stays until `uses` is closed.

    Raises:
        NoAccess: it is gated or private, or there is no such model.
        InvalidInput: it has no such revision, or is none that MLX can load.
        StoreError: there is no room for it.
        Unreachable: the hub does not answer, and the model is not here.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        item = model_item(f"{repository}@{revision}")
        folder = cache.use(item, uses)
        if cache.note(item).is_whole and is_at_hand(cache.root, item, folder):
            return item
    if revision is not None and leads_out(revision):
        raise InvalidInput(
            f"the revision of {repository} is {revision!r}; it must be a branch, a tag or a commit"
        )
    watch.check()
    with HubChild(repository, revision, watch) as child:
        plan = child.plan()
        item = model_item(f"{repository}@{plan.commit}")
        folder = cache.use(item, uses)
        _note_ours(cache, item, folder)
        place = hub_folder(cache.hub, repository)
        clear_blob_partials(place)
        try:
            with cache.room(folder, plan.bytes, item.name) as coming:
                child.fetch(place / "blobs", plan, coming)
        finally:
            child.end()
            clear_blob_partials(place)
    cache.write_note(item, cache.note(item).model_copy(update={"is_whole": True}))
    return item


def _note_ours(cache: HostCache, item: Item, folder: Path) -> None:
    """What Graft begins to bring it may remove again; what is here without its doing it may not."""
    before = cache.note(item)
    if not before.is_ours and not has_weights(folder):
        kept = tuple(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
        before = Note(source=item.repository, is_ours=True, kept=kept)
    cache.write_note(item, before.model_copy(update={"is_whole": False}))


class HubChild:
    """The process that fetches; it ends with this."""

    def __init__(self, repository: str, revision: str | None, watch: Watch) -> None:
        self._repository, self._watch = repository, watch
        self._said: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "graft_worker.hub_command", repository, *([revision] if revision else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, name=f"hub {repository}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def end(self) -> None:
        """It is not needed any more, and what it was at stays as it is."""
        self._process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.end()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def plan(self) -> Plan:
        """What it would fetch."""
        growth = _Growth(time.monotonic())

        def look() -> None:
            if growth.is_stalled(0, time.monotonic()):
                raise Unreachable(f"the hub says nothing of {self._repository}; it is tried again")

        said = self._next(look)
        return Plan(str(said["commit"]), int(said["bytes"]))

    def fetch(self, blobs: Path, plan: Plan, coming: Coming) -> None:
        """Have it fetched; `blobs` is where it goes."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which the next thing it said tells
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
        before = folder_bytes(blobs)
        growth = _Growth(time.monotonic())

        def look() -> None:
            if not growth.is_due(time.monotonic()):
                return
            brought = max(0, folder_bytes(blobs) - before)
            if growth.is_stalled(brought, time.monotonic()):
                raise Unreachable(f"the hub sends nothing of {self._repository} any more; it is tried again")
            coming.brought = min(brought, plan.bytes)
            self._watch.tell(self._repository, min(brought, plan.bytes), plan.bytes)

        self._next(look)

    def _next(self, look: Any) -> dict[str, Any]:
        """The next thing it says; meanwhile `look` is called, and whoever waits may give up."""
        while True:
            self._watch.check()
            try:
                said = self._said.get(timeout=POLL_SECONDS)
            except Empty:
                look()
                continue
            if "error" in said:
                raise _error(self._repository, said)
            return said

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if (said := _parsed(line)) is not None:
                self._said.put(said)
            else:  # something that a library printed
                logger.info("fetching %s: %s", self._repository, line.decode(errors="replace").rstrip())
        self._said.put({"error": "away", "text": "the process that fetches it ended without a word"})


@dataclass(slots=True)
class _Growth:
    """Whether bytes come."""

    since: float
    brought: int = 0
    looked_at: float = 0.0

    def is_due(self, now: float) -> bool:
        if now - self.looked_at < TELL_SECONDS:
            return False
        self.looked_at = now
        return True

    def is_stalled(self, brought: int, now: float) -> bool:
        if brought != self.brought:
            self.brought, self.since = brought, now
        return now - self.since > STALLED_SECONDS


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What the child says in this line; nothing if it was not the child."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and said.keys() & WORDS else None


def _error(repository: str, said: dict[str, Any]) -> Exception:
    text = str(said.get("text", ""))
    match said["error"]:
        case "no access":
            return NoAccess(repository)
        case "gone":
            return InvalidInput(f"the hub has no such model: {text}")
        case "full":
            error = StoreError(f"the disk is full while {repository} is fetched: {text}")
            error.__cause__ = OSError(28, "No space left on device")
            return error
        case _:
            return Unreachable(f"{repository} is not on this host, and the hub does not answer: {text}")
