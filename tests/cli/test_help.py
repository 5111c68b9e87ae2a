"""`--help` is quick, because nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.conftest import Graft

HELP_CPU_SECONDS = 0.3
"""The promise; the test allows for a slow machine by comparing with an empty interpreter too."""
RUN = "import sys; sys.argv = ['graft', '--help']; from graft_cli.main import run; run()"
HEAVY = ("pydantic", "redis", "celery", "rich", "fsspec", "mlx", "optuna", "graft_scheduler")


def cpu_seconds(code: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = os.times()
    return (after.children_user + after.children_system) - (before.children_user + before.children_system)


@pytest.mark.processes
def test_help_takes_little_cpu_time() -> None:
    baseline = min(cpu_seconds("import typer") for _ in range(3))
    spent = min(cpu_seconds(RUN) for _ in range(3))

    assert spent < max(HELP_CPU_SECONDS, 2.5 * baseline)


@pytest.mark.processes
def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['graft', '--help']\nfrom graft_cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)"
    )

    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert ran.stderr == "[]\n"
    assert "train" in ran.stdout


def test_every_command_explains_itself(graft: Graft) -> None:
    listed = graft("--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    names = [line.split()[0] for line in listed.splitlines()]

    assert len(names) == 30
    for name in names:
        run = graft(name, "--help")
        assert run.code == 0
        assert f"Usage: graft {name}" in run.stdout


def test_graft_alone_prints_its_help(graft: Graft) -> None:
    run = graft()

    assert run.code == 0
    assert run.stdout.startswith("Usage: graft")


@pytest.mark.parametrize("words", [["--version"], ["version"]])
def test_the_version_is_one_line(graft: Graft, words: list[str]) -> None:
    run = graft(*words)

    assert run.stdout.startswith("graft ")
    assert run.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["tarin"], ["ps", "--bogus"], ["ps", "--limit", "0"], ["train", "--rank", "x"]]
)
def test_wrong_usage_leaves_with_2_and_says_so_on_stderr(graft: Graft, words: list[str]) -> None:
    run = graft(*words)

    assert run.code == 2
    assert run.stdout == ""
    assert "Error: " in run.stderr
