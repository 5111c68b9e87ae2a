"""`validate`, `info` and `config`: what is right, what is not, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from graft_cli import installation
from tests.cli.conftest import Graft

DEVICE = {
    "device": "Apple M9",
    "budget_bytes": 40 << 30,
    "memory_bytes": 48 << 30,
    "versions": {"mlx": "1.0"},
}


@pytest.fixture(autouse=True)
def _no_probe_and_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's import takes seconds, and the network is none of a test's business."""
    monkeypatch.setattr(installation, "probe", lambda: DEVICE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def verdicts(service: Graft) -> dict[str, str]:
    checks = service("validate", "--json").json["checks"]
    return {check["name"]: check["verdict"] for check in checks}


def test_a_service_with_nobody_there_fails_with_remedies(service: Graft) -> None:
    run = service("validate")

    assert run.code == 1
    assert "→ `graft scheduler`" in run.stdout
    assert "→ `graft worker`" in run.stdout
    assert run.stderr == "error: not right: scheduler, workers\n"


def test_what_is_there_is_ok(service: Graft) -> None:
    found = verdicts(service)

    assert [found[name] for name in ("python", "store", "redis", "redis version", "redis memory")] == [
        "ok"
    ] * 5
    assert found["hub"] == "warning"


def test_without_redis_nothing_behind_it_is_judged(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_REDIS_URL", "redis://127.0.0.1:1/0")
    run = graft("validate", "--json")

    names = {check["name"]: check["verdict"] for check in run.json["checks"]}
    assert run.code == 1
    assert names["redis"] == "failed"
    assert "scheduler" not in names


def test_a_store_that_cannot_be_written_fails(
    service: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRAFT_STORE_URL", (tmp_path / "file").as_uri())

    assert verdicts(service)["store"] == "failed"


def test_info_tells_versions_device_and_addresses(graft: Graft) -> None:
    told = graft("info").stdout
    facts = graft("info", "--json").json

    assert "Apple M9" in told
    assert facts["device"]["budget_bytes"] == 40 << 30
    assert facts["versions"]["graft"]
    assert facts["redis_url"].startswith("redis://")


def test_config_tells_where_each_value_came_from(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_SLOTS", "3")
    settings = graft("config", "--redis-url", "redis://mini:6379/0", "--json").json["settings"]

    assert settings["slots"] == {
        "value": "3",
        "source": "environment GRAFT_SLOTS",
        "help": settings["slots"]["help"],
    }
    assert settings["redis_url"]["source"] == "flag"
    assert settings["lease_seconds"]["source"] == "default"


def test_config_hides_secrets(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_FLOWER_PASSWORD", "hush")
    monkeypatch.setenv("GRAFT_REDIS_URL", "redis://me:hush@mini:6379/0")

    for words in (["config"], ["config", "--json"], ["info"], ["info", "--json"]):
        assert "hush" not in graft(*words).stdout


def test_a_bad_config_file_leaves_with_2_and_names_the_setting(graft: Graft, tmp_path: Path) -> None:
    (tmp_path / "graft-config.toml").write_text('redis_ulr = "x"\n')

    run = graft("config")

    assert run.code == 2
    assert "did you mean `redis_url`?" in run.stderr
