"""What a terminal gets, and what a pipe gets."""

from __future__ import annotations

import io
import sys

import pytest

from graft_cli import amounts
from graft_cli.output import Output, has_color


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 40 columns on stdout, from now to the end of the test."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


ROWS = [("a1b2c3d4", "running", "a name that is much too long for it"), ("e5f6a7b8", "queued", "short")]


def test_a_terminal_gets_color_and_rows_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)

    Output().table(("JOB", "STATE", "NAME"), ROWS, shrink=(2,))

    shown = screen.getvalue()
    assert "\x1b[36mrunning" in shown
    assert "a1b2c3d4" in shown
    assert "…" in shown


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")

    Output().table(("JOB", "STATE", "NAME"), ROWS, shrink=(2,))

    assert "\x1b" not in screen.getvalue()
    assert max(len(line) for line in screen.getvalue().splitlines()) <= 40


def test_a_pipe_gets_whole_values_without_color(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("JOB", "STATE", "NAME"), ROWS, shrink=(2,))

    shown = capsys.readouterr().out
    assert "a name that is much too long for it" in shown
    assert "\x1b" not in shown


def test_only_data_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.data("data")
    output.json({"a": 1})
    for say in (output.note, output.hint, output.warning, output.error):
        say("told")

    captured = capsys.readouterr()
    assert "told" not in captured.out
    assert captured.err.count("told") == 4
    assert not has_color(sys.stderr)


def test_times_and_losses_are_short() -> None:
    assert [amounts.age(seconds) for seconds in (4, 190, 7300, 200000)] == [
        "4s ago",
        "3m ago",
        "2h ago",
        "2d ago",
    ]
    assert [amounts.duration(seconds) for seconds in (8.4, 80, 7500, 100000)] == [
        "8s",
        "1m20s",
        "2h05m",
        "1d03h",
    ]
    assert amounts.perplexity(0.0) == "1.00"
    assert amounts.rate(12_345) == "12.3k tokens/s"
