"""`graft tune`: search for the best settings of a fine-tune, with trials all over the fleet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft_cli.job_options import takes_job
from graft_cli.options import AsJson, RedisUrl, Timeout, connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.jobs import TrainJob


@takes_job
def tune(
    job: TrainJob,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="NAME=WHAT",
            help="What is tried of a setting: learning_rate=log:1e-5..1e-3, rank=8,16,32, "
            "dropout=0..0.2/0.05; repeatable. Default: what matters most.",
        ),
    ] = None,
    space: Annotated[
        Path | None, typer.Option("--space", metavar="FILE", help="The same from a YAML or JSON file.")
    ] = None,
    study: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Name of the study; default: a new one.")
    ] = None,
    trials: Annotated[int, typer.Option(help="How many trials in all.")] = 24,
    parallel: Annotated[int, typer.Option(help="How many may run or wait for a host at once.")] = 4,
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="No trial begins after this: 90m, 8h, 3600s.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="tpe (default), random, grid, qmc, gp or cmaes.")
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(
            help="halving (default), hyperband, median, patient or none; none with several objectives."
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="What is made small: validation_loss (default), peak_memory, seconds; several as a,b.",
        ),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Trials that take more, such as 12GB, are infeasible.")
    ] = None,
    max_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Trials that train for longer are infeasible.")
    ] = None,
    warm_start: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Begin with the best settings of an earlier study.")
    ] = None,
    study_seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    final: Annotated[
        bool, typer.Option("--final", help="In the end the best settings' adapter is the study's result.")
    ] = False,
    final_epochs: Annotated[
        float | None, typer.Option(help="Train the best settings again for so long in the end.")
    ] = None,
    final_steps: Annotated[int | None, typer.Option(help="The same in steps.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait, and show each trial that ends.")
    ] = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Search for the best settings: a study whose trials are jobs; prints its name."""
    settings = study_settings(
        trials=trials,
        parallel=parallel,
        seconds=seconds_of("--time-budget", time_budget),
        sampler=sampler,
        pruner=pruner,
        objectives=_split(objective),
        constraints=limits(max_memory, max_time),
        seed=study_seed,
        final=final_training(final=final, epochs=final_epochs, steps=final_steps),
    )
    what = read_search(search, space)
    silence_optuna()
    with connect(redis_url) as client:
        handle = client.tune(job, what, name=study, warm_start=warm_start, **settings)
        if not as_json:
            out.data(handle.name)
        if wait or follow:
            from graft_cli.study_watching import watch_to_exit

            watch_to_exit(client, handle.name, tells_trials=follow, timeout=timeout, as_json=as_json)
        if as_json:
            out.json(handle.record().as_json())
    out.hint(f"`graft study show {handle.name}` shows how far it is, `graft ps` its trials as jobs")


def silence_optuna() -> None:
    """Its news of studies are ours to tell."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def study_settings(**given: Any) -> dict[str, Any]:
    """Those that were given; without a pruner where there are several objectives."""
    if given["pruner"] is None and len(given["objectives"] or ()) > 1:
        out.note("several objectives: trials are not pruned, as Optuna prunes by one only")
        given["pruner"] = "none"
    return {name: value for name, value in given.items() if value is not None}


def read_search(search: list[str] | None, space: Path | None) -> Any:
    """The search space of the flags or the file; nothing for the default."""
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.studies.tuning import search_from_file

    if search and space is not None:
        raise InvalidInput("`--search` and `--space` are both given; put all of the search space in one")
    return search if space is None else search_from_file(space)


def limits(max_memory: str | None, max_time: str | None) -> dict[str, Any] | None:
    """What a trial may take, in the study's terms."""
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.settings import parse_bytes

    found: dict[str, Any] = {}
    if max_memory is not None:
        try:
            found["peak_memory_bytes"] = parse_bytes(max_memory)
        except ValueError as error:
            raise InvalidInput(f"`--max-memory`: {error}") from error
    if max_time is not None:
        found["seconds"] = seconds_of("--max-time", max_time)
    return found or None


def seconds_of(option: str, text: str | None) -> float | None:
    """`90m`, `8h`, `2d`, `45s` or plain seconds.

    Raises:
        InvalidInput: it is something else.
    """
    from graft_scheduler.errors import InvalidInput

    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidInput(f"`{option}` is {text!r}; write a time above zero, such as 90m or 8h")
    return seconds


def final_training(*, final: bool, epochs: float | None, steps: int | None) -> dict[str, Any] | None:
    """What is trained in the end, in the study's terms."""
    if not final and epochs is None and steps is None:
        return None
    return {"epochs": epochs, "steps": steps}


def _split(texts: list[str] | None) -> list[str] | None:
    names = {"loss": "validation_loss"}
    if not texts:
        return None
    parts = [part.strip() for text in texts for part in text.split(",")]
    return [names.get(part, part) for part in parts]
