"""Each exit code, and that the documentation tells the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graft_cli.exits import MEANINGS, ExitCode, exit_code, outcome_code
from graft_scheduler import errors
from graft_scheduler.states import FailureClass, JobState
from tests.cli.conftest import Graft
from tests.cli.records import record

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("?"), 1),
        (errors.StoreError("?"), 1),
        (errors.InvalidInput("?"), 2),
        (errors.NotFound("?"), 3),
        (errors.NotAllowed("?"), 4),
        (errors.DoesNotFit("?"), 5),
        (errors.NeverFits("?"), 6),
        (errors.Conflict("?"), 7),
        (errors.Fenced("?"), 7),
        (errors.Unreachable("?"), 8),
        (errors.JobFailed("?"), 20),
        (TimeoutError("?"), 24),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("state", "failure", "code"),
    [
        (JobState.COMPLETED, None, 0),
        (JobState.FAILED, FailureClass.DATA, 20),
        (JobState.FAILED, FailureClass.DIVERGED, 20),
        (JobState.FAILED, FailureClass.INTERNAL, 20),
        (JobState.CANCELLED, None, 21),
        (JobState.FAILED, FailureClass.MEMORY, 22),
        (JobState.FAILED, FailureClass.HOST, 23),
        (JobState.FAILED, FailureClass.TIMEOUT, 24),
    ],
)
def test_each_outcome_of_a_job_has_its_exit_code(
    state: JobState, failure: FailureClass | None, code: int
) -> None:
    assert outcome_code(record(state, failure)) == code


def test_every_exit_code_is_documented_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)

    assert {int(code): meaning for code, meaning in rows} == {int(code): MEANINGS[code] for code in ExitCode}


def test_an_unexpected_error_is_one_line_without_a_traceback(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft_cli.installation.installed", lambda name: {}[name])

    run = graft("version")

    assert run.code == 1
    assert run.stdout == ""
    assert run.stderr.startswith("error: KeyError")
    assert "Traceback" not in run.stderr
    assert "GRAFT_DEBUG" in run.stderr


def test_graft_debug_shows_the_traceback(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft_cli.installation.installed", lambda name: {}[name])
    monkeypatch.setenv("GRAFT_DEBUG", "1")

    assert "Traceback" in graft("version").stderr


def test_a_redis_that_does_not_answer_is_one_line_and_exit_code_8(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFT_REDIS_URL", "redis://127.0.0.1:1/0")

    for words in (["ps"], ["show", "x"], ["hosts"], ["cancel", "x"], ["wait", "x"], ["logs", "-f", "x"]):
        run = graft(*words)
        assert run.code == 8
        assert run.stdout == ""
        assert run.stderr.startswith("error: Redis at redis://127.0.0.1:1/0 does not answer")
        assert run.stderr.count("\n") == 1
