"""Attempts on a host whose disk has too little room: whose failure it is, and what the fleet is told."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.states import JobId, JobState
from graft_scheduler.store.depots import CHUNK_BYTES
from graft_worker.cache.items import model_item
from graft_worker.cache.uses import Uses
from graft_worker.preparation import Stopped, Worker, fetch_from_store
from tests.worker.test_warm_attempts import Bench, worker

__all__ = ["worker"]
pytestmark = pytest.mark.processes


@pytest.fixture
def bench(worker: Worker, redis: Redis, tmp_path: Path) -> Bench:
    """A worker, and a base and data of 300 KB and 3 KB in the store."""
    for name, size in (("model.safetensors", 300), ("train.jsonl", 3)):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(b"x" * size * 1024)
    return Bench(worker, redis, tmp_path / "model", tmp_path / "train")


def test_a_job_that_finds_no_room_fails_with_class_store_and_its_host_says_how_little_it_has(
    bench: Bench, worker: Worker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft_worker.cache.host_cache.spare_bytes", lambda *_: 100 * 1024)

    record = bench.run("j1", bench.job())

    assert (record.state, record.stalled, record.charged) == (JobState.QUEUED, 1, 0)
    assert record.failure is not None
    assert record.failure.failure == "store"
    assert "needs 300 KB at" in record.failure.text
    assert "where jobs may use 100 KB; free some disk there" in record.failure.text
    told = json.loads(str(redis.hget(keys.host(worker.info.id), "info")))
    assert told["free_disk_bytes"] == 96 * 1024
    assert list((worker.folder.cache / "models").glob("*")) == []
    worker.transitions.cancel(JobId("j1"), "ada")


def test_a_share_of_a_disk_that_is_full_for_something_else_than_a_fetch_takes_no_other_job(
    bench: Bench, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person's share of a disk may be full where the disk itself has room."""
    monkeypatch.setattr("graft_worker.attempt.prepare", raise_full)
    assert worker.cache.free_bytes() > 0

    record = bench.run("j1", bench.job())

    assert (record.state, record.stalled) == (JobState.QUEUED, 1)
    assert worker.cache.free_bytes() == 0
    assert worker.info.free_disk_bytes == 0
    worker.transitions.cancel(JobId("j1"), "ada")


def raise_full(*_: object) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


class Leaves:
    """Waits for a fetch until something has come."""

    told = ("", 0, 0)

    def check(self) -> None:
        if self.told[1]:
            raise Stopped

    def tell(self, what: str, brought: int, total: int) -> None:
        self.told = what, brought, total


def test_a_fetch_from_the_store_ends_when_nobody_waits_any_more(worker: Worker, tmp_path: Path) -> None:
    size = 3 * CHUNK_BYTES
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(size))
    item = model_item(worker.store.put_folder(tmp_path / "model"))
    watch, uses = Leaves(), Uses()

    with pytest.raises(Stopped):
        fetch_from_store(worker, item, uses, watch, "a base")

    uses.close()
    assert watch.told == ("a base", CHUNK_BYTES, size)
    assert not worker.cache.folder(item).exists()
