"""What supervisor and runner say to each other; `channel` carries it.

Both ends close over the same unions, so an unknown message is an error, not a surprise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.recovery import CutReport, MemoryLimit
from graft_scheduler.states import FailureClass, JobId, Phase, StopReason, Token


class Message(BaseModel):
    """Every message names the assignment it belongs to, so that a late one is recognised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: JobId
    token: Token


class Start(Message):
    """Do this job. All paths are absolute, on this host, and exist."""

    type: Literal["start"] = "start"
    spec: Annotated[TrainJob | CountJob, Field(discriminator="kind")]
    work_dir: str
    """The attempt's own folder; `checkpoints/`, `adapter/` and the `DONE` marker go here."""
    model_dir: str | None = None
    """The base's folder; absent for a hub id, which the runner fetches by itself."""
    data_dir: str | None = None
    """Holds `train.jsonl` and perhaps `valid.jsonl`."""
    resume_dir: str | None = None
    """A checkpoint to go on from."""
    pause_step: int | None = None
    """Having come to this step: evaluate, save a checkpoint and stop."""
    budget_bytes: int | None = None
    """What MLX may use for this job."""
    memory_limit: MemoryLimit | None = None
    """What earlier attempts have learned: no more is computed at once than it says."""
    wired_bytes: int | None = None
    """What MLX may keep wired; absent leaves MLX's limit as it is."""
    memory_factor: float = Field(default=1.0, gt=0)
    """Measured over predicted peaks of finished jobs like this one."""
    trained_seconds: float = 0.0
    """Spent by earlier attempts; counts against the time limit."""
    log_path: str | None = None
    """Whatever the runner or its libraries print goes there from now on; absent leaves it as it is."""
    stay_seconds: float = Field(default=0.0, ge=0)
    """How long to wait for another job after the last word, with what that may share kept loaded; 0:
    leave."""
    deadline: float
    """See `Extend`."""


class Extend(Message):
    """The runner may live until `deadline`, seconds on `sleepless_clock`."""

    type: Literal["extend"] = "extend"
    deadline: float


class Stop(Message):
    """Stop at the next safe point, with a checkpoint."""

    type: Literal["stop"] = "stop"
    reason: StopReason


class Shrink(Message):
    """Compute less at once from the next step on; the result stays the same."""

    type: Literal["shrink"] = "shrink"


class Exit(Message):
    """Leave now: there is nothing more to do."""

    type: Literal["exit"] = "exit"


class Hello(Message):
    """The runner is up and has read its `Start`."""

    type: Literal["hello"] = "hello"
    pid: int


class Ready(Message):
    """Model and data are loaded."""

    type: Literal["ready"] = "ready"
    seconds: float
    """From the start of the runner's process to here."""
    versions: dict[str, str] = Field(default_factory=dict)
    device: str = ""


class Planned(Message):
    """What is about to be done."""

    type: Literal["planned"] = "planned"
    first_step: int
    """0, or the step of the checkpoint it goes on from."""
    steps: int
    train_rows: int
    valid_rows: int
    facts: dict[str, Any] = Field(default_factory=dict)
    """`cut` among them, as `recovery.CutReport`."""


class PhaseChanged(Message):
    """What the runner does now."""

    type: Literal["phase"] = "phase"
    phase: Phase


class Progress(Message):
    """One report of the loop; every field is of now."""

    type: Literal["progress"] = "progress"
    step: int
    steps: int
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    """Before clipping."""
    tokens_per_second: float | None = None
    """Tokens learned from; padding and prompts do not count."""
    padding_share: float | None = None
    """Of the tokens computed in the last steps."""
    memory_bytes: int | None = None
    cache_bytes: int | None = None
    """Freed buffers that MLX keeps; in neither of the other two."""
    peak_bytes: int | None = None
    seconds_left: float | None = None
    trained_seconds: float = 0.0
    """Over all attempts."""


class Evaluated(Message):
    """A validation loss, token-weighted, in nats."""

    type: Literal["evaluated"] = "evaluated"
    step: int
    loss: float
    perplexity: float
    tokens: int


class Checkpoint(Message):
    """A checkpoint is complete on disk."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    loss: float | None = None
    """Validation loss after this step, where it was evaluated there."""


class Shrunk(Message):
    """The answer to `Shrink`, when less is computed at once from here on."""

    type: Literal["shrunk"] = "shrunk"
    step: int
    cut: CutReport


class Log(Message):
    """A line for the job's log."""

    type: Literal["log"] = "log"
    level: Literal["info", "warning", "error"] = "info"
    text: str


class TrainResult(BaseModel):
    """What a finished job leaves in its record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    initial_loss: float | None = None
    """Validation loss before the first step."""
    final_loss: float | None = None
    """Validation loss after the last step."""
    best_loss: float | None = None
    best_step: int | None = None
    perplexity: float | None = None
    """Of the saved adapter on the validation rows."""
    saved_step: int | None = None
    """The step whose state became the adapter: the last one or that of the best loss."""
    stopped_early: bool = False
    """The validation loss had not improved for `evaluation.patience` evaluations."""
    skipped_steps: int = 0
    """Steps without an update, because their loss or gradient was no number."""
    training_seconds: float = 0.0
    tokens: int = 0
    """Tokens learned from, over all steps that were not skipped."""
    padding_share: float | None = None
    """Of the tokens computed in training, by the attempt that finished."""
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    first_step_seconds: float | None = None
    """From the runner's start to the end of its first optimizer step."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Counts and choices worth keeping: rows cut, rows skipped, dtype, versions."""

    @property
    def training_time(self) -> float:
        """Seconds; `training_seconds` by the name that `MLXTrainer` promises."""
        return self.training_seconds

    @property
    def peak_memory_gb(self) -> float | None:
        """In powers of 1024, as Macs are sold."""
        return None if self.peak_memory_bytes is None else self.peak_memory_bytes / (1 << 30)

    @property
    def metrics(self) -> dict[str, Any]:
        """Every figure of this result by its name."""
        return self.model_dump(mode="json")


class Done(Message):
    """The last word of a runner that did what it was asked."""

    type: Literal["done"] = "done"
    stopped: StopReason | None = None
    """Set when it stopped early because it was told to; the checkpoint before it is the state."""
    result: TrainResult | None = None
    output_dir: str | None = None
    """The adapter's folder, or whatever the kind of job produces."""


class Failed(Message):
    """The last word of a runner that could not."""

    type: Literal["failed"] = "failed"
    failure: FailureClass
    text: str
    """One line for a person; the traceback is in the log."""
    is_disk_full: bool = False
    """The host's, as the runner found it."""


SupervisorMessage = Start | Extend | Stop | Shrink | Exit
RunnerMessage = (
    Hello | Ready | Planned | PhaseChanged | Progress | Evaluated | Checkpoint | Shrunk | Log | Done | Failed
)

_TO_RUNNER: TypeAdapter[SupervisorMessage] = TypeAdapter(
    Annotated[SupervisorMessage, Field(discriminator="type")]
)
_FROM_RUNNER: TypeAdapter[RunnerMessage] = TypeAdapter(Annotated[RunnerMessage, Field(discriminator="type")])


def parse_supervisor_message(text: bytes) -> SupervisorMessage:
    """What the supervisor said.

    Raises:
        ValueError: it is none of the known messages.
    """
    return _TO_RUNNER.validate_json(text)


def parse_runner_message(text: bytes) -> RunnerMessage:
    """What the runner said.

    Raises:
        ValueError: it is none of the known messages.
    """
    return _FROM_RUNNER.validate_json(text)
