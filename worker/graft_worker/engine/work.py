"""What optimizer steps add up to: tokens, padding, time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepSums:
    """What reports need of one optimizer step; the loss is a sum over its learned tokens."""

    loss: float
    tokens: int
    read_tokens: int
    computed_tokens: int
    seconds: float


@dataclass(slots=True)
class Work:
    """What the optimizer steps of this attempt add up to."""

    seconds: float = 0.0
    tokens: int = 0
    read_tokens: int = 0
    computed_tokens: int = 0

    def add(self, sums: StepSums) -> None:
        self.seconds += sums.seconds
        self.tokens += sums.tokens
        self.read_tokens += sums.read_tokens
        self.computed_tokens += sums.computed_tokens

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None

    @property
    def padding_share(self) -> float | None:
        return 1.0 - self.read_tokens / self.computed_tokens if self.computed_tokens else None
