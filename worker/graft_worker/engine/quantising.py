"""A fused model, quantised: what that costs is measured on the same rows as the fusing."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

from mlx_lm.utils import quantize_model

from graft_scheduler.basemodels import CONFIG_FILE
from graft_scheduler.exports import ExportReport, Fidelity, Into, QuantiseOrder
from graft_scheduler.hyperparameters import Precision
from graft_scheduler.states import FailureClass
from graft_worker.engine.device import peak_bytes, prepared
from graft_worker.engine.evaluation import perplexity
from graft_worker.engine.exporting import (
    Tell,
    Written,
    check,
    load_lazily,
    measure,
    no_leftovers,
    open_checked,
    quantization_in,
    refuse_lost,
    write_fused,
    write_model,
)
from graft_worker.engine.fidelity import compare
from graft_worker.engine.folders import write_whole
from graft_worker.engine.fused import QUANTIZED
from graft_worker.engine.fused_card import base_card, write_fused_card
from graft_worker.link import JobError

FUSED = ".fused"
"""The fused model on its way, inside what is being made."""
MOST_RISE = 0.05
"""A perplexity that rises by more than this share is worth a warning: people notice such answers."""
MOST_GIVEN_BACK = 0.1
"""And so is giving back more of what the tuning gained, however small that was."""


def quantise_fused(order: QuantiseOrder, tell: Tell) -> ExportReport:
    """Fuse an adapter at full precision, then quantise; the fused model is checked as `fuse` checks it.

    Raises:
        JobError, Conflict, TuningLost: as `exporting.fuse`; also a group size that divides no layer.
    """
    began, output = time.monotonic(), Path(order.output).expanduser()
    source = open_checked(order)
    made: list[tuple[Written, Written, Fidelity]] = []
    with prepared(None):
        measured = measure(source, tell)

        def write(aside: Path) -> None:
            fused_folder = aside / FUSED
            fused_folder.mkdir()
            fused = write_fused(source, Into.FULL, Precision.AUTO, fused_folder, tell)
            fidelity = check(source, measured, fused_folder, tell)
            refuse_lost(fidelity, order)
            quantised = _quantise(order, fused_folder, aside, tell, trusts=source.trusts)
            shutil.rmtree(fused_folder)
            tell("asking the quantised model")
            after = compare(measured.witness, source.load_made(aside).model)
            figures = {"quantized_loss": after.loss, "quantized_difference": after.divergence}
            fidelity = fidelity.model_copy(update=figures)
            write_fused_card(aside, source, "quantised", quantised.form, fidelity)
            made.append((fused, quantised, fidelity))

        with no_leftovers(output):
            write_whole(output, write)
        ((fused, quantised, fidelity),) = made
        return ExportReport(
            kind=order.kind,
            output=str(output),
            model=base_card(source).name,
            form=quantised.form,
            size_bytes=quantised.size_bytes,
            fused_bytes=fused.size_bytes,
            fidelity=fidelity,
            seconds=time.monotonic() - began,
            peak_memory_bytes=peak_bytes(),
            notes=source.notes + _warnings(fidelity),
        )


def cost(base: float, fused: float, quantised: float) -> str | None:
    """What to say of these losses, if quantising cost much."""
    rise, gain = quantised - fused, base - fused
    reasons = []
    if (ratio := perplexity(rise) - 1) > MOST_RISE:
        reasons.append(f"raises the perplexity by {ratio:.0%}")
    if gain > 0 and rise > MOST_GIVEN_BACK * gain:
        reasons.append(f"gives back {rise / gain:.0%} of what the tuning gained")
    if not reasons:
        return None
    return f"quantising {' and '.join(reasons)}; more bits or smaller groups cost less"


def _quantise(order: QuantiseOrder, fused: Path, folder: Path, tell: Tell, *, trusts: bool) -> Written:
    """Quantise the model in `fused` into `folder`, a tensor at a time."""
    model, config = load_lazily(fused, trusts=trusts)
    try:
        with redirect_stdout(sys.stderr):  # mlx-lm prints how many bits a weight has
            model, config = quantize_model(model, config, order.group_size, order.bits, mode=order.mode.value)
    except ValueError as error:  # a size that the mode has not
        raise JobError(FailureClass.CONFIG, f"the model cannot be quantised so: {error}") from error
    if not any(isinstance(module, QUANTIZED) for _, module in model.named_modules()):
        asked = quantization_in(config)["quantization"]["group_size"]
        text = f"groups of {asked} divide no layer of the model; use a smaller `--group-size`"
        raise JobError(FailureClass.CONFIG, text)
    on_disk = json.loads((fused / CONFIG_FILE).read_bytes())
    return write_model(model, {**on_disk, **quantization_in(config)}, fused, folder, None, tell)


def _warnings(fidelity: Fidelity) -> tuple[str, ...]:
    assert fidelity.quantized_loss is not None
    found = cost(fidelity.base_loss, fidelity.fused_loss, fidelity.quantized_loss)
    return () if found is None else (found,)
