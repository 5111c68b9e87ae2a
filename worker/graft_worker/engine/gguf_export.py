"""A fused model as one file for llama.cpp.

Its folder is checked as `fuse` checks it, and is gone afterwards.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from graft_scheduler.basemodels import WEIGHTS_PATTERN
from graft_scheduler.errors import Conflict
from graft_scheduler.exports import ExportReport, GgufOrder, Into
from graft_scheduler.hyperparameters import Precision
from graft_worker.engine.adapter_source import open_source
from graft_worker.engine.device import peak_bytes, prepared
from graft_worker.engine.exporting import Tell, check, measure, refuse_lost, write_fused
from graft_worker.engine.folders import PARTIAL_PREFIX
from graft_worker.engine.fused_card import base_card
from graft_worker.engine.gguf_model import plan_gguf, write_model
from graft_worker.engine.loading import DTYPES
from graft_worker.engine.model_folder import check_room


def write_gguf(order: GgufOrder, tell: Tell) -> ExportReport:
    """Fuse an adapter and write it as a GGUF file, which appears whole or not at all.

    Raises:
        JobError: also of a family or a tokenizer that is not written here, before anything is computed.
        Conflict, TuningLost: as `exporting.fuse`.
    """
    began, output = time.monotonic(), Path(order.output).expanduser()
    if output.exists():
        raise Conflict(f"{output} exists; name another with `-o`, or remove it")
    source = open_source(order)
    plan = plan_gguf(source.target)
    size = sum(path.stat().st_size for path in source.target.glob(WEIGHTS_PATTERN))
    check_room(output, 2 * size)  # the fused folder, and the file that is made of it
    aside = output.parent / f"{PARTIAL_PREFIX}{output.name}"
    with prepared(None):
        measured = measure(source, tell)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            fused = aside / "fused"
            fused.mkdir(parents=True)
            written = write_fused(source, Into.FULL, Precision.AUTO, fused, tell)
            fidelity = check(source, measured, fused, tell)
            refuse_lost(fidelity, order)
            check_room(output, written.size_bytes)
            tell(f"writing {output.name}")
            dtype = None if order.dtype is Precision.AUTO else DTYPES[order.dtype]
            size = write_model(plan, fused, aside / output.name, base_card(source), dtype)
            _sync(aside / output.name)
            os.replace(aside / output.name, output)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return ExportReport(
            kind=order.kind,
            output=str(output),
            model=base_card(source).name,
            form=written.form if dtype is None else order.dtype.value,
            size_bytes=size,
            fused_bytes=written.size_bytes,
            fidelity=fidelity,
            seconds=time.monotonic() - began,
            peak_memory_bytes=peak_bytes(),
            notes=source.notes,
        )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
