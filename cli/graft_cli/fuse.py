"""`graft fuse`: a model of its own, with the adapter in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.adapter_choice import AdapterArgument, Asked, DataOption, ModelOption, choose_adapter
from graft_cli.making import make
from graft_cli.options import AsJson, CheckpointOption, RedisUrl, StoreUrl
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.hyperparameters import Precision

Force = Annotated[
    bool, typer.Option("--force", help="Keep it although the check says that the tuning is lost.")
]


def fuse(
    adapter: AdapterArgument,
    checkpoint: CheckpointOption = None,
    model: ModelOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: fused/NAME.")
    ] = None,
    data: DataOption = None,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize", help="Into the base as it was trained on, with its quantisation undone."
        ),
    ] = False,
    keep_quantized: Annotated[
        bool, typer.Option("--keep-quantized", help="Into the quantised base, which rounds the adapter.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto (the base's own), float32, bfloat16 or float16.")
    ] = "auto",
    force: Force = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Fuse an adapter into its base, and check that the tuning is still there."""
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.exports import FuseOrder, Into

    if dequantize and keep_quantized:
        raise InvalidInput("`--dequantize` and `--keep-quantized` exclude each other; give one of them")
    precision = as_precision(dtype)
    into = Into.TRAINED if dequantize else Into.QUANTIZED if keep_quantized else Into.FULL
    chosen = choose_adapter(Asked(adapter, checkpoint, model, data, redis_url, store_url))
    order = FuseOrder(
        adapter=str(chosen.folder),
        output=str(output or Path("fused") / chosen.name),
        model=chosen.model,
        trained_on=chosen.trained_on,
        data=chosen.data,
        precision=chosen.precision,
        into=into,
        dtype=precision,
        force=force,
    )
    report = make(order, as_json=as_json)
    out.hint(f"graft generate -m {report.output} -p 'your prompt'")


def as_precision(dtype: str) -> Precision:
    """The dtype that a person named.

    Raises:
        InvalidInput: there is none of that name.
    """
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.hyperparameters import Precision

    try:
        return Precision(dtype)
    except ValueError as error:
        raise InvalidInput(f"`--dtype` is {dtype!r}; it must be one of {', '.join(Precision)}") from error
