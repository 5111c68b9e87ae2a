"""What a job is: a frozen, versioned specification. What happens to it lives in `records`."""

from __future__ import annotations

import getpass
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from graft_scheduler.complaints import explain
from graft_scheduler.errors import InvalidInput
from graft_scheduler.states import Digest

MIB = 1 << 20


class Spec(BaseModel):
    """Base of everything a person specifies: frozen, and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Method(StrEnum):
    """How the base is adapted."""

    LORA = "lora"
    """Low-rank adapters on a frozen base, quantised or not (Hu et al., arXiv 2106.09685)."""


class ModelRef(Spec):
    """A base model: a folder on the submitter's machine, or a hub id."""

    source: str = Field(min_length=1)
    """Path of a model folder or hub id, as the person wrote it."""
    revision: str | None = None
    digest: Digest | None = None
    """Set at submit for a local folder: its name in the store."""
    trust_remote_code: bool = False


class DataFormat(StrEnum):
    """How a row of the data set is laid out."""

    CHAT = "chat"
    """`{"messages": [{"role": ..., "content": ...}, ...]}`"""
    COMPLETION = "completion"
    """`{"prompt": ..., "completion": ...}`: a chat of one turn where the model has a chat template."""
    TEXT = "text"
    """`{"text": ...}`"""


class DataRef(Spec):
    """A data set: one JSONL file, or a folder with `train.jsonl` and perhaps `valid.jsonl`."""

    source: str = Field(min_length=1)
    digest: Digest | None = None
    """Set at submit: the folder's name in the store."""
    format: DataFormat | None = None
    """Detected from the rows when absent; written out at submit."""
    valid_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows held out for validation when there is no validation file."""
    mask_prompt: bool = True
    """Learn only what the assistant says; false learns every token."""


class AdapterConfig(Spec):
    """The shape of the LoRA adapters."""

    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float | None = Field(default=None, gt=0)
    """PEFT's convention: the multiplier is `alpha / rank`. Absent: `scale` holds."""
    scale: float = Field(default=20.0, gt=0)
    """mlx-lm's convention: the multiplier itself."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None
    """Module paths inside a block, such as `self_attn.q_proj`; absent means all linear layers."""
    layers: int | None = Field(default=None, ge=1)
    """Adapt only the last N blocks; absent means all."""

    @property
    def multiplier(self) -> float:
        """What the low-rank product is scaled by."""
        return self.scale if self.alpha is None else self.alpha / self.rank


class OptimizerName(StrEnum):
    """Optimizers of the engine, by MLX's names."""

    ADAMW = "adamw"
    ADAM = "adam"
    SGD = "sgd"


class OptimizerConfig(Spec):
    """The optimizer and its learning rate."""

    name: OptimizerName = OptimizerName.ADAMW
    learning_rate: float = Field(default=1e-4, gt=0, le=10)
    weight_decay: float = Field(default=0.0, ge=0)
    """Only adamw uses it."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm; null turns it off."""


class ScheduleName(StrEnum):
    """How the learning rate moves after warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class ScheduleConfig(Spec):
    """The learning rate over the optimizer steps."""

    name: ScheduleName = ScheduleName.COSINE
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises from 0."""
    final: float = Field(default=0.1, ge=0, le=1)
    """Where linear and cosine end, as a share of the peak rate."""


class EvaluationConfig(Spec):
    """Validation loss, on the same rows every time."""

    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between evaluations; absent means a tenth of the job."""
    rows: int | None = Field(default=None, ge=1)
    """At most this many validation rows, the first of them; absent means all."""


class CheckpointConfig(Spec):
    """What is kept so that a job can go on after an interruption."""

    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints; absent means with every evaluation."""
    keep: int = Field(default=2, ge=1)
    """How many checkpoints stay on the host."""


class Precision(StrEnum):
    """The dtype the base computes in."""

    AUTO = "auto"
    """The base's own on a GPU; float32 on the CPU, where 16 bits are slow and inexact."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Limits(Spec):
    """What the job may use before it is stopped."""

    memory_bytes: int | None = Field(default=None, ge=MIB)
    """What placement reserves, in the place of the estimate."""
    seconds: int | None = Field(default=None, ge=1)
    """Training time over all attempts."""
    attempts: int = Field(default=3, ge=1, le=100)
    """How often the job itself may fail before it is given up."""


class JobBase(Spec):
    """What every kind of job has."""

    version: Literal[1] = 1
    name: str | None = Field(default=None, max_length=200)
    labels: dict[str, str] = Field(default_factory=dict)
    submitter: str = Field(default_factory=lambda: current_user(), min_length=1, max_length=200)
    """Advisory: whoever holds Redis credentials can write any name."""
    priority: int = Field(default=5, ge=0, le=9)
    """0 is most urgent."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    limits: Limits = Limits()


class TrainJob(JobBase):
    """A fine-tune of one model on one data set, on one host."""

    kind: Literal["train"] = "train"
    model: ModelRef
    data: DataRef
    method: Method = Method.LORA
    adapter: AdapterConfig = AdapterConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    batch_size: int = Field(default=8, ge=1)
    """Rows the optimizer sees at each step; memory never changes it."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most padded tokens computed at once; a cut of the batch that does not change the result."""
    max_length: int = Field(default=2048, ge=8)
    """Longest row in tokens; longer ones are cut, and counted."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data. Give this or `steps`; neither means one epoch."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    precision: Precision = Precision.AUTO
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, with less memory."""
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _model_from_text(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("data", mode="before")
    @classmethod
    def _data_from_text(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"`epochs` is {self.epochs:g} and `steps` is {self.steps}; give one of them")
        return self


class CountJob(JobBase):
    """Counts, and trains nothing: exercises placement, leases and checkpoints without MLX."""

    kind: Literal["count"] = "count"
    steps: int = Field(default=10, ge=1)
    step_seconds: float = Field(default=0.05, ge=0)
    checkpoint_every: int = Field(default=1, ge=1)
    memory_bytes: int = Field(default=64 * MIB, ge=1)
    """What it claims to need; nothing is allocated."""
    fail_at: int | None = Field(default=None, ge=1)
    """Fail with class `internal` at this step."""


JobSpec = Annotated[TrainJob | CountJob, Field(discriminator="kind")]
"""The closed union of everything that can be queued."""

_ADAPTER: TypeAdapter[TrainJob | CountJob] = TypeAdapter(JobSpec)


def parse_job(text: str | bytes) -> TrainJob | CountJob:
    """The job that `dump_job` wrote.

    Raises:
        InvalidInput: an unknown kind or version, or any value out of range.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise InvalidInput(explain(error, ())) from error


def dump_job(job: TrainJob | CountJob) -> str:
    """The job as JSON, with every default written out."""
    return job.model_dump_json()


def current_user() -> str:
    """The name of whoever runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
