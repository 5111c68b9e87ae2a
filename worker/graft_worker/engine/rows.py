"""From rows of a data set to arrays of tokens, and which of them are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from numpy.typing import NDArray

from graft_scheduler.data.rows import Row
from graft_scheduler.jobs import DataFormat
from graft_scheduler.rendering import Encoded, Unrendered, encode
from graft_scheduler.states import FailureClass
from graft_worker.link import JobError


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row as the model sees it."""

    tokens: NDArray[np.int32]
    learned: NDArray[np.bool_]
    """Which tokens are learned as targets. The first never is: nothing comes before it."""

    @property
    def width(self) -> int:
        """How many tokens the model reads: the last one is only a target."""
        return len(self.tokens) - 1

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return int(self.learned[1:].sum())


@dataclass(slots=True)
class TokenRows:
    """The usable rows of one file, and what became of the others."""

    rows: list[TokenRow] = field(default_factory=list)
    cut: int = 0
    """Longer than the limit; their beginning is used."""
    dropped: int = 0
    """Nothing to learn within the limit."""
    unrendered: int = 0
    """The chat template refuses them, or does not show where the assistant's turns are."""
    first_problem: str | None = None
    """Of an unrendered row, with its line."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are to be read."""

    format: DataFormat
    mask_prompt: bool
    max_length: int


def tokenise(
    rows: Iterable[Row],
    tokenizer: TokenizerWrapper,
    reading: Reading,
    between_rows: Callable[[], None] = lambda: None,
) -> TokenRows:
    """Tokens of all `rows`; `between_rows` is called now and then, and may raise to stop.

    Raises:
        JobError: chats, and a tokenizer without a chat template; class `config`.
    """
    if reading.format is DataFormat.CHAT and not tokenizer.has_chat_template:
        text = "the rows are chats, but the model's tokenizer has no chat template"
        raise JobError(FailureClass.CONFIG, f"{text}; use a chat model, or prompt and completion rows")
    done = TokenRows()
    for row in rows:
        between_rows()
        try:
            encoded = encode(tokenizer, reading.format, row.fields, mask_prompt=reading.mask_prompt)
        except Unrendered as error:
            done.unrendered += 1
            done.first_problem = done.first_problem or f"line {row.line}: {error}"
            continue
        _take(done, encoded, reading.max_length)
    return done


def digest(rows: Sequence[TokenRow]) -> str:
    """Tells one list of rows from another, by their tokens and masks."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(len(row.tokens).to_bytes(8, "big") + row.tokens.tobytes() + row.learned.tobytes())
    return sha.hexdigest()


def _take(done: TokenRows, encoded: Encoded, max_length: int) -> None:
    row = TokenRow(
        np.asarray(encoded.tokens[:max_length], dtype=np.int32),
        np.asarray(encoded.learned[:max_length], dtype=np.bool_),
    )
    if row.targets == 0:
        done.dropped += 1
        return
    done.cut += len(encoded.tokens) > max_length
    done.rows.append(row)
