"""What a row is trained as: its tokens, and which of them are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft_scheduler.jobs import DataFormat
from graft_scheduler.rendering.tokenizer import TextTokenizer, Tokenizer
from graft_scheduler.rendering.turns import find_turns, render


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row in tokens, before it is cut to a length."""

    tokens: list[int]
    learned: list[bool]
    """Of each token: whether it is learned as a target."""


def encode(
    tokenizer: Tokenizer, data_format: DataFormat, fields: Mapping[str, Any], *, mask_prompt: bool = True
) -> Encoded:
    """The row `fields` in tokens; with `mask_prompt` only what the assistant says is learned, or the
    completion; a text always is.

    Raises:
        Unrendered: the chat template refuses it, or does not show where the assistant's turns are.
    """
    if is_chat(tokenizer, data_format):
        return _encode_chat(tokenizer, as_chat(data_format, fields), mask_prompt)
    return encode_texts(tokenizer, data_format, fields, mask_prompt=mask_prompt)


def encode_texts(
    tokenizer: TextTokenizer, data_format: DataFormat, fields: Mapping[str, Any], *, mask_prompt: bool
) -> Encoded:
    """A row that is no chat for this tokenizer."""
    if data_format is DataFormat.COMPLETION:
        return _encode_completion(tokenizer, fields, mask_prompt)
    return _encode_text(tokenizer, fields)


def is_chat(tokenizer: Tokenizer, data_format: DataFormat) -> bool:
    """Whether such rows go through the chat template: prompt and completion do where there is one, as they
    will be in use (mlx-lm does the same).
    """
    return data_format is DataFormat.CHAT or (
        data_format is DataFormat.COMPLETION and tokenizer.has_chat_template
    )


def as_chat(data_format: DataFormat, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row as a chat: prompt and completion as question and answer."""
    if data_format is DataFormat.CHAT:
        return fields
    turns = [("user", fields["prompt"]), ("assistant", fields["completion"])]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _encode_chat(tokenizer: Tokenizer, fields: Mapping[str, Any], mask_prompt: bool) -> Encoded:
    tokens = render(tokenizer, fields, fields["messages"])
    if not mask_prompt:
        return Encoded(tokens, [True] * len(tokens))
    learned = [False] * len(tokens)
    for start, end in find_turns(tokenizer, fields, tokens):
        learned[start:end] = [True] * (end - start)
    return Encoded(tokens, learned)


def _encode_completion(tokenizer: TextTokenizer, fields: Mapping[str, Any], mask_prompt: bool) -> Encoded:
    prompt, _ = _between(tokenizer, fields["prompt"])
    answer = _with_end(tokenizer, tokenizer.encode(fields["completion"], add_special_tokens=False))
    return Encoded([*prompt, *answer], [not mask_prompt] * len(prompt) + [True] * len(answer))


def _encode_text(tokenizer: TextTokenizer, fields: Mapping[str, Any]) -> Encoded:
    tokens, tail = _between(tokenizer, fields["text"])
    is_there = tokens[len(tokens) - len(tail) :] == tail
    tokens = _with_end(tokenizer, tokens if is_there else tokens + tail)
    return Encoded(tokens, [True] * len(tokens))


def _between(tokenizer: TextTokenizer, text: str) -> tuple[list[int], list[int]]:
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


def _with_end(tokenizer: TextTokenizer, tokens: Sequence[int]) -> list[int]:
    end = tokenizer.eos_token_id
    if end is None or (tokens and tokens[-1] == end):
        return list(tokens)
    return [*tokens, end]
