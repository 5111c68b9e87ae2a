"""`graft validate`: is this set-up right, and if not, what to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from graft_cli.exits import ExitCode
from graft_cli.options import AsJson, DataDir, RedisUrl, StoreUrl
from graft_cli.output import STATE_COLORS, folded, out, paint

if TYPE_CHECKING:
    from graft_cli.checks import Check

MARK_WIDTH, NAME_WIDTH = 7, 13


def validate(
    as_json: AsJson = False, data_dir: DataDir = None, redis_url: RedisUrl = None, store_url: StoreUrl = None
) -> None:
    """Check this machine and the service.

    Each thing that is wrong comes with a remedy. Exit code 1 when something needed is not right.
    """
    from dataclasses import asdict

    from graft_cli.checks import Verdict, run_checks
    from graft_cli.processes import checked

    settings = checked({"data_dir": data_dir, "redis_url": redis_url, "store_url": store_url})
    done = []
    for check in run_checks(settings):
        done.append(check)
        if not as_json:
            print_check(check)
    failed = [check.name for check in done if check.verdict is Verdict.FAILED]
    if as_json:
        out.json({"ok": not failed, "checks": [asdict(check) for check in done]})
    if failed:
        out.error(f"not right: {', '.join(failed)}")
        raise typer.Exit(ExitCode.UNEXPECTED)
    out.note("everything that is needed is there")


def print_check(check: Check) -> None:
    """The verdict, what was found, and the remedy below it."""
    mark = paint(f"{check.verdict.value:<{MARK_WIDTH}}", sys.stdout, fg=STATE_COLORS.get(check.verdict.value))
    indent = " " * (MARK_WIDTH + NAME_WIDTH + 4)
    first, *more = folded(check.detail, len(indent))
    out.data(f"{mark}  {check.name:<{NAME_WIDTH}}  {first}")
    more += folded(f"→ {check.remedy}", len(indent)) if check.remedy else []
    for line in more:
        out.data(indent + line)
