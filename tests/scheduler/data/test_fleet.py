"""Data sets under names: versions that only grow, found from anywhere, compared, and forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from redis import Redis

from graft_cli import samples
from graft_scheduler.client import Client
from graft_scheduler.errors import InvalidInput, NotFound
from graft_scheduler.jobs import DataFormat, DataRef, ModelRef, TrainJob
from graft_scheduler.settings import load_settings
from tests.scheduler.data.writing import CHAT, TEXT, write
from tests.services import RedisServer


@pytest.fixture
def client(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> Client:
    url = (tmp_path / "store").as_uri()
    return Client(load_settings({"redis_url": redis_server.url, "store_url": url}))


def test_each_push_of_other_rows_is_the_next_version(client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"

    first = client.datasets.push(write(rows, TEXT), "sql")
    again = client.datasets.push(rows, "sql")
    second = client.datasets.push(write(rows, TEXT, {"text": "more"}), "sql")

    assert [str(one.version) for one in (first, again, second)] == ["sql@v1", "sql@v1", "sql@v2"]
    assert [one.is_new for one in (first, again, second)] == [True, False, True]
    assert [one.number for one in client.datasets.versions("sql")] == [2, 1]
    assert client.datasets.newest() == [second.version]
    assert second.version.contents.rows == {"train": 2}
    assert second.version.contents.source == "rows.jsonl"


def test_a_version_is_found_by_number_digest_or_as_the_newest(client: Client, tmp_path: Path) -> None:
    one = client.datasets.push(write(tmp_path / "rows.jsonl", TEXT), "sql").version
    two = client.datasets.push(write(tmp_path / "rows.jsonl", CHAT), "sql").version

    assert client.datasets.find("sql") == client.datasets.find("sql@latest") == two
    assert client.datasets.find("sql@v1") == client.datasets.find(f"sql@{one.digest[:17]}") == one
    for wrong, words in (
        ("sql@v9", "it has v2, v1"),
        ("sql@sha256:00000000", "no version"),
        ("x", "no data set"),
    ):
        with pytest.raises(NotFound, match=words):
            client.datasets.find(wrong)
    for wrong in ("sql@3", "../sql", "sql@v3@v4", "", "sql@sha256:../../../x"):
        with pytest.raises(InvalidInput, match="names no data set"):
            client.datasets.find(wrong)


def test_a_number_is_never_used_again(client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    for text in ("one", "two"):
        client.datasets.push(write(rows, {"text": text}), "sql")

    assert client.datasets.remove("sql@v2") == 1
    assert client.datasets.push(write(rows, {"text": "three"}), "sql").version.number == 3
    assert client.datasets.remove("sql") == 2
    assert client.datasets.newest() == []
    assert client.datasets.push(write(rows, {"text": "four"}), "sql").version.number == 4


def test_what_is_refused_gets_no_name_and_is_not_stored(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"rows\.jsonl:1: is not JSON"):
        client.datasets.push(write(tmp_path / "rows.jsonl", "{"), "sql")
    with pytest.raises(InvalidInput, match=r"`name` is '\.\./sql'"):
        client.datasets.push(write(tmp_path / "rows.jsonl", TEXT), "../sql")

    assert client.datasets.newest() == []
    assert not (tmp_path / "store" / "blobs").exists()


def test_two_versions_differ_by_their_rows_whatever_their_order(client: Client, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    train, test = tmp_path / "data" / "train.jsonl", tmp_path / "data" / "test.jsonl"
    write(test, {"text": "held out"})
    write(train, {"text": "a"}, {"text": "b"}, {"text": "b"})
    client.datasets.push(tmp_path / "data", "sql")
    write(train, {"text": "c"}, {"text": " b"}, {"text": "a"})
    client.datasets.push(tmp_path / "data", "sql")

    found = client.datasets.diff("sql@v1", "sql@v2")

    assert [(one.split, one.kept, one.added, one.removed) for one in found.splits] == [
        ("train", 2, 1, 1),
        ("test", 1, 0, 0),
    ]
    assert found.splits[0].added_rows == ({"text": "c"},)
    assert found.splits[0].removed_rows == ({"text": "b"},)
    assert client.datasets.diff("sql@v1", "sql@v1").is_empty


def test_a_job_takes_a_data_set_by_its_name_from_any_machine(client: Client, tmp_path: Path) -> None:
    rows = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    version = client.datasets.push(write(tmp_path / "rows.jsonl", rows), "talk").version
    (tmp_path / "rows.jsonl").unlink()

    record = client.submit(
        TrainJob(model=ModelRef(source=str(samples.base_model())), data=DataRef(source="talk"))
    ).record()

    assert isinstance(record.spec, TrainJob)
    data = record.spec.data
    assert (data.digest, data.version, data.format) == (version.digest, "talk@v1", DataFormat.CHAT)
    with pytest.raises(InvalidInput, match="and no data set of that name"):
        client.submit(record.spec.model_copy(update={"data": DataRef(source="talks")}))
    with pytest.raises(NotFound, match="talk has no version v7"):
        client.submit(record.spec.model_copy(update={"data": DataRef(source="talk@v7")}))


def test_a_path_goes_before_a_name(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client.datasets.push(write(tmp_path / "rows.jsonl", TEXT), "sql")
    (tmp_path / "sql").mkdir()
    write(tmp_path / "sql" / "train.jsonl", {"text": "of the folder"})
    monkeypatch.chdir(tmp_path)

    assert client.datasets.named(DataRef(source="sql")).digest is None
    assert client.datasets.named(DataRef(source="sql@v1")).digest is not None


def test_any_form_is_stored_under_one_digest(client: Client, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n")
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "a", "completion": "b"}], indent=2))

    first = client.datasets.push(tmp_path / "rows.csv", "x").version
    second = client.datasets.push(tmp_path / "rows.json", "y").version

    assert first.digest == second.digest
