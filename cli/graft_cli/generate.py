"""`graft generate`: one answer of a model on this machine, with or without an adapter."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from graft_cli.adapter_choice import adapter_folder
from graft_cli.options import AsJson, CheckpointOption, RedisUrl, StoreUrl

COMMAND = ("-m", "graft_worker.generate_command")
NEEDS_MLX = "this needs MLX on this machine; `pip install '.[worker]'` in Graft's folder installs it"


def generate(
    model: Annotated[str, typer.Option("--model-path", "--model", "-m", help="A folder or a hub id.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to answer; `-` reads it from stdin.")],
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter-path",
            "--adapter",
            "-a",
            metavar="DIR|NAME|JOB",
            help="An adapter: its folder, name or job.",
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of the answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 always takes the likeliest token.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    checkpoint: CheckpointOption = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Answer a prompt here, with or without an adapter."""
    require_mlx()
    text = sys.stdin.read() if prompt == "-" else prompt
    command = generate_command(
        model,
        text,
        None if adapter is None else adapter_folder(adapter, checkpoint, redis_url, store_url),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        raw=raw,
        as_json=as_json,
    )
    os.execv(command[0], command)  # noqa: S606 - no shell is what we want


def generate_command(
    model: str,
    prompt: str,
    adapter: Path | None = None,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    raw: bool = False,
    as_json: bool = False,
) -> list[str]:
    """The process that answers; it alone loads MLX."""
    command = [sys.executable, *COMMAND, f"--model={model}", f"--prompt={prompt}"]
    options = {"adapter": adapter, "max-tokens": max_tokens, "temperature": temperature, "seed": seed}
    command += [f"--{name}={value}" for name, value in options.items() if value is not None]
    command += ["--raw"] if raw else []
    return command + (["--json"] if as_json else [])


def require_mlx() -> None:
    """Raises `NotFound` where MLX is not installed, before anything slow starts."""
    from graft_scheduler.errors import NotFound

    if importlib.util.find_spec("mlx") is None:
        raise NotFound(NEEDS_MLX)
