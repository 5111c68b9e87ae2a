"""`graft export`: an adapter in the forms that others load: PEFT's, llama.cpp's, and quantised for mlx-lm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.adapter_choice import AdapterArgument, Asked, Chosen, DataOption, ModelOption, choose_adapter
from graft_cli.amounts import size
from graft_cli.fuse import Force, as_precision
from graft_cli.making import make
from graft_cli.options import AsJson, CheckpointOption, RedisUrl, StoreUrl
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.peft_export import PeftExport

FORMS = ("peft", "gguf", "mlx-quantized")


def export(
    adapter: AdapterArgument,
    to: Annotated[str, typer.Option("--to", help="peft, gguf or mlx-quantized.")],
    checkpoint: CheckpointOption = None,
    model: ModelOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="Default: exports/NAME-FORM, exports/NAME.gguf."),
    ] = None,
    data: DataOption = None,
    bits: Annotated[int | None, typer.Option(help="Of mlx-quantized; default: 4.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Of mlx-quantized; default: 64.")] = None,
    mode: Annotated[str, typer.Option(help="Of mlx-quantized: affine, mxfp4, mxfp8 or nvfp4.")] = "affine",
    dtype: Annotated[
        str, typer.Option(help="Of gguf: auto (the base's own), float32, bfloat16 or float16.")
    ] = "auto",
    base_name: Annotated[
        str | None, typer.Option(help="Of peft: what PEFT is told to load, where that is not `--model`.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Write an adapter as PEFT's, as a GGUF file, or fused and quantised."""
    from pydantic import ValidationError

    from graft_scheduler.complaints import explain
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.exports import GgufOrder, QuantiseOrder

    if to not in FORMS:
        raise InvalidInput(f"`--to` is {to!r}; it must be one of {', '.join(FORMS)}")
    asked = Asked(adapter, checkpoint, model, data, redis_url, store_url)
    chosen = choose_adapter(asked, "config" if to == "peft" else "base")
    target = str(
        output or Path("exports") / (f"{chosen.name}.gguf" if to == "gguf" else f"{chosen.name}-{to}")
    )
    if to == "peft":
        _export_peft(chosen, Path(target), base_name or chosen.base_name, as_json=as_json)
        return
    shared = {
        "adapter": str(chosen.folder),
        "output": target,
        "model": chosen.model,
        "trained_on": chosen.trained_on,
        "data": chosen.data,
        "precision": chosen.precision,
        "force": force,
    }
    if to == "gguf":
        report = make(GgufOrder.model_validate({**shared, "dtype": as_precision(dtype)}), as_json=as_json)
        out.hint(f"llama-cli -m {report.output} -p 'your prompt'")
        return
    sizes = {"bits": bits, "group_size": group_size, "mode": mode}
    try:
        order = QuantiseOrder.model_validate({**shared, **sizes})
    except ValidationError as error:
        raise InvalidInput(explain(error, ())) from error
    report = make(order, as_json=as_json)
    out.hint(f"graft generate -m {report.output} -p 'your prompt'")


def _export_peft(chosen: Chosen, target: Path, base_name: str | None, *, as_json: bool) -> None:
    from graft_scheduler.peft_export import export_peft

    source = None if chosen.model is None else chosen.model.source
    found = export_peft(chosen.folder, target, source, base_name)
    if as_json:
        out.json(
            {
                "output": str(found.output),
                "base": found.base,
                "modules": found.modules,
                "ranks": list(found.ranks),
                "size_bytes": found.size_bytes,
                "notes": list(found.notes),
            }
        )
    else:
        _show_peft(found)
    for note in found.notes:
        out.warning(note)
    out.hint(f"peft.PeftModel.from_pretrained(base, '{found.output}')")


def _show_peft(found: PeftExport) -> None:
    low, high = found.ranks
    out.pairs(
        "peft",
        [
            ("output", str(found.output)),
            ("base", found.base),
            ("layers", str(found.modules)),
            ("rank", str(low) if low == high else f"{low} to {high}"),
            ("size", size(found.size_bytes)),
        ],
    )
