"""Which shapes are worth compiling: those that come often enough to earn it back.

Compiling a step of a large model takes seconds for every shape of micro-batch. A job whose shapes
come a few times each is faster without.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MAX_SHAPES = 32
"""`mx.compile` keeps a trace for every shape for ever, and Metal has an end (mlx#4464)."""
GAIN = 0.25
"""What compiling saves of a step's time: up to 0.3 on an H100; taken for Metal too, unmeasured."""
FIRST_GUESS_SECONDS = 8.0
"""What compiling a shape is taken to cost until one was compiled; on an H100 it is several seconds."""

Shape = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class CompilePlan:
    """Decides shape by shape, from what was measured so far."""

    steps: int | None
    """Of the job; `None` compiles every shape at once."""
    done: int = 0
    """Steps so far."""
    compiled: set[Shape] = field(default_factory=set)
    _uses: Counter[Shape] = field(default_factory=Counter)
    _seconds: dict[Shape, float] = field(default_factory=dict)
    """The newest time of each shape without compiling."""
    _cost_seconds: float = FIRST_GUESS_SECONDS

    def wants(self, shape: Shape) -> bool:
        """Whether to use the compiled function for `shape`, compiling it if need be."""
        if shape in self.compiled:
            return True
        if len(self.compiled) < MAX_SHAPES and self._earns(shape):
            self.compiled.add(shape)
            return True
        return False

    def took(self, shape: Shape, seconds: float, *, was_compiled: bool) -> None:
        """Note what a micro-batch took; the first compiled one of a shape is the price of compiling."""
        self._uses[shape] += 1
        if not was_compiled:
            self._seconds[shape] = seconds
        elif shape in self._seconds:
            self._cost_seconds = max(0.0, seconds - self._seconds.pop(shape))

    def _earns(self, shape: Shape) -> bool:
        if self.steps is None:
            return True
        if shape not in self._seconds:
            return False
        uses_to_come = self._uses[shape] / max(1, self.done) * (self.steps - self.done)
        return uses_to_come * GAIN * self._seconds[shape] > self._cost_seconds
