"""`graft demo`, `graft up` and `graft train` as a person runs them, on the base that ships with Graft."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from graft_cli import samples

pytestmark = pytest.mark.processes

GRAFT = str(Path(sys.executable).parent / "graft")


def graft(*words: str, folder: Path, timeout_seconds: float = 150) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GRAFT_DATA_DIR": str(folder)}
    return subprocess.run(
        [GRAFT, *words],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        env=environment,
        check=False,
    )


def test_the_demo_tells_its_whole_story(tmp_path: Path) -> None:
    done = graft("demo", "--steps", "12", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    story = done.stderr
    found = re.search(r"validation perplexity: ([\d.]+) before, ([\d.]+) after", story)
    assert found is not None
    before, after = float(found[1]), float(found[2])
    assert before > 100
    assert after < before / 10
    for told in (
        "Flower: http://127.0.0.1:",
        "export GRAFT_DATA_DIR=",
        "base alone:",
        "with adapter:",
    ):
        assert told in story
    assert not Path(re.findall(r"GRAFT_DATA_DIR=(\S+)", story)[0]).exists()


def test_the_shipped_base_and_data_are_whole_and_small() -> None:
    from graft_scheduler.basemodels import read_base_model
    from graft_scheduler.data.opening import inspect_path
    from graft_scheduler.data.sources import Split

    base = read_base_model(samples.base_model())
    found = inspect_path(samples.data_folder())

    assert base.has_chat_template
    assert 1_000_000 <= base.parameters <= 2_000_000
    assert sum(path.stat().st_size for path in samples.base_model().iterdir()) <= 4 << 20
    assert (found.format, found.facts(Split.TRAIN).rows, found.facts(Split.VALID).rows) == ("chat", 1024, 64)
    assert not found.faults.counts
    assert samples.SHOWCASE.prompt not in (samples.data_folder() / "train.jsonl").read_text()


def test_a_local_training_needs_no_service_and_answers(tmp_path: Path) -> None:
    words = ["--model", str(samples.base_model()), "--data", str(samples.data_folder())]
    trained = graft(
        *("train", *words, "--local", "--output", str(tmp_path / "out")),
        *("--steps", "2", "--batch-size", "2", "--set", "evaluation.rows=2", "--json"),
        folder=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr

    adapter = str(tmp_path / "out" / "adapter")
    question = ("-p", samples.SHOWCASE.prompt, "--max-tokens", "4", "--json")
    asked = graft("generate", "-m", str(samples.base_model()), "-a", adapter, *question, folder=tmp_path)

    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["generation_tokens"] <= 4
