"""The process that loads MLX and makes a model of an adapter: its order, and its answer as people see it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import typer

from graft_cli.amounts import duration, perplexity, size
from graft_cli.generate import require_mlx
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.exports import ExportAnswer, ExportOrder, ExportReport, Fidelity

COMMAND = ("-m", "graft_worker.export_command")
HEADER = ("MODEL", "LOSS", "PERPLEXITY", "DIVERGENCE")
LEAST_TOKENS = 200
"""Fewer tell little of a loss."""


def make(order: ExportOrder, *, as_json: bool) -> ExportReport:
    """Make what `order` says in a process of its own, and show the report.

    Raises:
        typer.Exit: it was not made; why has been said.
    """
    require_mlx()
    code, answer = _run(order)
    if as_json:
        out.json(answer.model_dump(mode="json"))
    if answer.report is None:
        if answer.fidelity is not None and not as_json:
            _show_fidelity(answer.fidelity)
        out.error(answer.error or f"the process that does the work ended with exit code {code}")
        if answer.fidelity is not None:
            _hint_at_forms(order)
        raise typer.Exit(code or 1)
    if not as_json:
        _show(answer.report)
    for note in answer.report.notes:
        out.warning(note)
    return answer.report


def _run(order: ExportOrder) -> tuple[int, ExportAnswer]:
    from pydantic import ValidationError

    from graft_scheduler.exports import ExportAnswer

    with subprocess.Popen(
        [sys.executable, *COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            said, _ = process.communicate(order.model_dump_json())
        except KeyboardInterrupt:  # the process hears it too, and cleans up
            process.wait()
            raise
    try:
        return process.returncode, ExportAnswer.model_validate_json(said.splitlines()[-1] if said else "")
    except ValidationError:
        return process.returncode, ExportAnswer()


def _show(report: ExportReport) -> None:
    fidelity = report.fidelity
    out.pairs(
        report.kind,
        [
            ("output", report.output),
            ("base", report.model),
            ("weights", report.form),
            ("size", _sizes(report)),
            ("checked on", _origin(fidelity)),
            ("kept", _kept(fidelity)),
            ("took", f"{duration(report.seconds)}, {size(report.peak_memory_bytes)} at the peak"),
        ],
    )
    _show_fidelity(fidelity)


def _sizes(report: ExportReport) -> str:
    if report.size_bytes == report.fused_bytes:
        return size(report.size_bytes)
    share = report.size_bytes / report.fused_bytes
    return f"{size(report.size_bytes)}, {share:.0%} of the {size(report.fused_bytes)} before"


def _origin(fidelity: Fidelity) -> str:
    few = " (few: their losses say little)" if fidelity.tokens < LEAST_TOKENS else ""
    return f"{fidelity.tokens} tokens of {fidelity.origin}{few}"


def _kept(fidelity: Fidelity) -> str:
    if fidelity.kept is None:
        return "the adapter changes next to nothing here: there was nothing to lose"
    return f"{max(fidelity.kept, 0):.1%} of the tuning"


def _show_fidelity(fidelity: Fidelity) -> None:
    rows = [
        ("base", fidelity.base_loss, fidelity.tuning),
        ("adapted", fidelity.adapted_loss, 0.0),
        ("fused", fidelity.fused_loss, fidelity.difference),
        ("quantised", fidelity.quantized_loss, fidelity.quantized_difference),
    ]
    out.table(
        HEADER,
        [
            (name, f"{loss:.4f}", perplexity(loss), f"{divergence:.2g}")
            for name, loss, divergence in rows
            if loss is not None and divergence is not None
        ],
    )


def _hint_at_forms(order: ExportOrder) -> None:
    """What else can be done where too little of the tuning is left."""
    into = getattr(order, "into", None)
    if into == "quantized":
        out.hint("without `--keep-quantized` it is fused at full precision")
    elif into == "full":
        out.hint("`--dequantize` fuses into the base as it was trained on, `--dtype float32` rounds less")
    out.hint("`--force` keeps it all the same")
