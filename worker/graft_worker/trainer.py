"""Training from Python by a few flat settings: `MLXTrainer(TrainingConfig(...)).train()`.

Every setting becomes one of a `TrainJob`, which knows the limits and the defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from graft_scheduler.complaints import explain
from graft_scheduler.errors import InvalidInput
from graft_scheduler.hyperparameters import Method
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import RunnerMessage, TrainResult
from graft_scheduler.states import JobId
from graft_worker.local import print_message, train

CHECKPOINTING_LEVEL = 2
"""From this optimization level on, activations are computed again where memory asks for it."""
COMPUTE: dict[int, dict[str, Any]] = {
    0: {"batching": "padded", "loss": "plain", "compile": False},
    1: {"batching": "bucketed", "loss": "plain", "compile": True},
    2: {"batching": "bucketed", "loss": "chunked", "compile": True},
    3: {"batching": "packed", "loss": "chunked", "compile": True},
}
"""A job's `compute` at each optimization level."""
OWN_NAMES: dict[str, str] = {
    "model": "model_name",
    "model.source": "model_name",
    "data": "dataset_path",
    "data.source": "dataset_path",
    "steps": "max_iters",
    "optimizer.learning_rate": "learning_rate",
    "adapter.rank": "lora_rank",
    "adapter.alpha": "lora_alpha",
}
"""A job's settings by the names they have here."""
COMPLAINED_OF = re.compile(r"`([\w.]+)`(?= is )")
"""A setting in a complaint; fields of rows are in backticks too."""
LOCAL = JobId("local")
"""The job that lines of our own belong to."""


def _as_place(value: object, field: ValidationInfo) -> object:
    if not isinstance(value, str | Path):
        raise ValueError(f"`{field.field_name}` is {value!r}; it must be a str or a Path")
    return value


Place = Annotated[str | Path, BeforeValidator(_as_place)]


class TrainingConfig(BaseModel):
    """What to train, on what, and how; `None` means the default of a job."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model_name: Place
    """A model's folder or a hub id."""
    dataset_path: Place
    """A `.jsonl` file, or a folder with `train.jsonl` and perhaps `valid.jsonl`."""
    output_path: Place
    """The adapter goes to `adapter` in it, checkpoints beside that."""
    method: Method = Method.LORA
    max_iters: int | None = None
    """Steps of the optimizer; `None` means one epoch."""
    batch_size: int | None = None
    """Rows at each step; `None` means what the data and the method suggest."""
    learning_rate: float | None = None
    """The peak: 1e-4 for adapters, 1e-5 for a full fine-tune."""
    lora_rank: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """`None` means `auto` for lora and qlora, and 8 for dora."""
    lora_alpha: float | None = None
    """The product of the adapters is scaled by alpha / rank; `None` means by 20."""
    optimization_level: Literal[0, 1, 2, 3] = 2
    """0: the plain loop. 1: rows of like length together, compiled. 2: the loss in chunks, and
    gradient checkpointing if memory asks for it. 3: rows packed end to end too."""
    max_length: int | None = None
    """Longest row in tokens: 2048; longer ones are cut."""
    seed: int = 0

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_words(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raises `InvalidInput`, which passes through pydantic as it is."""
        try:
            config = handler(values)
        except ValidationError as error:
            raise InvalidInput(explain(error, tuple(cls.model_fields))) from error
        config.job()
        return config

    def job(self) -> TrainJob:
        """The same as a job.

        Raises:
            InvalidInput: a value that no job can have.
        """
        self._check_full()
        given = {
            "steps": self.max_iters,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "optimizer.learning_rate": self.learning_rate,
            "adapter.rank": self._rank(),
            "adapter.alpha": self.lora_alpha,
        }
        settings = {
            "model.source": str(self.model_name),
            "data.source": str(self.dataset_path),
            "method": self.method,
            "compute": COMPUTE[self.optimization_level],
            "seed": self.seed,
            "gradient_checkpointing": self._recomputes(),
            **{name: value for name, value in given.items() if value is not None},
        }
        try:
            return build_train_job(settings)
        except InvalidInput as error:
            raise in_own_names(error) from error

    def _rank(self) -> int | str | None:
        if self.lora_rank is None and self.method in {Method.LORA, Method.QLORA}:
            return "auto"
        return self.lora_rank

    def _recomputes(self) -> bool | None:
        """Never, or where memory asks for it."""
        return False if self.optimization_level < CHECKPOINTING_LEVEL else None

    def _check_full(self) -> None:
        for name in ("lora_rank", "lora_alpha"):
            value = getattr(self, name)
            if self.method is Method.FULL and value is not None:
                raise InvalidInput(f"`{name}` is {value}, and the method full has no adapters; leave it out")


class MLXTrainer:
    """Trains once, in this process; what happens is told to `tell`, by default as lines on stderr."""

    def __init__(self, config: TrainingConfig, tell: Callable[[RunnerMessage], None] = print_message) -> None:
        self.config = config
        self._tell = tell

    def train(self, resume_from: Path | None = None) -> TrainResult:
        """Train; with `resume_from`, on from that checkpoint.

        Raises:
            InvalidInput: the model, the data or the output folder cannot work; says which and why.
            JobError: the training failed; its class says how.
        """
        output = Path(self.config.output_path)
        return train(self._plan(), output, resume_from=resume_from, tell=self._tell)

    def _plan(self) -> TrainJob:
        """The job with its defaults written out."""
        from graft_scheduler import submission  # with the store, which nothing else here needs

        try:
            checked = submission.check(self.config.job()).spec
        except InvalidInput as error:
            raise in_own_names(error) from error
        assert isinstance(checked, TrainJob)  # a check changes no job's kind
        return checked


def in_own_names(error: InvalidInput) -> InvalidInput:
    """The same complaint, with the names of `TrainingConfig` in the place of a job's."""

    def renamed(found: re.Match[str]) -> str:
        return f"`{OWN_NAMES.get(found[1], found[1])}`"

    return InvalidInput(COMPLAINED_OF.sub(renamed, str(error)))
