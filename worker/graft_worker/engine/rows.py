"""From rows of a data set to tokens, and which of them are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from numpy.typing import NDArray

from graft_scheduler.data.rows import Row
from graft_scheduler.jobs import DataFormat
from graft_scheduler.states import FailureClass
from graft_worker.engine.turns import Unrendered, find_turns, render
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


Encoded = tuple[Sequence[int], Sequence[bool]]
Encoder = Callable[[TokenizerWrapper, Mapping[str, Any], bool], Encoded]


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
            tokens, learned = ENCODERS[reading.format](tokenizer, row.fields, reading.mask_prompt)
        except Unrendered as error:
            done.unrendered += 1
            done.first_problem = done.first_problem or f"line {row.line}: {error}"
            continue
        _take(done, tokens, learned, reading.max_length)
    return done


def encode_chat(tokenizer: TokenizerWrapper, fields: Mapping[str, Any], mask_prompt: bool) -> Encoded:
    """A chat through the model's template; with `mask_prompt` all assistant turns are learned."""
    tokens = render(tokenizer, fields, fields["messages"])
    if not mask_prompt:
        return tokens, [True] * len(tokens)
    learned = [False] * len(tokens)
    for start, end in find_turns(tokenizer, fields, tokens):
        learned[start:end] = [True] * (end - start)
    return tokens, learned


def encode_completion(tokenizer: TokenizerWrapper, fields: Mapping[str, Any], mask_prompt: bool) -> Encoded:
    """A prompt and what follows it, as they will be in use: question and answer of a chat where the
    model has a template (mlx-lm does the same), otherwise joined as tokens.
    """
    if tokenizer.has_chat_template:
        turns = [("user", fields["prompt"]), ("assistant", fields["completion"])]
        messages = [{"role": role, "content": content} for role, content in turns]
        return encode_chat(tokenizer, {"messages": messages}, mask_prompt)
    prompt, _ = _encode(tokenizer, fields["prompt"])
    answer = _with_end(tokenizer, tokenizer.encode(fields["completion"], add_special_tokens=False))
    return [*prompt, *answer], [not mask_prompt] * len(prompt) + [True] * len(answer)


def encode_text(tokenizer: TokenizerWrapper, fields: Mapping[str, Any], mask_prompt: bool) -> Encoded:
    """Plain text, all of it learned."""
    tokens, tail = _encode(tokenizer, fields["text"])
    is_there = tokens[len(tokens) - len(tail) :] == tail
    tokens = _with_end(tokenizer, tokens if is_there else tokens + tail)
    return tokens, [True] * len(tokens)


ENCODERS: dict[DataFormat, Encoder] = {
    DataFormat.CHAT: encode_chat,
    DataFormat.COMPLETION: encode_completion,
    DataFormat.TEXT: encode_text,
}


def digest(rows: Sequence[TokenRow]) -> str:
    """Tells one list of rows from another, by their tokens and masks."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(len(row.tokens).to_bytes(8, "big") + row.tokens.tobytes() + row.learned.tobytes())
    return sha.hexdigest()


def _take(done: TokenRows, tokens: Sequence[int], learned: Sequence[bool], max_length: int) -> None:
    row = TokenRow(
        np.asarray(tokens[:max_length], dtype=np.int32), np.asarray(learned[:max_length], dtype=np.bool_)
    )
    if row.targets == 0:
        done.dropped += 1
        return
    done.cut += len(tokens) > max_length
    done.rows.append(row)


def _encode(tokenizer: TokenizerWrapper, text: str) -> tuple[list[int], list[int]]:
    """The tokens of `text` after what the tokenizer puts before them, and what it puts behind them.

    A first token that the text has already is not put there twice.
    """
    plain = list(tokenizer.encode(text, add_special_tokens=False))
    tokens = list(tokenizer.encode(text))
    for place in range(len(tokens) - len(plain), -1, -1):
        if tokens[place : place + len(plain)] == plain:
            head, tail = tokens[:place], tokens[place + len(plain) :]
            is_doubled = head[-1:] == plain[:1] == [tokenizer.bos_token_id]
            return (head[:-1] if is_doubled else head) + plain, tail
    return tokens, []


def _with_end(tokenizer: TokenizerWrapper, tokens: Sequence[int]) -> list[int]:
    end = tokenizer.eos_token_id
    if end is None or (tokens and tokens[-1] == end):
        return list(tokens)
    return [*tokens, end]
