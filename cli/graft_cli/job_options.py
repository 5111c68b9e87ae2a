"""The options that describe a fine-tune, declared once for every command that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from graft_scheduler.jobs import TrainJob

NAMES_ON_THE_LINE = {"settings": "set", "learning_rate": "lr"}
"""Of options that are not named as the parameters below."""


def job_of_options(
    model: Annotated[
        str | None, typer.Option("--model", "-m", "--model-path", help="Base model: a folder or a hub id.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A file, a folder, a data set's name, or a hub id.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="How to adapt the base: lora, qlora, dora or full; default: lora.")
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Rank of the adapters, or auto to find it; default: 8."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Adapter strength as alpha / rank.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", "--learning-rate", help="Peak learning rate; default: 1e-4.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data; default: 1.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --epochs.")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Rows per step; default: auto, by the data and the method."),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens; default: 2048.")] = None,
    layers: Annotated[int | None, typer.Option(help="Adapt only the last N blocks.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random; default: 0.")] = None,
    grad_checkpoint: Annotated[
        bool | None,
        typer.Option(
            "--grad-checkpoint/--no-grad-checkpoint",
            help="Less memory for more time; default: where a host has to.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 (most urgent) to 9; default: 5.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label; repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of a job, such as optimizer.name=sgd."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="Settings in TOML, JSON or YAML, Graft's or mlx-lm's."
        ),
    ] = None,
) -> TrainJob:
    """The job that the options mean.

    Raises:
        InvalidInput: names the setting or the option, its value, and what would be right.
    """
    from graft_cli.train_settings import build_job, parse_labels, parse_number_or_auto

    flags = {
        "model": model,
        "data": data,
        "method": method,
        "adapter.rank": parse_number_or_auto(rank, "--rank"),
        "adapter.alpha": alpha,
        "adapter.layers": layers,
        "optimizer.learning_rate": learning_rate,
        "epochs": epochs,
        "steps": steps,
        "batch_size": parse_number_or_auto(batch_size, "--batch-size"),
        "max_length": max_length,
        "seed": seed,
        "gradient_checkpointing": grad_checkpoint,
        "name": name,
        "priority": priority,
        "labels": parse_labels(label or ()),
    }
    return build_job(config, flags, settings or ())


def takes_job(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of a job before its own, and the job itself as `job`.

    Typer reads options from a function's signature: this one is put together from two.
    """
    return _with_options(command, lambda values, given: job_of_options(**values))


def takes_job_unless(option: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `takes_job`, for a command that needs no job where `option` is given: it then gets `None`."""

    def job_or_none(values: dict[str, Any], given: dict[str, Any]) -> TrainJob | None:
        if given[option] is None:
            return job_of_options(**values)
        refuse_job_options(option, values)
        return None

    return lambda command: _with_options(command, job_or_none)


def refuse_job_options(option: str, values: dict[str, Any]) -> None:
    """Raises `InvalidInput` where any option of a job is given beside one that excludes them."""
    from graft_scheduler.errors import InvalidInput

    for name, value in values.items():
        if value is not None:
            shown = NAMES_ON_THE_LINE.get(name, name.replace("_", "-"))
            raise InvalidInput(f"`--{shown}` describes a job, and `--{option}` is about one that is there")


def _with_options(
    command: Callable[..., None], make_job: Callable[[dict[str, Any], dict[str, Any]], TrainJob | None]
) -> Callable[..., None]:
    shared = inspect.signature(job_of_options).parameters
    own = [one for name, one in inspect.signature(command).parameters.items() if name != "job"]
    hints = {**get_type_hints(job_of_options, _names(), include_extras=True)} | _own_hints(command)

    def with_options(**given: Any) -> None:
        values = {name: given.pop(name) for name in shared}
        command(job=make_job(values, given), **given)

    parameters = [one.replace(annotation=hints[one.name]) for one in (*shared.values(), *own)]
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__annotations__ = {one.name: hints[one.name] for one in parameters}
    with_options.__dict__["__signature__"] = inspect.Signature(parameters)
    return with_options


def _own_hints(command: Callable[..., None]) -> dict[str, Any]:
    return get_type_hints(command, {**command.__globals__, **_names()}, include_extras=True)


def _names() -> dict[str, Any]:
    """Names in annotations that only type checkers import; nothing reads what they stand for."""
    return {**globals(), "TrainJob": object}
