"""What a job is: a frozen, versioned specification. What happens to it lives in `records`."""

from __future__ import annotations

import getpass
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from graft_scheduler.complaints import explain
from graft_scheduler.data.faults import ALLOWABLE, Kind
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import (
    ADAPTER_RATES,
    FULL_RATE_SHARE,
    AdapterConfig,
    CheckpointConfig,
    ComputeConfig,
    EvaluationConfig,
    Method,
    OptimizerConfig,
    Output,
    Precision,
    QuantizationConfig,
    ScheduleConfig,
    Spec,
    TrackingConfig,
)
from graft_scheduler.states import Digest

MIB = 1 << 20


def leads_out(revision: str) -> bool:
    """Whether the revision, taken as the name of a file, may lie outside the folder that it is meant for."""
    return revision.startswith("/") or ".." in revision or "\0" in revision


class ModelRef(Spec):
    """A base model: a folder on the submitter's machine, or a hub id."""

    source: str = Field(min_length=1)
    """Path of a model folder or hub id, as the person wrote it."""
    revision: str | None = None
    digest: Digest | None = None
    """Set at submit for a local folder: its name in the store."""
    trust_remote_code: bool = False

    @field_validator("revision")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        """Hosts keep a file of that name."""
        if value is not None and leads_out(value):
            raise ValueError(f"`model.revision` is {value!r}; it must be a branch, a tag or a commit")
        return value


class DataFormat(StrEnum):
    """How a row of the data set is laid out."""

    CHAT = "chat"
    """`{"messages": [{"role": ..., "content": ...}, ...]}`"""
    COMPLETION = "completion"
    """`{"prompt": ..., "completion": ...}`: a chat of one turn where the model has a chat template."""
    TEXT = "text"
    """`{"text": ...}`"""
    ALPACA = "alpaca"
    """`{"instruction": ..., "input": ..., "output": ...}`; stored as completion rows."""
    SHAREGPT = "sharegpt"
    """`{"conversations": [{"from": "human", "value": ...}, ...]}`; stored as chats."""


class DataRef(Spec):
    """A data set: a file or folder of the submitter's, a name in the fleet, or a hub id."""

    source: str = Field(min_length=1)
    """As the person wrote it: a path, `NAME`, `NAME@v3`, `NAME@sha256:...`, or `org/name` on the hub."""
    digest: Digest | None = None
    """Set at submit: the folder's name in the store."""
    version: str | None = None
    """Set at submit where `source` names a data set of the fleet: `NAME@v3`."""
    format: DataFormat | None = None
    """Detected from the rows when absent; written out at submit, as it is stored."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of fields that the format has → names that the rows have for them."""
    revision: str | None = None
    """Of a data set on the hub; resolved to a commit at submit."""
    subset: str | None = None
    """Of a data set on the hub that has several."""
    split: str | None = None
    """Of a data set on the hub: what to train on; `train` when absent."""
    allow: tuple[Kind, ...] = ()
    """Faults that are there on purpose; `data.faults` says what each is."""
    skip_bad_rows: bool = False
    """Leave out rows that would have the data set refused."""
    valid_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows held out for validation when there is no validation file."""
    mask_prompt: bool = True
    """Learn only what the assistant says; false learns every token."""

    @field_validator("allow", mode="before")
    @classmethod
    def _kinds(cls, value: object) -> object:
        """A list, or text with commas; of the kinds that somebody may want."""
        kinds = value.replace(" ", "").split(",") if isinstance(value, str) else value
        if isinstance(kinds, (list, tuple)):
            for one in kinds:
                if one not in ALLOWABLE:
                    raise ValueError(f"`data.allow` is {one!r}; it must be of {', '.join(ALLOWABLE)}")
        return kinds


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
    quantization: QuantizationConfig | None = None
    """Of qlora, for a base that is not quantised; absent means 4 bits in groups of 64."""
    adapter: AdapterConfig = AdapterConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows the optimizer sees at each step; memory never changes it. `auto` is chosen by the data and
    the method alone (`lengths.auto_batch_rows`), so that it is the same on every host."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Most padded tokens computed at once; a cut of the batch that does not change the result. Absent:
    each host takes what is fastest in its memory."""
    length_window: int = Field(default=1, ge=1)
    """Steps whose rows are drawn together and sorted by length, so that a step holds rows of like
    length; 1 draws every row alone."""
    max_length: int = Field(default=2048, ge=8)
    """Longest row in tokens; longer ones are cut, and counted."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data. Give this or `steps`; neither means one epoch."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    precision: Precision = Precision.AUTO
    gradient_checkpointing: bool | None = None
    """Compute activations again in the backward pass: slower, with less memory, and the same result.
    Absent: each host does so where it has to."""
    compute: ComputeConfig = ComputeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def batch_rows(self) -> int:
        """The batch size as a number.

        Raises:
            ValueError: it is `auto`, and nobody has looked at the data yet.
        """
        if self.batch_size == "auto":
            raise ValueError("`batch_size` is auto; it is chosen when the data are read")
        return self.batch_size

    @property
    def learning_rate(self) -> float:
        """The peak rate: what the job names, or the default of its optimizer and method."""
        if self.optimizer.learning_rate is not None:
            return self.optimizer.learning_rate
        rate = ADAPTER_RATES[self.optimizer.name]
        return rate * FULL_RATE_SHARE if self.method is Method.FULL else rate

    @property
    def output(self) -> Output:
        """Which state becomes the adapter."""
        default = Output.LAST if self.evaluation.patience is None else Output.BEST
        return self.checkpoint.output or default

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

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
        method = f"the method {self.method.value}"
        if self.quantization is not None and self.method is not Method.QLORA:
            raise ValueError(f"`quantization` is set, and {method} does not quantise; use qlora")
        if self.adapter.rank == "auto" and self.method in {Method.DORA, Method.FULL}:
            raise ValueError(f"`adapter.rank` is auto, and {method} cannot be cut; use lora or qlora")
        if self.method is Method.FULL:
            self._check_full()
        return self

    def _check_full(self) -> None:
        for field, value in (
            ("adapter.targets", self.adapter.targets),
            ("adapter.dropout", self.adapter.dropout),
            ("optimizer.lora_plus", self.optimizer.lora_plus),
        ):
            if value:
                raise ValueError(f"`{field}` is {value}, and the method full has no adapters; use lora")


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
