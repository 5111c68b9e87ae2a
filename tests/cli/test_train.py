"""From the command line to a job: flags, files, `--set`, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graft_cli import samples
from graft_cli.train_settings import build_job, parse_assignment
from graft_scheduler.errors import InvalidInput
from tests.cli.conftest import Graft

NEEDED = {"model": "base", "data": "rows.jsonl"}


def test_train_without_data_names_the_option_and_a_command_with_the_sample(graft: Graft) -> None:
    run = graft("train", "--model", "some/model")

    assert run.code == 2
    assert run.stdout == ""
    assert "`--data` is missing" in run.stderr
    assert "graft train --model some/model" in run.stderr
    assert str(samples.data_folder()) in run.stderr


def test_train_without_anything_names_both_options(graft: Graft) -> None:
    assert "`--model` and `--data` are missing" in graft("train").stderr


def test_an_unknown_setting_is_refused_with_the_nearest_one(graft: Graft) -> None:
    run = graft("train", "-m", "base", "-d", "rows.jsonl", "--set", "learnin_rate=1")

    assert run.code == 2
    assert "`learnin_rate` is not a setting; did you mean `learning_rate`?" in run.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rank", "0"], "`adapter.rank` is 0; it must be at least 1"),
        (["--method", "magic"], "`method` is 'magic'"),
        (["--epochs", "1", "--steps", "5"], "give one of them"),
        (["--set", "rank"], "write it as NAME=VALUE"),
        (["--label", "search"], "write it as NAME=VALUE"),
        (["--output", "here"], "`--output` goes with `--local`"),
        (["--config", "nowhere.toml"], "`--config` is nowhere.toml"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_the_remedy(
    graft: Graft, words: list[str], told: str
) -> None:
    run = graft("train", "-m", "base", "-d", "rows.jsonl", *words)

    assert run.code == 2
    assert run.stdout == ""
    assert told in run.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rank=16", 16),
        ("name=run 1", "run 1"),
        ("optimizer.max_grad_norm=null", None),
        ('targets=["a"]', ["a"]),
    ],
)
def test_set_takes_json_where_it_is_json_and_text_elsewhere(text: str, value: object) -> None:
    assert parse_assignment(text)[1] == value


def test_flags_win_over_the_file_and_set_over_both(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('model = "other"\nepochs = 3\nrank = 4\n[optimizer]\nlearning_rate = 0.5\nname = "sgd"\n')

    job = build_job(file, {**NEEDED, "steps": 7, "adapter.rank": 8}, ["lr=0.25"])

    assert job.model.source == "base"
    assert (job.steps, job.epochs) == (7, None)
    assert job.adapter.rank == 8
    assert job.optimizer.learning_rate == 0.25
    assert job.optimizer.name == "sgd"


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_json_and_yaml_files_are_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".yaml":
        pytest.importorskip("yaml")
    file = tmp_path / f"job{suffix}"
    file.write_text(json.dumps({**NEEDED, "rank": 3}))

    assert build_job(file, {}, []).adapter.rank == 3


def test_a_file_that_does_not_hold_settings_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.toml", "="), ("b.json", "[1]"), ("c.ini", "x")):
        file = tmp_path / name
        file.write_text(text)
        with pytest.raises(InvalidInput, match=name):
            build_job(file, NEEDED, [])


def test_nothing_is_queued_when_the_model_has_no_config(service: Graft, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n' * 4)

    run = service("train", "-m", str(tmp_path), "-d", str(tmp_path / "rows.jsonl"))

    assert run.code == 2
    assert "config.json" in run.stderr
    assert service("ps", "--json").json == []
