"""How long the rows of a data set are, in tokens: what memory, time and the automatic batch depend on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from graft_scheduler.hyperparameters import Method

BYTES_PER_TOKEN = 4
"""Of English text, about; used only where nobody has counted tokens."""
STEP_TOKENS = {Method.FULL: 16_384}
"""What a step of the automatic batch reads at least, by method,"""
ADAPTER_STEP_TOKENS = 8_192
"""and where something small is adapted. Adapters bear small batches, and lose by large ones
("LoRA Without Regret", Thinking Machines 2025); these give a chat of 256 tokens 32 rows."""
AUTO_ROWS = (4, 8, 16, 32, 64)
MIN_STEPS = 16
"""An epoch of the automatic batch has at least so many steps, where the data have the rows."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of the rows that are trained on, cut to the longest that is allowed."""

    tokens: tuple[int, ...]
    """Of every row, or of a sample of them, in rising order; the longest row is among them."""
    rows: int
    """How many there are in all."""
    is_counted: bool = False
    """By the model's own tokenizer; else an upper bound for each row, from its bytes."""
    is_exact: bool = False
    """Of every row, and just as it is trained; only the runner knows that."""

    @property
    def longest(self) -> int:
        return self.tokens[-1]

    @property
    def shortest(self) -> int:
        """No row is shorter; 1 where that is not known."""
        return self.tokens[0] if self.is_exact else 1

    @property
    def mean(self) -> float:
        return sum(self.tokens) / len(self.tokens)

    def share_above(self, tokens: int) -> float:
        """Of the rows that are longer."""
        return 1 - bisect_right(self.tokens, tokens) / len(self.tokens)

    def cut(self, max_length: int) -> Lengths:
        """With rows cut to `max_length`."""
        return replace(self, tokens=tuple(min(one, max_length) for one in self.tokens))


def of_rows(tokens: Iterable[int], max_length: int, *, is_counted: bool = True) -> Lengths:
    """The lengths of these rows."""
    found = sorted(min(one, max_length) for one in tokens)
    return Lengths(tuple(found), len(found), is_counted)


def auto_batch_rows(row_bytes: Sequence[int], method: Method, max_length: int) -> int:
    """The batch size `auto`: rows of which a step reads about 8,192 tokens (16,384 in a full fine-tune).

    Depends on the bytes of the data set's training rows, `max_length` and the method, and on nothing
    of a host; tokens are taken to be four bytes each whatever the tokenizer. Between 4 and 64, and
    fewer for a small data set, so that an epoch has 16 steps.
    """
    mean = sum(min(size / BYTES_PER_TOKEN, max_length) for size in row_bytes) / len(row_bytes)
    wanted = STEP_TOKENS.get(method, ADAPTER_STEP_TOKENS) / max(mean, 1.0)
    rows = min(AUTO_ROWS, key=lambda one: (abs(one - wanted), one))
    return max(1, min(rows, len(row_bytes) // MIN_STEPS))
