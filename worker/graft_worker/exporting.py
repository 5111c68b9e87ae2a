"""What is made of a trained adapter, from Python: `fuse`, and the orders of every kind."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from graft_scheduler.errors import NotFound
from graft_scheduler.exports import (
    ExportReport,
    FuseOrder,
    GgufOrder,
    HeldOutData,
    Into,
    QuantiseOrder,
)
from graft_scheduler.hyperparameters import Precision
from graft_scheduler.jobs import ModelRef


def print_line(line: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def fuse(
    adapter: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    data: str | Path | None = None,
    into: Into = Into.FULL,
    dtype: Precision = Precision.AUTO,
    force: bool = False,
    tell: Callable[[str], None] = print_line,
) -> ExportReport:
    """Make a model of its own of the adapter in the folder `adapter`; it is written to `output`.

    `model` is its base where that is a folder, of which the adapter knows but the name; `data` a file of
    rows, or a data set's folder, on which the fused model is compared with the adapted one.
    Without it they are compared on texts that the adapted model writes.

    Raises:
        NotAllowed: the fused model lost the tuning, and nothing was written; see `force`.
        Conflict: `output` exists, or its disk has no room.
        JobError: the adapter, the base or the rows cannot be used; says why.
    """
    order = FuseOrder(
        adapter=str(adapter),
        output=str(output),
        model=None if model is None else ModelRef(source=model),
        data=None if data is None else HeldOutData(path=str(data)),
        into=into,
        dtype=dtype,
        force=force,
    )
    return make(order, tell)


def make(
    order: FuseOrder | QuantiseOrder | GgufOrder, tell: Callable[[str], None] = print_line
) -> ExportReport:
    """Make what `order` says.

    Raises:
        NotAllowed, Conflict, JobError: as `fuse`.
        NotFound: a package that the kind needs is not installed.
    """
    match order:  # MLX and mlx-lm: some seconds
        case FuseOrder():
            from graft_worker.engine import exporting

            return exporting.fuse(order, tell)
        case QuantiseOrder():
            from graft_worker.engine import quantising

            return quantising.quantise_fused(order, tell)
        case GgufOrder():
            if importlib.util.find_spec("gguf") is None:
                raise NotFound("this needs gguf; `pip install '.[gguf]'` in Graft's folder installs it")
            from graft_worker.engine import gguf_export

            return gguf_export.write_gguf(order, tell)
