"""Cards: what they say, and what they must not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from graft_scheduler.cards import (
    BaseCard,
    Card,
    Check,
    DataCard,
    Figures,
    derived_card,
    parse_card,
    public_config,
    public_name,
    read_card,
    readme,
    write_card,
)
from graft_scheduler.errors import StoreError
from graft_scheduler.jobs import TrainJob
from graft_scheduler.licences import find_licence
from graft_scheduler.states import Digest


def card(**changes: object) -> Card:
    values = {
        "what": "adapter",
        "job": "a1b2c3d4",
        "step": 20,
        "created_at": "2026-01-02T03:04:05+00:00",
        "base": BaseCard(name="mlx-community/tiny", revision="0123abcd", licence="apache-2.0"),
        "data": DataCard(name="org/rows", digest=Digest("sha256:" + "0" * 64), rows={"train": {"used": 40}}),
        "method": "lora",
        "seed": 7,
        "config": {"steps": 20},
        "versions": {"mlx": "0.32", "python": "3.13"},
        "device": "Apple M9 (gpu)",
        "system": "Darwin arm64",
        "figures": Figures(loss=0.5, perplexity=1.65, tokens_per_second=1234.5),
        **changes,
    }
    return Card.model_validate(values)


def test_a_card_is_read_back_as_it_was_and_by_the_hub(tmp_path: Path) -> None:
    write_card(tmp_path, card())

    assert parse_card((tmp_path / "graft.json").read_bytes(), "it") == card()
    _, head, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "base_model": "mlx-community/tiny",
        "base_model_relation": "adapter",
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["mlx", "graft", "lora", "adapter"],
        "datasets": ["org/rows"],
    }
    assert "| validation loss | 0.5000 |" in body


def test_a_data_set_that_is_no_hub_id_is_none_of_the_hubs() -> None:
    assert "datasets" not in readme(card(data=DataCard(name="rows.jsonl"))).partition("---\n#")[0]


def test_a_base_that_is_a_folder_is_none_of_the_hubs() -> None:
    text = readme(card(base=BaseCard(name="base", licence="mit")))

    assert "base_model:" not in text
    assert "# lora adapter for base" in text


def test_what_is_made_of_an_adapter_keeps_its_card(tmp_path: Path) -> None:
    check = Check(
        origin="tickets@v1", tokens=185, kept=0.998, base_loss=2.0, adapted_loss=1.0, fused_loss=1.01
    )
    own = derived_card(card(), "fused", card().base, "lora", form="bfloat16", check=check)
    foreign = derived_card(None, "quantised", BaseCard(name="org/base"), "dora")
    write_card(tmp_path, own)

    assert read_card(tmp_path) == own
    assert own.data == card().data
    text = (tmp_path / "README.md").read_text()
    for said in (
        "| kept of the tuning | 99.8% |",
        "185 tokens of tickets@v1",
        "| validation loss | 0.5000 |",
    ):
        assert said in text
    assert "base_model_relation: finetune\n" in text
    assert "license: apache-2.0\n" in text
    assert "# org/base with a dora adapter fused in, quantised\n" in readme(foreign)
    assert "| job |" not in readme(foreign)
    assert read_card(tmp_path / "none") is None


def test_a_card_of_a_later_version_is_refused_and_one_that_says_more_is_not() -> None:
    values = json.loads(card().model_dump_json())

    assert parse_card(json.dumps({**values, "mood": "good"}).encode(), "it") == card()
    with pytest.raises(StoreError, match=r"the card of it cannot be read \(version"):
        parse_card(json.dumps({**values, "version": 2}).encode(), "it")


def test_a_card_tells_no_place_no_person_and_no_secret() -> None:
    job = TrainJob.model_validate(
        {
            "model": "/home/zoe/models/my-base",
            "data": "~/secret-project/rows.jsonl",
            "submitter": "zoe",
            "labels": {"note": "/home/zoe"},
            "tracking": {"to": ["mlflow"], "uri": "https://zoe:hunter2@tracking/x?key=hunter2"},
        }
    )

    told = json.dumps(public_config(job.model_dump(mode="json")))

    assert "my-base" in told
    assert "rows.jsonl" in told
    for secret in ("/home", "~", "secret-project", "zoe", "hunter2"):
        assert secret not in told


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("org/model", "org/model"),
        ("/home/zoe/base/", "base"),
        ("./base", "base"),
        ("file:///srv/base", "base"),
        ("C:\\models\\base", "base"),
    ],
)
def test_a_place_is_called_by_its_last_part(source: str, name: str) -> None:
    assert public_name(source, is_local=False) == name


APACHE = (
    "                                 Apache License\n                           Version 2.0, January 2004\n"
)


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: mit\n---\n# A model", "LICENSE": APACHE}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: Gemma\n---\n"}, "gemma"),
        ({"README.md": "---\nlicense: [", "config.json": '{"license": "Apache-2.0"}'}, "apache-2.0"),
        ({"README.md": "no front matter", "LICENSE.txt": APACHE}, "apache-2.0"),
        ({"LICENSE": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"}, "llama3.2"),
        ({"LICENSE": "Do as our lawyers say."}, "other"),
        ({"config.json": "[1]"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_licence_is_what_the_bases_own_files_say(
    tmp_path: Path, files: dict[str, str], licence: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert find_licence(tmp_path) == licence
