"""The parts of a training job that shape what is learned: adapters, optimizer, schedule, evaluation."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """Base of everything a person specifies: frozen, and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Method(StrEnum):
    """How the base is adapted."""

    LORA = "lora"
    """Low-rank adapters on a frozen base, quantised or not (Hu et al., arXiv 2106.09685)."""
    QLORA = "qlora"
    """The same on a base that is quantised when it is loaded (Dettmers et al., arXiv 2305.14314)."""
    DORA = "dora"
    """Low-rank adapters and a magnitude for each output (Liu et al., arXiv 2402.09353)."""
    FULL = "full"
    """Every parameter of the base, embeddings and norms too."""


class QuantizationConfig(Spec):
    """How qlora quantises a base that is not quantised yet."""

    bits: Literal[4, 8] = 4
    group_size: Literal[32, 64, 128] = 64
    """Weights that share a scale and a bias."""


class AdapterConfig(Spec):
    """The shape of the adapters; of it, a full fine-tune knows only `layers`."""

    rank: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = 8
    """`auto` trains at `max_rank` and cuts afterwards what the validation loss does not need."""
    max_rank: int = Field(default=32, ge=2, le=1024)
    """What rank `auto` trains at."""
    rank_tolerance: float = Field(default=0.005, ge=0, le=1)
    """How much higher the validation loss may be after rank `auto` has cut, as a share of it."""
    keep_uncut: bool = False
    """Leave the adapters as they were before the cut in the output too, under `uncut/`."""
    alpha: float | None = Field(default=None, gt=0)
    """PEFT's convention: the multiplier is `alpha / rank`. Absent: `scale` holds."""
    rslora: bool = False
    """The multiplier is `alpha / sqrt(rank)` (Kalajdzievski, arXiv 2312.03732)."""
    scale: float = Field(default=20.0, gt=0)
    """mlx-lm's convention: the multiplier itself."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Module paths inside a block, such as `self_attn.q_proj`; absent means all linear layers."""
    layers: int | None = Field(default=None, ge=1)
    """Adapt only the last N blocks; absent means all."""

    @property
    def trained_rank(self) -> int:
        """The rank while training."""
        return self.max_rank if self.rank == "auto" else self.rank

    @property
    def multiplier(self) -> float:
        """What the low-rank product is scaled by."""
        if self.alpha is None:
            return self.scale
        return self.alpha / (math.sqrt(self.trained_rank) if self.rslora else self.trained_rank)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.keep_uncut and self.rank != "auto":
            raise ValueError(f"`keep_uncut` is set, and `rank` is {self.rank}: only rank auto is cut")
        if self.rslora and self.alpha is None:
            raise ValueError("`rslora` is set without `alpha`; it divides that by the root of the rank")
        return self


class OptimizerName(StrEnum):
    """Optimizers of the engine, by MLX's names."""

    ADAMW = "adamw"
    ADAM = "adam"
    ADAFACTOR = "adafactor"
    MUON = "muon"
    SGD = "sgd"
    LION = "lion"


BY_ELEMENT = frozenset({OptimizerName.ADAM, OptimizerName.ADAMW, OptimizerName.SGD, OptimizerName.LION})
"""Optimizers that treat every number alike, so that adapters may lie end to end."""


ADAPTER_RATES: dict[OptimizerName, float] = {
    OptimizerName.ADAMW: 1e-4,
    OptimizerName.ADAM: 1e-4,
    OptimizerName.ADAFACTOR: 1e-4,
    OptimizerName.MUON: 1e-3,
    OptimizerName.SGD: 1e-2,
    OptimizerName.LION: 3e-5,
}
"""The learning rate of adapters where a job names none: where each optimizer's practice begins."""
FULL_RATE_SHARE = 0.1
"""A full fine-tune moves every weight, and starts from this share of an adapter's rate."""


class OptimizerConfig(Spec):
    """The optimizer and its learning rate."""

    name: OptimizerName = OptimizerName.ADAMW
    learning_rate: float | None = Field(default=None, gt=0, le=10)
    """The peak; absent means a default for the optimizer and the method, written out at submit."""
    lora_plus: float | None = Field(default=None, ge=1, le=1000)
    """How much higher the rate of the B matrices is than that of A (Hayou et al., arXiv 2402.12354)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of every optimizer but adam; as MLX applies it: decoupled, but for sgd and muon."""
    betas: tuple[float, float] | None = None
    """Of adamw, adam and lion; absent means MLX's own."""
    eps: float | None = Field(default=None, gt=0)
    """Of adamw and adam; absent means MLX's own."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """Of sgd and muon; absent means MLX's own."""
    bias_correction: bool = True
    """Of adamw and adam; mlx-lm leaves it off, which makes its first steps about three times longer."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm; null turns it off."""
    max_skipped_steps: int = Field(default=5, ge=1)
    """Steps in a row whose loss or gradient is no number, before the job has diverged."""

    @model_validator(mode="after")
    def _fits_optimizer(self) -> Self:
        for field, names in _BELONGS_TO.items():
            value = getattr(self, field)
            if value and self.name not in names:
                known = ", ".join(names)
                raise ValueError(f"`{field}` is {value}, and {self.name.value} has none; it is of {known}")
        for beta in self.betas or ():
            if not 0 <= beta < 1:
                raise ValueError(f"`betas` has {beta:g}; each must be at least 0 and below 1")
        return self


