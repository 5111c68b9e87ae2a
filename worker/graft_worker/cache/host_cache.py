"""The cache of one host: within its bounds, least recently used first, never what is pinned or in use."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from graft_scheduler.errors import Conflict, GraftError, NotAllowed, NotFound, StoreError
from graft_scheduler.memory import format_bytes
from graft_scheduler.settings import Settings
from graft_scheduler.states import HostId
from graft_worker.cache.disk import device_of, is_disk_full, spare_bytes
from graft_worker.cache.items import Item, Kind, items_in
from graft_worker.cache.leftovers import clear_leftovers
from graft_worker.cache.notes import Note, forget_note, read_note, write_note
from graft_worker.cache.removal import finish_removals, remove_item
from graft_worker.cache.uses import Uses, alone, used_at
from graft_worker.cached_models import hub_cache

logger = logging.getLogger(__name__)

PINS = "pins"
"""A folder of the cache: what each worker that shares it keeps, a JSON list of names each."""
FULL_SECONDS = 600.0
"""A disk that turned out to be full is taken to be so for this long, unless something was removed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that is there."""

    item: Item
    folder: Path
    bytes: int
    used_at: float
    """Seconds since 1970."""
    note: Note
    is_pinned: bool
    is_in_use: bool

    @property
    def is_ours(self) -> bool:
        """Whether Graft brought it."""
        return self.item.kind is not Kind.HUB or self.note.is_ours

    @property
    def may_go(self) -> bool:
        return self.is_ours and not self.is_pinned and not self.is_in_use


@dataclass(slots=True)
class Coming:
    """Something that is being fetched."""

    folder: Path
    device: int
    bytes: int
    """That it needs in all."""
    had: int
    """Bytes that were in its folder before."""
    brought: int = 0
    """That are on the disk by now, as far as whoever fetches it has told."""

    @property
    def left(self) -> int:
        return max(0, self.bytes - self.brought)


class HostCache:
    """What this host keeps. Any thread may call, and other workers of the machine share the folder."""

    def __init__(
        self,
        root: Path,
        settings: Settings,
        host: HostId,
        *,
        hub: Callable[[], Path] = hub_cache,
        clock: Callable[[], float] = time.monotonic,
        let_go: Callable[[], None] = lambda: None,
    ) -> None:
        """`let_go` ends what only might be used again: runners that wait for another job."""
        self.root, self._let_go = root, let_go
        self._settings, self._host, self._hub, self._clock = settings, host, hub, clock
        self._clearing = threading.Lock()
        """Held while things are removed, by one thread at a time."""
        self._lock = threading.Lock()
        """Held for moments only: heartbeats need it."""
        self._coming: list[Coming] = []
        self._full_until = float("-inf")
        self._sizes: dict[Path, tuple[tuple[int, int], int]] = {}
        """Of folders, with the inode and the time of change that they had: files only come and go whole."""

    @property
    def hub(self) -> Path:
        """Where the hub's library keeps what it brings."""
        return self._hub()

    def folder(self, item: Item) -> Path:
        """Where it is, or would be."""
        return item.folder(self.root, self.hub)

    def use(self, item: Item, uses: Uses) -> Path:
        """Its folder, which stays from now on until `uses` is closed, if it is there at all."""
        uses.add(self.root, item)
        return self.folder(item)

    def note(self, item: Item) -> Note:
        """What is noted of it."""
        return read_note(self.root, item)

    def write_note(self, item: Item, note: Note) -> None:
        """Note it."""
        write_note(self.root, item, note)

    def entries(self) -> list[Entry]:
        """All that is there, the least recently used first."""
        pins = self.pins()
        found = [self._entry(item, folder, pins) for item, folder in items_in(self.root, self.hub)]
        return sorted(found, key=lambda entry: (entry.used_at, entry.item.name))

    def pins(self) -> set[str]:
        """Names of what is never evicted, by any worker that shares the folder."""
        names: set[str] = set()
        for path in (self.root / PINS).glob("*.json"):
            try:
                names.update(json.loads(path.read_text()))
            except (OSError, ValueError, TypeError):
                logger.warning("%s cannot be read; what it pins may be evicted", path)
        return names

    def set_pins(self, names: Collection[str]) -> None:
        """What this worker keeps, from now on."""
        path = self.root / PINS / f"{self._host}.json"
        text = json.dumps(sorted(names))
        if path.exists() and path.read_text() == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".new")
        aside.write_text(text)
        aside.replace(path)

    def free_bytes(self) -> int:
        """What jobs may still put on this host's disks, on the fuller one where there are two, with all
        that could be evicted for them.
        """
        if self._clock() < self._full_until:
            return 0
        entries = self.entries()
        rooms = [
            -self._lack(place, 0, entries) + sum(one.bytes for one in self._victims(place, entries))
            for place in (self.root, self.hub)
        ]
        return max(0, min(rooms))

    @contextmanager
    def room(self, folder: Path, needed: int, what: str) -> Iterator[Coming]:
        """Room for so many bytes more in this folder, evicting what was not used for longest; kept for
        whoever fetches, until this ends, less what is noted as brought. `what` is for messages.

        Raises:
            StoreError: there is not enough, whatever goes; nothing was evicted then.
        """
        coming = Coming(folder, device_of(folder), needed, self._size(folder))
        with self._clearing:
            self._make_room(folder, needed, what)
            with self._lock:
                self._coming.append(coming)
        try:
            yield coming
        except (GraftError, OSError) as error:
            if is_disk_full(error):
                self.note_full()
            raise
        finally:
            with self._lock:
                self._coming = [one for one in self._coming if one is not coming]

    def note_full(self) -> None:
        """The disk is full, whatever it says of itself: jobs that need room go elsewhere for a while."""
        self._full_until = self._clock() + FULL_SECONDS

    def remove(self, item: Item) -> int:
        """Remove what somebody wants gone; the bytes that it took.

        Raises:
            NotFound, NotAllowed, Conflict: it is not here, not Graft's to remove, pinned, or in use.
        """
        with self._clearing:
            found = [entry for entry in self.entries() if entry.item == item]
            if not found:
                raise NotFound(f"{item.name} is not on this host")
            (entry,) = found
            if not entry.is_ours:
                raise NotAllowed(
                    f"{item.name} was not fetched by Graft; its owner removes it with `hf cache rm`"
                )
            if entry.is_pinned:
                raise Conflict(f"{item.name} is pinned; `graft model unpin` it first")
            if not self._evict(entry):
                raise Conflict(f"{item.name} is in use by a job, or by a runner that waits for the next one")
            return entry.bytes

    def tidy(self) -> None:
        """Finish what a worker that died had begun to remove, and clear what it had half fetched."""
        finish_removals(self.root, self.hub)
        clear_leftovers(self.root, self.hub)

    def _make_room(self, folder: Path, needed: int, what: str) -> None:
        entries = self.entries()
        lack = self._lack(folder, needed, entries)
        victims = self._victims(folder, entries)
        if lack > sum(one.bytes for one in victims) and self._may_let_go(folder, lack, entries):
            self._let_go()
            entries = self.entries()
            lack, victims = self._lack(folder, needed, entries), self._victims(folder, entries)
        if lack > sum(one.bytes for one in victims):
            raise StoreError(self._complaint(folder, needed, needed - lack, victims, what))
        for victim in victims:
            if lack <= 0:
                return
            if self._evict(victim):
                logger.info("%s was evicted to make room for %s", victim.item.name, what)
            lack = self._lack(folder, needed, self.entries())
        if lack > 0:  # somebody began to use one, or two shared their files
            raise StoreError(self._complaint(folder, needed, needed - lack, [], what))

    def _may_let_go(self, folder: Path, lack: int, entries: list[Entry]) -> bool:
        """Whether there would be room if nothing were in use."""
        idle = [replace(one, is_in_use=False) for one in entries]
        return lack <= sum(one.bytes for one in self._victims(folder, idle))

    def _lack(self, folder: Path, needed: int, entries: list[Entry]) -> int:
        """Bytes that are missing, of the disk or within the bound of the cache; below zero what is left."""
        device = device_of(folder)
        with self._lock:
            coming = list(self._coming)
        of_disk = (
            needed
            + sum(one.left for one in coming if one.device == device)
            - spare_bytes(folder, self._settings)
        )
        bound = self._settings.model_cache_bytes
        if bound is None:
            return of_disk
        before = {one.folder: one.had for one in coming}  # what has come of them since is in their bytes
        kept = sum(before.get(one.folder, one.bytes) for one in entries if one.is_ours)
        return max(of_disk, kept + needed + sum(one.bytes for one in coming) - bound)

    def _victims(self, folder: Path, entries: list[Entry]) -> list[Entry]:
        """What may go to make room there, in that order."""
        device = device_of(folder)
        return [one for one in entries if one.may_go and device_of(one.folder) == device]

    def _complaint(self, folder: Path, needed: int, left: int, victims: list[Entry], what: str) -> str:
        free = max(0, left + sum(one.bytes for one in victims))
        return (
            f"no room for {what}: it needs {format_bytes(needed)} at {folder.parent}, where jobs may use "
            f"{format_bytes(free)}; free some disk there, `graft model rm` what is not needed, or change "
            "`min_free_disk_bytes` or `model_cache_bytes` of that worker"
        )

    def _evict(self, entry: Entry) -> bool:
        """Whether it is gone; not while somebody uses it."""
        with alone(self.root, entry.item) as is_alone:
            if not is_alone:
                return False
            try:
                remove_item(entry.item, entry.folder, entry.note.kept)
            except FileNotFoundError:
                return True
            except OSError as error:
                logger.warning("%s cannot be removed: %s", entry.folder, error)
                return False
            forget_note(self.root, entry.item)
            self._full_until = float("-inf")
            return True

    def _entry(self, item: Item, folder: Path, pins: set[str]) -> Entry:
        note = self.note(item)
        is_ours = item.kind is not Kind.HUB or note.is_ours
        in_use = False
        if is_ours:
            with alone(self.root, item) as is_alone:
                in_use = not is_alone
        size = self._size(folder)
        return Entry(item, folder, size, used_at(self.root, item, folder), note, item.name in pins, in_use)

    def _size(self, folder: Path) -> int:
        try:
            found = folder.stat()
        except OSError:
            return 0
        version = (found.st_ino, found.st_mtime_ns)
        known = self._sizes.get(folder)
        if known is None or known[0] != version:
            known = self._sizes[folder] = (version, folder_bytes(folder))
        return known[1]


def folder_bytes(folder: Path) -> int:
    """Of all files below it, links followed; what vanishes meanwhile counts nothing."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(here, name)).st_size
            except OSError:
                continue
    return total
