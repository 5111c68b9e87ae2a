"""The garbage collection: it takes what nobody wants, and nothing that it cannot be sure of."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.checkpoints import KeptCheckpoint
from graft_scheduler.demand import Request
from graft_scheduler.errors import Conflict, InvalidInput, StoreError
from graft_scheduler.garbage import GRACE_SECONDS, Garbage, find_garbage, look_up, remove_garbage
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.records import AttemptLog, Hold
from graft_scheduler.states import Digest, JobId, JobState
from graft_scheduler.store import Store, open_store
from graft_scheduler.tags import Tag
from graft_scheduler.transitions import Ending, Report, Transitions
from tests.scheduler.test_transitions import HOST, JOB, record, run

OTHER = JobId("job2")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store((tmp_path / "store").as_uri())


def folder(store: Store, root: Path, name: str, *files: str) -> Digest:
    """A folder of that kind, with bytes of its own."""
    place = root / name
    place.mkdir()
    for file in files:
        (place / file).write_text(f"{file} of {name}")
    (place / "shared.json").write_text("the same everywhere")
    return store.put_folder(place)


def checkpoint(store: Store, root: Path, step: int, loss: float | None = None) -> KeptCheckpoint:
    digest = folder(store, root, f"step-{step}", "state.json", "adapters.safetensors")
    return KeptCheckpoint(step=step, digest=digest, loss=loss)


def submit(transitions: Transitions, store: Store, spec: TrainJob | CountJob, job: JobId = JOB) -> None:
    transitions.submit(job, spec, Request(demands=None, store_id=store.id))


def let_days_pass(root: Path) -> None:
    then = time.time() - 2 * GRACE_SECONDS
    for path in (root / "store" / "blobs").rglob("*"):
        os.utime(path, (then, then))


def collect(store: Store, redis: Redis) -> Garbage:
    garbage = find_garbage(store, redis, GRACE_SECONDS)
    remove_garbage(store, garbage)
    return garbage


def is_whole(store: Store, digest: Digest, place: Path) -> bool:
    try:
        store.get_folder(digest, place)
    except StoreError:
        return False
    return True


def test_what_records_names_and_other_keys_refer_to_stays_and_the_rest_goes(
    transitions: Transitions, redis: Redis, store: Store, tmp_path: Path
) -> None:
    model, data = (
        folder(store, tmp_path, "base", "config.json"),
        folder(store, tmp_path, "rows", "train.jsonl"),
    )
    spec = TrainJob.model_validate(
        {"model": {"source": "base", "digest": model}, "data": {"source": "rows", "digest": data}}
    )
    submit(transitions, store, spec)
    held = run(transitions)
    best, named, middle, last = (
        checkpoint(store, tmp_path, step, loss) for step, loss in ((1, 0.1), (2, 0.4), (3, 0.3), (4, None))
    )
    transitions.report(
        held, Report(checkpoints=[best, named], events=[("checkpoint", {"digest": middle.digest})])
    )
    tag = Tag(name="good", what="checkpoint", digest=named.digest, job=JOB, by="ada", at=0)
    assert transitions.tag(tag) is None
    transitions.report(held, Report(checkpoints=[middle, last]))
    adapter = folder(store, tmp_path, "adapter", "adapters.safetensors")
    log = store.put_bytes(b"a log")
    kept_log = AttemptLog(token=held.token, digest=log)
    transitions.finish(held, HOST, Ending(JobState.COMPLETED, "completed", adapter=adapter, log=kept_log))
    study = folder(store, tmp_path, "of-a-study", "train.jsonl")
    redis.rpush(keys.study_log(1), f'{{"digest": "{study}"}}')
    redis.hset(keys.STUDIES, "a study", 1)
    lost, loose = folder(store, tmp_path, "nobody", "config.json"), store.put_bytes(b"loose")

    young = find_garbage(store, redis, GRACE_SECONDS)
    let_days_pass(tmp_path)
    garbage = collect(store, redis)

    assert (young.blobs, young.young_blobs) == ((), len(garbage.blobs))
    assert [one.step for one in record(redis).checkpoints] == [1, 2, 4]
    assert sorted((one.kind, one.count, one.blobs) for one in garbage.shares) == [
        *(("checkpoint", 1, 3), ("file", 1, 1), ("model", 1, 2))
    ]
    for digest in (model, data, best.digest, named.digest, last.digest, adapter, study):
        assert is_whole(store, digest, tmp_path / "again" / digest)
    assert store.get_bytes(log) == b"a log"
    for digest in (middle.digest, lost, loose):
        assert not store.has(digest)
    assert find_garbage(store, redis, GRACE_SECONDS).blobs == ()


def test_what_was_removed_or_has_lost_its_name_becomes_garbage(
    transitions: Transitions, redis: Redis, store: Store, tmp_path: Path
) -> None:
    submit(transitions, store, CountJob())
    held = run(transitions)
    first, second = checkpoint(store, tmp_path, 1), checkpoint(store, tmp_path, 2)
    transitions.report(held, Report(checkpoints=[first]))
    tag = Tag(name="good", what="checkpoint", digest=first.digest, job=JOB, by="ada", at=0)
    transitions.tag(tag)
    transitions.report(held, Report(checkpoints=[second]))
    transitions.finish(held, HOST, Ending(JobState.CANCELLED, "cancelled"))
    transitions.remove_adapter(JOB, "ada")
    let_days_pass(tmp_path)
    submit(transitions, store, CountJob(), OTHER)

    first_time = collect(store, redis)
    transitions.untag(tag, "ada")
    second_time = collect(store, redis)

    assert second.digest in {blob.digest for blob in first_time.blobs}
    assert first.digest in {blob.digest for blob in second_time.blobs}
    assert store.depot.listing() == []


def test_a_blob_that_is_used_again_meanwhile_is_spared(
    transitions: Transitions, redis: Redis, store: Store, tmp_path: Path
) -> None:
    submit(transitions, store, CountJob())
    digest = folder(store, tmp_path, "rows", "train.jsonl")
    store.put_bytes(b"loose")
    let_days_pass(tmp_path)
    garbage = find_garbage(store, redis, GRACE_SECONDS)
    store.put_folder(tmp_path / "rows")  # a submit, between the look and the removal

    collected = remove_garbage(store, garbage)

    assert (collected.blobs, collected.spared) == (1, 3)
    assert is_whole(store, digest, tmp_path / "again")


def test_two_collections_at_once_and_one_that_died_do_no_harm(
    transitions: Transitions, redis: Redis, store: Store, tmp_path: Path
) -> None:
    submit(transitions, store, CountJob())
    for number in range(20):
        folder(store, tmp_path, f"rows-{number}", "train.jsonl")
    let_days_pass(tmp_path)
    garbage = find_garbage(store, redis, GRACE_SECONDS)
    half = replace(garbage, blobs=garbage.blobs[:25])
    remove_garbage(store, half)  # as far as one came that died
    threads = [threading.Thread(target=collect, args=(store, redis)) for _ in range(2)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert store.depot.listing() == []
    assert is_whole(store, store.put_folder(tmp_path / "rows-3"), tmp_path / "again")


def test_nothing_goes_while_a_record_cannot_be_understood(
    transitions: Transitions, redis: Redis, store: Store, tmp_path: Path
) -> None:
    submit(transitions, store, CountJob())
    digest = store.put_bytes(b"loose")
    let_days_pass(tmp_path)
    redis.hset(keys.job(JOB), "spec", '{"kind": "of a later version"}')

    with pytest.raises(Conflict, match=f"the record of job {JOB} cannot be understood"):
        find_garbage(store, redis, GRACE_SECONDS)

    assert store.has(digest)


def test_nothing_goes_where_a_folder_that_is_wanted_is_damaged(
    transitions: Transitions, redis: Redis, store: Store, tmp_path: Path
) -> None:
    submit(transitions, store, CountJob())
    held: Hold = run(transitions)
    one = checkpoint(store, tmp_path, 1)
    transitions.report(held, Report(checkpoints=[one]))
    Path(store.depot.locate(one.digest)).write_bytes(b'{"files":[]}')

    with pytest.raises(StoreError, match="is damaged"):
        find_garbage(store, redis, GRACE_SECONDS)


def test_a_redis_that_knows_nothing_of_the_store_is_the_wrong_one(
    transitions: Transitions, redis: Redis, store: Store
) -> None:
    store.put_bytes(b"of others")
    with pytest.raises(Conflict, match="is this the Redis of those who use it"):
        find_garbage(store, redis, GRACE_SECONDS)

    spec = TrainJob.model_validate(
        {"model": "org/base", "data": {"source": "rows", "digest": "sha256:" + "1" * 64}}
    )
    transitions.submit(JOB, spec, Request(demands=None, store_id="of another"))
    with pytest.raises(Conflict, match="is this the Redis of those who use it"):
        find_garbage(store, redis, GRACE_SECONDS)


def test_what_hosts_report_neither_makes_a_redis_the_right_one_nor_keeps_anything(
    transitions: Transitions, redis: Redis, store: Store, tmp_path: Path
) -> None:
    cached, wanted = (folder(store, tmp_path, name, "config.json") for name in ("cached", "wanted"))
    let_days_pass(tmp_path)
    redis.set(keys.host_models(HOST), f'[{{"name": "{cached}"}}]')
    redis.hset(keys.host(HOST), "info", f'{{"models": ["{cached}"]}}')
    redis.set(keys.SNAPSHOT, f'{{"models": ["{cached}"]}}')
    redis.hset(keys.host_wishes(HOST), wanted, "{}")
    with pytest.raises(Conflict, match="is this the Redis of those who use it"):
        find_garbage(store, redis, GRACE_SECONDS)

    absent = Tag(name="x", what="adapter", digest=Digest("sha256:" + "1" * 64), job=JOB, by="ada", at=0)
    redis.hset(keys.TAGS, "x", absent.model_dump_json())
    with pytest.raises(Conflict, match="is this the Redis of those who use it"):
        find_garbage(store, redis, GRACE_SECONDS)

    submit(transitions, store, CountJob())
    gone = {blob.digest for blob in collect(store, redis).blobs}
    redis.delete(
        keys.host(HOST), keys.host_models(HOST), keys.host_wishes(HOST), keys.SNAPSHOT
    )  # which no beat renews

    assert cached in gone
    assert is_whole(store, wanted, tmp_path / "again")


def test_a_redis_without_jobs_knows_a_store_by_what_is_in_both(
    redis: Redis, store: Store, tmp_path: Path
) -> None:
    digest, loose = folder(store, tmp_path, "named", "adapters.safetensors"), store.put_bytes(b"loose")
    let_days_pass(tmp_path)
    tag = Tag(name="x", what="adapter", digest=digest, job=JOB, by="ada", at=0)
    redis.hset(keys.TAGS, "x", tag.model_dump_json())

    garbage = collect(store, redis)

    assert [blob.digest for blob in garbage.blobs] == [loose]
    assert is_whole(store, digest, tmp_path / "again")


def test_a_grace_that_tells_nothing_is_refused(redis: Redis, store: Store) -> None:
    with pytest.raises(InvalidInput, match="at least 1h"):
        find_garbage(store, redis, 60)


def test_storing_what_is_there_makes_it_young_again(store: Store, tmp_path: Path) -> None:
    digest = store.put_bytes(b"old")
    let_days_pass(tmp_path)
    before = look_up(store.depot, digest)

    store.put_bytes(b"old")

    after = look_up(store.depot, digest)
    assert before is not None
    assert after is not None
    assert after.stored_at - before.stored_at > GRACE_SECONDS
