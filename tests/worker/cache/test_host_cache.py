"""What a host keeps: within its bounds; the least recently used goes first, pinned and used things stay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from graft_scheduler.errors import Conflict, NotAllowed, NotFound, StoreError
from graft_scheduler.settings import load_settings
from graft_scheduler.states import HostId
from graft_worker.cache import removal
from graft_worker.cache.disk import is_disk_full, told_disk
from graft_worker.cache.host_cache import FULL_SECONDS, HostCache
from graft_worker.cache.items import Item, data_item, model_item
from graft_worker.cache.notes import Note
from graft_worker.cache.uses import Uses
from graft_worker.cached_models import cached_models
from tests.services import eventually

KB = 1 << 10
COMMITS = ("a" * 40, "b" * 40)


@dataclass
class Disk:
    """A cache on a disk of which this much is left; what is written to the caches counts."""

    folder: Path
    spare: int = 1000 * KB
    bound: str | None = None
    now: float = 0.0
    uses: list[Uses] = field(default_factory=list)

    @property
    def hub(self) -> Path:
        return self.folder / "hub"

    def cache(self, host: str = "one", let_go: Callable[[], None] = lambda: None) -> HostCache:
        settings = load_settings({"model_cache_bytes": self.bound, "min_free_disk_bytes": "1"})
        root = self.folder / "cache"
        return HostCache(
            root,
            settings,
            HostId(host),
            hub=lambda: self.hub,
            clock=lambda: self.now,
            let_go=let_go,
        )

    def left(self, *_: object) -> int:
        return self.spare - sum(one.stat().st_size for one in self._files())

    def _files(self) -> Iterator[Path]:
        for path in self.folder.rglob("*.safetensors"):
            if not path.is_symlink():
                yield path
        yield from (path for path in self.hub.rglob("blobs/*") if path.is_file())

    def model(self, letter: str, kilobytes: int, used: float) -> Item:
        """A model of the store that was used last at that time."""
        item = model_item("sha256:" + letter * 64)
        return self._put(item, self.cache().folder(item), kilobytes, used)

    def data(self, letter: str, kilobytes: int, used: float) -> Item:
        item = data_item("sha256:" + letter * 64)
        return self._put(item, self.cache().folder(item), kilobytes, used)

    def snapshot(self, commit: str, blobs: dict[str, tuple[str, int]], used: float) -> Item:
        """A snapshot of the hub: names of its files, each with that of its blob and the size in KB."""
        item = model_item(f"org/name@{commit}")
        folder = self.cache().folder(item)
        folder.mkdir(parents=True)
        for name, (blob, kilobytes) in blobs.items():
            place = folder.parent.parent / "blobs" / blob
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(b"x" * kilobytes * KB)
            (folder / name).symlink_to(os.path.relpath(place, folder))
        self.touch(item, used)
        return item

    def touch(self, item: Item, at: float) -> None:
        uses = Uses()
        self.cache().use(item, uses)
        uses.close()
        os.utime(self.folder / "cache" / "uses" / item.key, (at, at))

    def _put(self, item: Item, folder: Path, kilobytes: int, used: float) -> Item:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * kilobytes * KB)
        self.touch(item, used)
        return item


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path)
    monkeypatch.setattr("graft_worker.cache.host_cache.spare_bytes", disk.left)
    return disk


def names(cache: HostCache) -> set[str]:
    return {entry.item.name[7:8] for entry in cache.entries()}


def make_room(cache: HostCache, kilobytes: int) -> None:
    with cache.room(cache.root / "models" / "new", kilobytes * KB, "a new model"):
        pass


def test_the_least_recently_used_goes_first_and_no_more_than_must(disk: Disk) -> None:
    for letter, used in (("a", 30), ("b", 10), ("c", 20)):
        disk.model(letter, 300, used)
    disk.data("d", 50, 5)

    make_room(disk.cache(), 300)

    assert names(disk.cache()) == {"a", "c"}


def test_a_job_uses_its_model_anew(disk: Disk) -> None:
    old, _ = disk.model("a", 300, 10), disk.model("b", 300, 20)
    uses = Uses()
    disk.cache().use(old, uses)
    uses.close()

    make_room(disk.cache(), 500)

    assert names(disk.cache()) == {"a"}


def test_what_is_pinned_or_in_use_stays_and_nothing_goes_in_vain(disk: Disk) -> None:
    pinned, used = disk.model("a", 300, 10), disk.model("b", 300, 20)
    disk.model("c", 300, 30)
    cache, uses = disk.cache(), Uses()
    disk.cache("another worker of the machine").set_pins([pinned.name])
    cache.use(used, uses)

    with pytest.raises(
        StoreError, match=r"no room for a new model: it needs 500 KB at .*jobs may use 400 KB;"
    ):
        make_room(cache, 500)

    assert names(cache) == {"a", "b", "c"}
    assert cache.free_bytes() == 400 * KB
    make_room(cache, 400)
    assert names(cache) == {"a", "b"}
    uses.close()
    make_room(cache, 600)
    assert names(cache) == {"a"}


def test_another_process_that_uses_a_model_keeps_it_until_it_dies(disk: Disk) -> None:
    item = disk.model("a", 300, 10)
    code = (
        "import sys; from pathlib import Path\n"
        "from graft_worker.cache.uses import Uses; from graft_worker.cache.items import model_item\n"
        "uses = Uses(); uses.add(Path(sys.argv[1]), model_item(sys.argv[2]))\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(disk.cache().root), item.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(Conflict, match="in use by a job"):
            disk.cache().remove(item)
        other.kill()
        other.wait()

    assert disk.cache().remove(item) == 300 * KB
    assert names(disk.cache()) == set()


def test_the_cache_is_bounded_whatever_the_disk_has(disk: Disk) -> None:
    disk.bound, disk.spare = "700KB", 10_000 * KB
    disk.model("a", 300, 10)
    disk.model("b", 300, 20)

    assert disk.cache().free_bytes() == 700 * KB
    make_room(disk.cache(), 350)
    assert names(disk.cache()) == {"b"}
    with pytest.raises(StoreError, match="jobs may use 700 KB"):
        make_room(disk.cache(), 701)


def test_what_is_being_fetched_has_its_room(disk: Disk) -> None:
    cache = disk.cache()

    with (
        cache.room(cache.root / "models" / "first", 700 * KB, "the first"),
        pytest.raises(StoreError, match="no room for the second"),
        cache.room(cache.root / "models" / "second", 400 * KB, "the second"),
    ):
        pass

    make_room(cache, 400)


@pytest.mark.parametrize(("bound", "left"), [("900KB", 200), (None, 300)])
def test_what_has_come_of_a_fetch_is_counted_once(disk: Disk, bound: str | None, left: int) -> None:
    disk.bound = bound
    item, cache, uses = model_item(f"org/name@{COMMITS[0]}"), disk.cache(), Uses()
    cache.write_note(item, Note(is_ours=True))
    cache.use(item, uses)

    with cache.room(cache.folder(item), 700 * KB, "the first") as coming:
        before = cache.free_bytes()
        disk.snapshot(COMMITS[0], {"model-00001-of-00002.safetensors": ("w", 400)}, 10)
        coming.brought = 400 * KB

        assert (before, cache.free_bytes()) == (left * KB, left * KB)
    uses.close()


def test_a_heartbeat_does_not_wait_for_what_is_being_removed(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, cache = disk.model("a", 300, 10), disk.cache()
    removes, seen = threading.Event(), threading.Event()
    rmtree = shutil.rmtree

    def slowly(path: Path, ignore_errors: bool = False) -> None:
        removes.set()
        assert seen.wait(10)
        rmtree(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    with ThreadPoolExecutor(2) as threads:
        removal_of_a = threads.submit(cache.remove, item)
        assert removes.wait(10)
        try:
            assert threads.submit(cache.free_bytes).result(5) == 700 * KB
        finally:
            seen.set()
        assert removal_of_a.result(10) == 300 * KB


def test_runners_that_wait_let_go_of_what_they_hold_if_that_makes_the_room(disk: Disk) -> None:
    item, uses, called = disk.model("a", 600, 10), Uses(), threading.Event()

    def let_go() -> None:
        called.set()
        uses.close()

    cache = disk.cache(let_go=let_go)
    cache.use(item, uses)

    with pytest.raises(StoreError, match="no room"):
        make_room(cache, 1100)
    assert not called.is_set()
    make_room(cache, 500)
    assert called.is_set()
    assert names(cache) == set()


def test_of_the_hubs_cache_only_what_graft_fetched_goes(disk: Disk) -> None:
    owners = disk.snapshot(COMMITS[0], {"model.safetensors": ("w1", 300), "config.json": ("c", 1)}, 10)
    ours = disk.snapshot(
        COMMITS[1],
        {"model.safetensors": ("w2", 300), "config.json": ("c", 1), "README.md": ("r", 1)},
        20,
    )
    cache = disk.cache()
    cache.write_note(ours, Note(is_ours=True, is_whole=True, kept=("README.md",)))
    repository = cache.folder(ours).parent.parent
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[1])

    make_room(cache, 600)

    assert sorted(path.name for path in (repository / "blobs").iterdir()) == ["c", "r", "w1"]
    assert sorted(path.name for path in cache.folder(owners).iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert [path.name for path in cache.folder(ours).iterdir()] == ["README.md"]
    with pytest.raises(NotAllowed, match="was not fetched by Graft"):
        cache.remove(owners)
    with pytest.raises(StoreError, match="no room"):
        make_room(cache, 900)


def test_a_snapshot_that_was_all_of_a_repository_leaves_nothing_behind(disk: Disk) -> None:
    item = disk.snapshot(COMMITS[0], {"model.safetensors": ("w", 300)}, 10)
    cache = disk.cache()
    cache.write_note(item, Note(is_ours=True, is_whole=True))

    cache.remove(item)

    assert list(disk.hub.iterdir()) == []
    with pytest.raises(NotFound):
        cache.remove(item)


def test_a_removal_that_died_half_way_leaves_no_model_and_is_finished_later(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [disk.model("a", 300, 10), disk.snapshot(COMMITS[0], {"model.safetensors": ("w", 300)}, 20)]
    cache = disk.cache()
    cache.write_note(items[1], Note(is_ours=True, is_whole=True))
    assert len(cached_models(cache.root, disk.hub)) == 2

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        patch.setattr(removal, "_finish", die)
        for item in items:
            with pytest.raises(KeyboardInterrupt):
                cache.remove(item)

    assert cached_models(cache.root, disk.hub) == ()
    assert disk.left() == 400 * KB
    disk.cache().tidy()
    assert disk.left() == 1000 * KB


def test_what_was_half_fetched_from_the_store_goes_after_a_day_unless_somebody_is_at_it(disk: Disk) -> None:
    items = {letter: model_item("sha256:" + letter * 64) for letter in "abc"}
    cache, uses = disk.cache(), Uses()
    cache.use(items["c"], uses)
    for letter, days in (("a", 0), ("b", 2), ("c", 2)):
        partial = cache.root / "models" / f".{letter * 64}.{letter * 16}.partial"
        partial.mkdir(parents=True)
        (partial / "model.safetensors").write_bytes(b"x")
        for path in (partial / "model.safetensors", partial):
            os.utime(path, (time.time() - days * 86_400 - 60,) * 2)

    cache.tidy()

    assert sorted(path.name[1] for path in (cache.root / "models").iterdir()) == ["a", "c"]
    uses.close()


def test_a_job_that_begins_on_a_model_has_it_or_sees_that_it_is_gone(disk: Disk) -> None:
    """Removing and beginning at the same time, again and again: never half a model."""
    item, seen, removed = model_item("sha256:" + "a" * 64), set(), []
    source = disk.folder / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).write_text("x")
    disk.cache().folder(item).parent.mkdir(parents=True)
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            with suppress(NotFound, Conflict):
                removed.append(disk.cache().remove(item))

    thread = threading.Thread(target=remove)
    thread.start()
    for number in range(200):
        uses = Uses()
        folder = disk.cache().use(item, uses)
        if not folder.exists():
            shutil.copytree(source, aside := disk.folder / f"new-{number}")
            aside.rename(folder)
        seen.add(tuple(sorted(path.name for path in folder.iterdir())))
        uses.close()
    eventually(lambda: removed, what="it was removed at least once")
    stop.set()
    thread.join()

    assert seen == {("config.json", "model.safetensors")}


def test_a_disk_that_turned_out_full_takes_nothing_for_a_while(disk: Disk) -> None:
    cache = disk.cache()
    with (
        pytest.raises(OSError, match="No space"),
        cache.room(cache.root / "models" / "new", KB, "a new model"),
    ):
        raise OSError(28, "No space left on device")

    assert cache.free_bytes() == 0
    disk.now = FULL_SECONDS + 1
    assert cache.free_bytes() == 1000 * KB


def test_a_full_disk_is_known_by_the_error_behind_the_error() -> None:
    error = StoreError("cannot write")
    error.__cause__ = OSError(28, "No space left on device")

    assert is_disk_full(error)
    assert not is_disk_full(StoreError("damaged"))


def test_what_is_told_of_a_disk_is_coarse_and_never_more_than_there_is() -> None:
    assert [told_disk(free) for free in (0, 7, 100, 1000)] == [0, 7, 96, 960]


@pytest.mark.parametrize(
    "name", ["../x@abc", "org/..@abc", "org/name", "org/name@../../x", "sha256:abc", "a--b/c@abc", "/etc@abc"]
)
def test_names_that_could_lead_out_of_the_caches_are_refused(name: str) -> None:
    from graft_scheduler.errors import InvalidInput

    with pytest.raises(InvalidInput, match="must be a digest, or a hub id with its commit"):
        model_item(name)


def test_the_pins_of_a_worker_are_whatever_it_said_last(disk: Disk) -> None:
    cache = disk.cache()
    cache.set_pins(["x", "y"])
    cache.set_pins(["y"])

    assert cache.pins() == {"y"}
    assert json.loads((cache.root / "pins" / "one.json").read_text()) == ["y"]
    eventually(lambda: not list((cache.root / "pins").glob("*.new")))
