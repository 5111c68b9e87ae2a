"""Checkpoints on their way to the store: nobody waits for them, and the ones that matter get there."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft_scheduler.checkpoints import KeptCheckpoint
from graft_scheduler.errors import Unreachable
from graft_scheduler.messages import Checkpoint
from graft_scheduler.states import Digest, JobId, Token
from graft_worker.engine.folders import remove_whole, write_whole
from graft_worker.uploads import NotStored, Uploader
from tests.services import eventually

WAIT_SECONDS = 10.0
FILES = 30


class SlowStore:
    """Takes a folder when it is let, and remembers what was in it."""

    def __init__(self) -> None:
        self.lets = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.taken: list[str] = []
        self.is_away = False

    def put_folder(self, folder: Path) -> Digest:
        self.began.release()
        assert self.lets.acquire(timeout=WAIT_SECONDS)
        if self.is_away:
            raise Unreachable("the store does not answer")
        text = (folder / "deep" / "state.json").read_text()
        self.taken.append(text)
        return Digest(f"sha256:{text}")


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
def uploader(store: SlowStore, tmp_path: Path) -> Iterator[Uploader]:
    uploader = Uploader(store.put_folder, tmp_path / "uploading")
    yield uploader
    uploader.close()
    store.lets.release(10)


def checkpoint(root: Path, step: int, loss: float | None = None) -> Checkpoint:
    folder = root / f"step-{step}"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "state.json").write_text(str(step))
    return Checkpoint(job=JobId("j"), token=Token(1), step=step, path=str(folder), loss=loss)


def test_what_has_not_begun_gives_way_to_the_newest_but_for_the_best(
    uploader: Uploader, store: SlowStore, tmp_path: Path
) -> None:
    uploader.add(checkpoint(tmp_path, 1, 0.5))
    assert store.began.acquire(timeout=WAIT_SECONDS)  # the first is on its way
    for step, loss in ((2, 0.4), (3, 0.3), (4, 0.9), (5, None)):
        uploader.add(checkpoint(tmp_path, step, loss))

    store.lets.release(10)

    assert uploader.is_idle(WAIT_SECONDS)
    assert store.taken == ["1", "3", "5"]
    ended = uploader.ended()
    assert [(one.step, one.loss) for one in ended if isinstance(one, KeptCheckpoint)] == [
        *((1, 0.5), (3, 0.3), (5, None))
    ]
    assert ended[0] == KeptCheckpoint(step=1, digest=Digest("sha256:1"), loss=0.5, bytes=1)
    assert uploader.ended() == []
    assert not (tmp_path / "uploading").exists()


def test_one_that_is_worse_than_what_is_stored_is_not_kept_for_its_loss(
    uploader: Uploader, store: SlowStore, tmp_path: Path
) -> None:
    store.lets.release()
    uploader.add(checkpoint(tmp_path, 1, 0.1))
    assert uploader.is_idle(WAIT_SECONDS)
    uploader.add(checkpoint(tmp_path, 2, 0.3))
    assert store.began.acquire(timeout=WAIT_SECONDS)
    assert store.began.acquire(timeout=WAIT_SECONDS)
    uploader.add(checkpoint(tmp_path, 3, 0.2))
    uploader.add(checkpoint(tmp_path, 4))

    store.lets.release(10)

    assert uploader.is_idle(WAIT_SECONDS)
    assert store.taken == ["1", "2", "4"]


def test_a_runner_may_remove_a_checkpoint_at_any_time(
    uploader: Uploader, store: SlowStore, tmp_path: Path
) -> None:
    gone, removed = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    shutil.rmtree(gone.path)
    uploader.add(gone)
    uploader.add(removed)
    shutil.rmtree(removed.path)

    store.lets.release(10)

    assert uploader.is_idle(WAIT_SECONDS)
    assert store.taken == ["2"]


def test_what_is_held_of_a_folder_that_is_being_replaced_is_all_of_one(tmp_path: Path) -> None:
    made, ends = tmp_path / "step-1", threading.Event()

    def write(aside: Path) -> None:
        mark = str(random.random())
        for number in range(FILES):
            (aside / f"{number}").write_text(mark)

    def churn() -> None:
        while not ends.is_set():
            write_whole(made, write)
            write_whole(made, write)
            remove_whole(made)

    seen: list[list[str]] = []

    def look(folder: Path) -> Digest:
        seen.append([path.read_text() for path in folder.iterdir()])
        return Digest("sha256:0")

    runner = threading.Thread(target=churn)
    runner.start()
    uploader = Uploader(look, tmp_path / "uploading")

    def has_seen_many() -> bool:
        uploader.add(Checkpoint(job=JobId("j"), token=Token(1), step=1, path=str(made)))
        return uploader.is_idle(WAIT_SECONDS) and len(seen) >= 15

    eventually(has_seen_many)
    ends.set()
    runner.join()
    uploader.close()

    assert all(len(marks) == FILES and len(set(marks)) == 1 for marks in seen)


def test_a_store_that_is_away_costs_one_checkpoint_and_not_the_next(
    uploader: Uploader, store: SlowStore, tmp_path: Path
) -> None:
    store.is_away = True
    uploader.add(checkpoint(tmp_path, 1))
    store.lets.release()
    assert uploader.is_idle(WAIT_SECONDS)
    store.is_away = False
    uploader.add(checkpoint(tmp_path, 2))
    store.lets.release()

    assert uploader.is_idle(WAIT_SECONDS)
    first, second = uploader.ended()
    assert first == NotStored(1, "the store does not answer")
    assert isinstance(second, KeptCheckpoint)


def test_the_newest_that_could_not_be_stored_stays_held_and_is_tried_again(
    uploader: Uploader, store: SlowStore, tmp_path: Path
) -> None:
    store.is_away = True
    store.lets.release(10)
    for step in (1, 2):
        uploader.add(checkpoint(tmp_path, step))
        assert uploader.is_idle(WAIT_SECONDS)
        shutil.rmtree(tmp_path / f"step-{step}")  # as its runner does
    uploader.retry()
    assert uploader.is_idle(WAIT_SECONDS)
    told, left = uploader.ended(), uploader.left()
    store.is_away = False
    uploader.retry()
    assert uploader.is_idle(WAIT_SECONDS)

    assert told == [NotStored(1, "the store does not answer"), NotStored(2, "the store does not answer")]
    assert left == told[-1]
    assert [one.step for one in uploader.ended() if isinstance(one, KeptCheckpoint)] == [2]
    assert uploader.left() is None
    assert not (tmp_path / "uploading").exists()


def test_a_closed_uploader_begins_nothing_more(uploader: Uploader, store: SlowStore, tmp_path: Path) -> None:
    uploader.add(checkpoint(tmp_path, 1))
    assert store.began.acquire(timeout=WAIT_SECONDS)
    uploader.add(checkpoint(tmp_path, 2))

    uploader.close()
    store.lets.release(10)

    assert not uploader.is_idle(0.2)  # the second stays where it is
    assert store.taken == ["1"]