_ADAMS = (OptimizerName.ADAMW, OptimizerName.ADAM)
_BELONGS_TO: dict[str, tuple[OptimizerName, ...]] = {
    "weight_decay": tuple(name for name in OptimizerName if name is not OptimizerName.ADAM),
    "betas": (*_ADAMS, OptimizerName.LION),
    "eps": _ADAMS,
    "momentum": (OptimizerName.SGD, OptimizerName.MUON),
}


class ScheduleName(StrEnum):
    """How the learning rate moves after warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    EXPONENTIAL = "exponential"
    """Times `decay_rate` at every step."""
    STEP = "step"
    """Times `decay_rate` at every `decay_every` steps."""


class ScheduleConfig(Spec):
    """The learning rate over the optimizer steps."""

    name: ScheduleName = ScheduleName.COSINE
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises from 0."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The same as a number of steps; wins over the share."""
    final: float = Field(default=0.1, ge=0, le=1)
    """Where linear and cosine end, as a share of the peak rate."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Steps after warm-up in which linear and cosine get there; absent means all that are left."""
    decay_rate: float | None = Field(default=None, gt=0, le=1)
    """Of exponential and step."""
    decay_every: int | None = Field(default=None, ge=1)
    """Of step, in steps."""

    @model_validator(mode="after")
    def _has_its_numbers(self) -> Self:
        needed: tuple[str, ...] = ()
        if self.name is ScheduleName.EXPONENTIAL:
            needed = ("decay_rate",)
        elif self.name is ScheduleName.STEP:
            needed = ("decay_rate", "decay_every")
        for field in needed:
            if getattr(self, field) is None:
                raise ValueError(f"`{field}` is missing; the schedule {self.name.value} needs it")
        return self


class EvaluationConfig(Spec):
    """Validation loss, on the same rows every time."""

    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between evaluations; absent means a tenth of the job."""
    rows: int | None = Field(default=None, ge=1)
    """At most this many validation rows, the first of them; absent means all."""
    patience: int | None = Field(default=None, ge=1)
    """Stop early after this many evaluations in a row without a better loss; absent means never."""
    min_delta: float = Field(default=0.0, ge=0)
    """By how many nats a loss has to be lower to count as better, for `patience`."""

    @model_validator(mode="after")
    def _delta_has_patience(self) -> Self:
        if self.min_delta and self.patience is None:
            raise ValueError(f"`min_delta` is {self.min_delta:g} without `patience`, which it is for")
        return self


class Output(StrEnum):
    """Which state becomes the adapter."""

    LAST = "last"
    BEST = "best"
    """That of the lowest validation loss."""


class CheckpointConfig(Spec):
    """What is kept so that a job can go on after an interruption."""

    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints; absent means with every evaluation."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest stay on the host, besides that of the best validation loss."""
    output: Output | None = None
    """Absent: `best` for a job that may stop early, else `last`."""


class Precision(StrEnum):
    """The dtype the base computes in."""

    AUTO = "auto"
    """The base's own on a GPU; float32 on the CPU, where 16 bits are slow and inexact."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Batching(StrEnum):
    """How the rows of a step become what is computed at once; the gradient is the same."""

    PADDED = "padded"
    """All rows of a step at the width of the longest, as many at once as the token budget allows."""
    BUCKETED = "bucketed"
    """Rows of like length together."""
    PACKED = "packed"
    """Rows end to end with a block-diagonal mask, where the model passes a check; else bucketed."""


class LossKernel(StrEnum):
    """How the loss is computed from the last hidden states."""

    PLAIN = "plain"
    """All logits at once."""
    CHUNKED = "chunked"
    """Some tokens' logits at a time, and none of tokens that are not learned."""


class BranchDtype(StrEnum):
    """The dtype the adapters compute in; their masters are float32 always."""

    AUTO = "auto"
    """The base's, but float32 with a float16 base, whose small gradients would vanish."""
    BASE = "base"
    FLOAT32 = "float32"


class ComputeConfig(Spec):
    """How it is computed: changes speed and memory, and the result only by rounding."""

    batching: Batching = Batching.BUCKETED
    loss: LossKernel = LossKernel.CHUNKED
    compile: bool = True
    """Compile the shapes of micro-batches that come often, at most 32; never on the CPU."""
    branch_dtype: BranchDtype = BranchDtype.AUTO


class Tracker(StrEnum):
    """Where a job's figures may go besides Redis; each needs its package on the host."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
    WANDB = "wandb"
    TRACKIO = "trackio"


class TrackingConfig(Spec):
    """Exports of a job's figures; nothing that fails there stops a job."""

    to: tuple[Tracker, ...] = ()
    project: str = Field(default="graft", min_length=1, max_length=200)
    uri: str | None = None
    """MLflow's tracking server; credentials are the host's own."""
