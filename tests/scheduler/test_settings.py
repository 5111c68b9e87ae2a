"""Where a setting comes from, and which place wins."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from graft_scheduler.errors import InvalidInput
from graft_scheduler.settings import (
    UP_FILE,
    hide_password,
    load_settings,
    parse_bytes,
    profile_in_use,
    resolve_settings,
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("GRAFT_CONFIG", str(path))
    return path


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("slots = 2\n")
    assert resolve_settings()["slots"].value == 2
    assert resolve_settings()["slots"].source == str(config)

    monkeypatch.setenv("GRAFT_SLOTS", "3")
    assert (resolve_settings()["slots"].value, resolve_settings()["slots"].source) == (
        3,
        "environment GRAFT_SLOTS",
    )
    assert resolve_settings({"slots": "4"})["slots"].value == 4


def test_the_profile_in_use_wins_over_the_top_level(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('slots = 2\n[profiles.lab]\nslots = 5\nredis_url = "redis://lab:6379/0"\n')
    monkeypatch.setenv("GRAFT_PROFILE", "lab")

    assert load_settings().slots == 5
    assert load_settings().redis_url == "redis://lab:6379/0"
    assert profile_in_use() == "lab"


def test_a_profile_that_is_not_there_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_PROFILE", "lab")

    with pytest.raises(InvalidInput, match="profile `lab` is not in"):
        load_settings()


def test_an_unknown_setting_in_the_file_names_the_nearest(config: Path) -> None:
    config.write_text('redis_ur = "redis://x"\n')

    with pytest.raises(InvalidInput, match="`redis_ur` is not a setting; did you mean `redis_url`"):
        load_settings()


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_bad_value_names_its_origin(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GRAFT_SLOTS", value)

    with pytest.raises(InvalidInput, match="`slots` from environment GRAFT_SLOTS"):
        load_settings()


def test_the_running_up_on_this_machine_is_found(tmp_path: Path) -> None:
    state = {"pid": os.getpid(), "redis_url": "redis://127.0.0.1:7379/0", "more": "ignored"}
    (tmp_path / UP_FILE).write_text(json.dumps(state))

    found = resolve_settings({"data_dir": str(tmp_path)})["redis_url"]

    assert (found.value, found.source) == ("redis://127.0.0.1:7379/0", "running `graft up`")


def test_an_up_that_has_died_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / UP_FILE).write_text(json.dumps({"pid": 2**22 + 1, "redis_url": "redis://127.0.0.1:7379/0"}))

    assert resolve_settings({"data_dir": str(tmp_path)})["redis_url"].source == "default"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("2k", 2048), ("1.5GB", 3 << 29), ("12 GiB", 12 << 30), ("1T", 1 << 40), ("5b", 5)],
)
def test_sizes_are_read_in_the_usual_spellings(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "12 parsecs", "0", "-3GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no amount of memory|unknown unit|not above zero"):
        parse_bytes(text)


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_REDIS_URL", "redis://ada:hunter2@lab:6379/0")
    monkeypatch.setenv("GRAFT_FLOWER_PASSWORD", "hunter2")

    shown = [one.shown for one in resolve_settings().values()]

    assert "redis://ada:***@lab:6379/0" in shown
    assert not any("hunter2" in text for text in shown)
    assert hide_password("redis://lab:6379/0") == "redis://lab:6379/0"
