"""What can be made of a trained adapter: the orders for it, and the reports of what was made.

An order crosses from the command line to the process that loads MLX as JSON, and a report comes back.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from graft_scheduler.hyperparameters import Precision, Spec
from graft_scheduler.jobs import DataFormat, ModelRef


class Into(StrEnum):
    """Which form of the base an adapter is fused into."""

    FULL = "full"
    """Its full precision: a base that was quantised for the training is taken as it was before."""
    TRAINED = "trained"
    """The base as it was trained on, its quantisation undone: what was lost by that stays lost."""
    QUANTIZED = "quantized"
    """The quantised form that it was trained on; rounds the adapter as coarsely as the base."""


class QuantizationMode(StrEnum):
    """MLX's forms of quantised weights."""

    AFFINE = "affine"
    MXFP4 = "mxfp4"
    MXFP8 = "mxfp8"
    NVFP4 = "nvfp4"


class HeldOutData(Spec):
    """Rows that nothing learned from, and how the training read its rows."""

    path: str = Field(min_length=1)
    """A file, of which all rows are taken, or a data set's folder, of which the validation rows are."""
    name: str | None = None
    """What it is called in what others read; absent: the last part of the path."""
    format: DataFormat | None = None
    mask_prompt: bool = True
    max_length: int = Field(default=2048, ge=8)
    is_whole: bool = False
    """The file at `path` is a whole data set: of its rows those are taken that the training held out."""
    valid_fraction: float = Field(default=0.1, gt=0, lt=1)
    seed: int = 0


class ExportOrder(Spec):
    """What every order has."""

    adapter: str = Field(min_length=1)
    """The adapter's folder."""
    output: str = Field(min_length=1)
    """Does not exist yet, or is an empty folder."""
    model: ModelRef | None = None
    """The base to fuse into; absent means the one that the adapter's own record names."""
    trained_on: ModelRef | None = None
    """Where the base of its training is, for whoever knows; absent: what the adapter's own record names."""
    data: HeldOutData | None = None
    """Absent: the adapted model writes the texts itself that it is compared on."""
    precision: Precision = Precision.AUTO
    """What the training computed in."""
    force: bool = False
    """Keep what was made although the tuning was lost."""


class FuseOrder(ExportOrder):
    """A model of its own, with the adapter in its weights."""

    kind: Literal["fuse"] = "fuse"
    into: Into = Into.FULL
    dtype: Precision = Precision.AUTO
    """Of the weights; `auto` is the base's own."""


class QuantiseOrder(ExportOrder):
    """Fused at full precision, then quantised."""

    kind: Literal["mlx-quantized"] = "mlx-quantized"
    mode: QuantizationMode = QuantizationMode.AFFINE
    bits: int | None = Field(default=None, ge=2, le=8)
    """Absent: what the mode has by default, 4 for affine."""
    group_size: int | None = Field(default=None, ge=16, le=128)
    """Absent: what the mode has by default, 64 for affine."""


class GgufOrder(ExportOrder):
    """Fused, and written as one file for llama.cpp."""

    kind: Literal["gguf"] = "gguf"
    dtype: Precision = Precision.AUTO
    """Of the matrices; `auto` is the base's own."""


class Fidelity(Spec):
    """How near what was made is to the adapted base, over the same tokens."""

    origin: str
    """Where the rows are from, in words."""
    is_generated: bool
    """There were no rows: the adapted model wrote the texts."""
    rows: int
    tokens: int
    base_loss: float
    """In nats a token, of the base as it was trained on."""
    adapted_loss: float
    fused_loss: float
    tuning: float
    """What the adapter changed: the mean divergence KL(adapted || base) of a token, in nats."""
    difference: float
    """What fusing changed: KL(adapted || fused)."""
    kept: float | None
    """The share of the tuning that is left, 1 - difference / tuning; absent where there is next to none."""
    is_kept: bool
    quantized_loss: float | None = None
    """After quantising what was fused, where that was asked for."""
    quantized_difference: float | None = None
    """KL(adapted || quantised)."""


class ExportReport(Spec):
    """What was made."""

    kind: str
    output: str
    model: str
    """The base that was fused into, as others call it: a hub id, or the name of a folder."""
    form: str
    """What the weights are now, in words: `bfloat16`, `4 bits in groups of 64 (affine)`."""
    size_bytes: int
    """Of the weights that were written."""
    fused_bytes: int
    """Of the fused weights at full precision."""
    fidelity: Fidelity
    seconds: float
    peak_memory_bytes: int
    notes: tuple[str, ...] = ()
    """What a person should know of it."""


class ExportAnswer(Spec):
    """What the process says in the end."""

    report: ExportReport | None = None
    error: str | None = None
    """Why nothing was made."""
    fidelity: Fidelity | None = None
    """The figures that it was refused for."""


Order = Annotated[FuseOrder | QuantiseOrder | GgufOrder, Field(discriminator="kind")]
"""The closed union of what the process makes."""

_ADAPTER: TypeAdapter[FuseOrder | QuantiseOrder | GgufOrder] = TypeAdapter(Order)


def parse_order(text: str) -> FuseOrder | QuantiseOrder | GgufOrder:
    """The order that was written as JSON.

    Raises:
        ValidationError: it is none.
    """
    return _ADAPTER.validate_json(text)
