"""A comparison from a program: what is queued, what is refused, and how it is found again."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from graft_scheduler import Client, TrainJob, Variant, keys
from graft_scheduler.comparison.labels import Membership
from graft_scheduler.errors import Conflict, InvalidInput, NotFound
from graft_scheduler.settings import load_settings
from graft_scheduler.states import JobState
from tests.services import RedisServer

TEXTS: list[str | Variant] = [
    Variant("small", {"method": "qlora", "adapter": {"rank": 2}}),
    "lora",
    "dora,rank=4",
]


@pytest.fixture
def client(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> Client:
    del redis
    flags = {"redis_url": redis_server.url, "store_url": (tmp_path / "store").as_uri()}
    return Client(load_settings(flags))


@pytest.fixture
def job() -> TrainJob:
    from graft_cli import samples

    return TrainJob.model_validate({"model": str(samples.base_model()), "data": str(samples.data_folder())})


def test_a_comparison_is_found_again_in_the_order_of_its_variants(client: Client, job: TrainJob) -> None:
    handle = client.compare(job, TEXTS, name="first")
    client.compare(job, ["lora", "full"], name="second")

    found = client.comparison("first")

    assert found.jobs == handle.jobs
    assert [row.variant for row in found.rows()] == ["small", "lora", "dora,rank=4"]
    assert {row.state for row in found.rows()} == {JobState.QUEUED}
    specs = [record.spec for record in found.records() if isinstance(record.spec, TrainJob)]
    assert len({spec.data.digest for spec in specs}) == 1
    assert len({spec.batch_size for spec in specs}) == 1


def test_a_comparison_of_full_fine_tunes_has_the_automatic_batch_of_that(
    client: Client, job: TrainJob
) -> None:
    rows = []
    for texts in (["full,lr=1e-5", "full,lr=1e-4"], ["full", "lora"]):
        (record, _) = client.compare(job.model_copy(update={"max_length": 64}), texts).records()
        assert isinstance(record.spec, TrainJob)
        rows.append(record.spec.batch_rows)

    assert rows[0] >= rows[1]


def test_one_refused_variant_leaves_nothing_queued(client: Client, redis: Redis, job: TrainJob) -> None:
    with pytest.raises(InvalidInput, match="variant `deep`"):
        client.compare(job, ["lora", "deep: lora,layers=99"])

    assert redis.zcard(keys.JOBS) == 0


def test_a_name_is_of_one_comparison(client: Client, job: TrainJob) -> None:
    client.compare(job, ["lora", "dora"], name="first")

    with pytest.raises(Conflict, match="there is a comparison first already"):
        client.compare(job, ["lora", "dora"], name="first")
    with pytest.raises(NotFound, match="there is no comparison second; the newest are first"):
        client.comparison("second")


def test_a_comparison_without_a_name_has_that_of_its_job_or_a_new_one(client: Client, job: TrainJob) -> None:
    named = client.compare(job.model_copy(update={"name": "mine"}), ["lora", "dora"])

    assert named.name == "mine"
    assert client.compare(job, ["lora", "dora"]).name.startswith("compare-")


def test_waiting_has_a_limit_and_ends_with_the_last_job(client: Client, job: TrainJob) -> None:
    handle = client.compare(job, ["lora", "dora"])
    with pytest.raises(TimeoutError):
        handle.wait(0)
    for one in handle.jobs:
        client.cancel(one)

    comparison = handle.wait(5)

    assert comparison.is_over
    assert [row.state for row in comparison.rows] == [JobState.CANCELLED] * 2
    assert comparison.recommendation.variant is None


def test_what_labels_say_is_what_was_written() -> None:
    member = Membership("first", "lora", 2, 4, 1_623_360)

    assert Membership.read(member.labels) == member
    assert Membership.read({"comparison": "first", "place": "none"}) == Membership("first")
    assert Membership.read({"team": "search"}) is None
