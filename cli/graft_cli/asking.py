"""Asking at the terminal before something goes for good."""

from __future__ import annotations

import sys

import typer


def confirmed(question: str) -> bool:
    """The answer of whoever sits there.

    Raises:
        InvalidInput: nobody can be asked.
    """
    from graft_scheduler.errors import InvalidInput

    if not sys.stdin.isatty():
        raise InvalidInput(f"{question} Nobody can be asked here; `--yes` says so")
    return typer.confirm(question, err=True)
