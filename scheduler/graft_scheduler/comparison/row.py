"""One line of a comparison: a variant, its job, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from graft_scheduler.states import JobId, JobState


@dataclass(frozen=True, slots=True)
class Row:
    """A variant; what is not known, or not yet, is absent. Losses are in nats a token."""

    variant: str
    job: JobId
    state: JobState
    host: str | None = None
    device: str | None = None
    steps: int = 0
    """Done so far."""
    total_steps: int | None = None
    stopped_early: bool = False
    initial_loss: float | None = None
    """Validation loss before the first step; with qlora, of the base as it was quantised."""
    validation_loss: float | None = None
    """Of the adapter that was saved."""
    perplexity: float | None = None
    """The same."""
    training_seconds: float | None = None
    """Over all attempts, evaluations included."""
    wall_seconds: float | None = None
    """Of the newest attempt, from its start to its end: loading and saving too."""
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    adapter_bytes: int | None = None
    """Of its folder, as `graft pull` brings it."""
    trainable_parameters: int | None = None
    trainable_share: float | None = None
    """Of all parameters that the base has."""
    gradient_checkpointing: bool | None = None
    started_at: float | None = None
    """Seconds since 1970 on Redis' clock, like the next one."""
    finished_at: float | None = None
    failure: str | None = None
    """Why it failed, with the class first."""

    @property
    def is_completed(self) -> bool:
        return self.state is JobState.COMPLETED
