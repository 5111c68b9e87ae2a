"""`graft study`: what studies there are, how they do, and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graft_cli.options import AsJson, RedisUrl, Timeout, connect
from graft_cli.output import out
from graft_cli.tune import silence_optuna

app = typer.Typer(help="See, stop, resume and export studies.", rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def study() -> None:
    """See, stop, resume and export studies."""
    silence_optuna()


StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's name, or a beginning that no other has.")
]


@app.command("ls")
def ls(as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """List the studies, the newest first."""
    from graft_cli.study_view import LIST_HEADER, list_row

    with connect(redis_url) as client:
        studies = client.studies
        records = studies.all()
        if as_json:
            out.json([record.as_json() for record in records])
        elif records:
            out.table(LIST_HEADER, [list_row(studies, one) for one in records], shrink=(0, 4))
        else:
            out.note("there is no study yet")
            out.hint("`graft tune -m MODEL -d DATA` begins one")


@app.command()
def show(study: StudyArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """What a study is, how far it is, and the best so far."""
    from graft_cli.study_view import count_text, print_study, trial_json

    with connect(redis_url) as client:
        studies = client.studies
        record = studies.get(study)
        if not as_json:
            print_study(studies, record)
            out.hint(f"`graft study trials {record.name}` lists the trials")
            return
        best, trials = studies.best(record), studies.trials(record)
        progress = count_text(trials, record)
        found = None if best is None else trial_json(best, record)
        out.json({**record.as_json(), "progress": progress, "best": found})


@app.command()
def trials(study: StudyArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """List a study's trials."""
    from graft_cli.study_view import TRIAL_HEADER, trial_json, trial_row

    with connect(redis_url) as client:
        studies = client.studies
        record = studies.get(study)
        found = studies.trials(record)
    if as_json:
        out.json([trial_json(one, record) for one in found])
    else:
        out.table(TRIAL_HEADER, [trial_row(one, record) for one in found], shrink=(3, 7))


@app.command()
def best(study: StudyArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """The best settings, as flags for `graft train`; with several objectives the Pareto front."""
    from graft_cli.study_view import TRIAL_HEADER, trial_json, trial_row
    from graft_scheduler.errors import Conflict

    with connect(redis_url) as client:
        studies = client.studies
        record = studies.get(study)
        if len(record.spec.objectives) > 1:
            front = studies.study(record.name).best_trials
        else:
            found = studies.best(record)
            front = [] if found is None else [found]
    if not front:
        raise Conflict(f"study {record.name} has no whole trial within its limits yet")
    if as_json:
        out.json([trial_json(one, record) for one in front])
    elif len(front) > 1:
        out.table(TRIAL_HEADER, [trial_row(one, record) for one in front], shrink=(3, 7))
    else:
        out.data(flags_text(front[0].params, record))
        job = record.final_job or front[0].user_attrs.get("job")
        out.hint(f"`graft pull {job}` brings its adapter")


@app.command()
def stop(study: StudyArgument, redis_url: RedisUrl = None) -> None:
    """Begin no more trials; those that run save checkpoints and give their hosts back."""
    with connect(redis_url) as client:
        record = client.studies.stop(study)
    out.data(record.name)
    out.hint(f"`graft study resume {record.name}` goes on with it")


@app.command()
def resume(
    study: StudyArgument,
    trials: Annotated[int | None, typer.Option(help="How many trials in all from now on.")] = None,
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="No trial begins after this: 90m, 8h.")
    ] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Go on with a study that was stopped, or give one that has ended more trials."""
    from graft_cli.tune import seconds_of

    with connect(redis_url) as client:
        record = client.studies.resume(study, trials, seconds_of("--time-budget", time_budget))
    out.data(record.name)
    out.hint(f"`graft study show {record.name}` shows how far it is")


@app.command()
def wait(
    study: StudyArgument, timeout: Timeout = None, as_json: AsJson = False, redis_url: RedisUrl = None
) -> None:
    """Wait for a study's end, and show each trial that ends."""
    from graft_cli.study_watching import watch_to_exit

    with connect(redis_url) as client:
        record = client.studies.get(study)
        watch_to_exit(client, record.name, tells_trials=True, timeout=timeout, as_json=as_json)


@app.command()
def export(
    study: StudyArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: studies/STUDY.")
    ] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Write a study as one HTML page, pictures, CSV and JSON; prints the page's path."""
    from graft_scheduler.studies.report import write_report

    with connect(redis_url) as client:
        record = client.studies.get(study)
        folder = output or Path("studies") / record.name.replace("/", "-")
        written = write_report(client.studies.study(record.name), folder, record.spec.objectives)
    out.data(str(next(path for path in written if path.suffix == ".html")))
    out.note(f"{len(written)} files in {folder}")


@app.command()
def rm(study: StudyArgument, redis_url: RedisUrl = None) -> None:
    """Forget a study that is not at work, and end its paused trials; jobs that have ended stay."""
    with connect(redis_url) as client:
        name = client.studies.get(study).name
        client.studies.delete(name)
    out.note(f"study {name} is forgotten")


def flags_text(params: object, record: object) -> str:
    """The settings as `--set` flags."""
    import json
    import shlex

    from graft_scheduler.studies.proposals import values_of

    values = values_of(params, record.spec.space)  # type: ignore[arg-type,attr-defined]
    parts = (
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    )
    return " ".join(f"--set {shlex.quote(part)}" for part in parts)
