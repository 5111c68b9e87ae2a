"""`graft plan`: what a job would take, and which hosts could run it, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from graft_cli.exits import ExitCode
from graft_cli.job_options import takes_job
from graft_cli.options import AsJson, RedisUrl, connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.host_verdicts import Fit
    from graft_scheduler.job_plan import JobPlan
    from graft_scheduler.jobs import TrainJob


@takes_job
def plan(job: TrainJob, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Say what a fine-tune would take, and which hosts could run it; nothing is queued."""
    tell_plan(job, redis_url, as_json=as_json)


def tell_plan(job: TrainJob, redis_url: str | None, *, as_json: bool) -> None:
    """Print the plan, and leave with the code of its answer."""
    from graft_cli.plan_view import describe_plan

    found = ask(job, redis_url)
    if as_json:
        out.json(found.as_json())
    else:
        describe_plan(found)
    if (code := plan_code(found.fit)) is not ExitCode.OK:
        raise typer.Exit(code)


def ask(job: TrainJob, redis_url: str | None) -> JobPlan:
    """The fleet's answer; where no service runs and none was named, what is known without one."""
    from graft_scheduler.errors import Unreachable
    from graft_scheduler.job_plan import plan_alone

    try:
        with connect(redis_url) as client:
            return client.plan(job)
    except Unreachable as error:
        if redis_url is not None:
            raise
        out.note(f"no fleet was asked: {error}")
        return plan_alone(job)


def plan_code(fit: Fit | None) -> ExitCode:
    """The code of an answer; none is as good as yes."""
    from graft_scheduler.host_verdicts import Fit

    match fit:
        case None | Fit.NOW:
            return ExitCode.OK
        case Fit.LATER:
            return ExitCode.DOES_NOT_FIT
        case Fit.NEVER:
            return ExitCode.NEVER_FITS
