"""Which tokens of a chat are the assistant's turns.

Found by rendering the chat up to each turn, with and without it: what does not begin the whole
chat, token by token, is no answer. A template may render a turn otherwise once others follow it
(reasoning models drop thoughts); its end is then looked for, and what was found is read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft_scheduler.rendering.tokenizer import Tokenizer

THOUGHT_END = "</think>"
"""Where a thought ends that a message holds as text, rather than as a field of its own."""

Span = tuple[int, int]
"""First token and the one after the last."""


class Unrendered(Exception):
    """Says why a chat cannot be learned; the row is left out."""


def find_turns(tokenizer: Tokenizer, fields: Mapping[str, Any], tokens: Sequence[int]) -> list[Span]:
    """The assistant's turns in `tokens`, which render the whole chat.

    Raises:
        Unrendered: they cannot be told apart for certain.
    """
    return _Chat(tokenizer, fields, tokens, fields["messages"]).spans()


def render(
    tokenizer: Tokenizer,
    fields: Mapping[str, Any],
    messages: Sequence[Any],
    *,
    prompt: bool = False,
) -> list[int]:
    """Tokens of `messages`, and of the header of an answer with `prompt`.

    Raises:
        Unrendered: the template refuses them.
    """
    try:
        tokens = tokenizer.apply_chat_template(
            messages, tools=fields.get("tools"), add_generation_prompt=prompt
        )
    except Exception as error:  # a template is foreign code, and raises what it likes
        if not messages:
            text = "the chat begins with the assistant, and the template renders no header before it"
            raise Unrendered(text) from error
        raise Unrendered(f"the chat template refuses it: {error}") from error
    return list(tokens)


def end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens at which an answer ends."""
    return frozenset(tokenizer.eos_token_ids)


@dataclass(frozen=True, slots=True)
class _Turn:
    """Where a turn begins, and what comes after it at the latest: the assistant's next turn."""

    index: int
    start: int
    next_index: int
    limit: int


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat and the tokens that render all of it."""

    tokenizer: Tokenizer
    fields: Mapping[str, Any]
    tokens: Sequence[int]
    messages: Sequence[Mapping[str, Any]]

    def spans(self) -> list[Span]:
        turns = self.turns()
        return [(turn.start, self.end_of(turn, turns[-1])) for turn in turns]

    def turns(self) -> list[_Turn]:
        indices = [index for index, one in enumerate(self.messages) if one["role"] == "assistant"]
        if not indices:
            return []
        starts = [self.prefix(index, prompt=True) for index in indices]
        next_indices, limits = [*indices[1:], len(self.messages)], [*starts[1:], len(self.tokens)]
        return [_Turn(*one) for one in zip(indices, starts, next_indices, limits, strict=True)]

    def prefix(self, count: int, *, prompt: bool) -> int:
        """How many tokens render the first `count` messages, and the header of an answer with `prompt`."""
        prefix = render(self.tokenizer, self.fields, self.messages[:count], prompt=prompt)
        if list(self.tokens[: len(prefix)]) != prefix:
            raise Unrendered(f"the template renders the first {count} messages otherwise on their own")
        return len(prefix)

    def end_of(self, turn: _Turn, last: _Turn) -> int:
        """Where `turn` ends; `last` is the assistant's last one."""
        try:
            return self.prefix(turn.index + 1, prompt=False)
        except Unrendered:
            end = self.find_end(turn, end_ids(self.tokenizer) | self.closing(last))
            if end is None:
                raise
            return end

    def find_end(self, turn: _Turn, ends: frozenset[int]) -> int | None:
        """After the first end token, if this turn lies before it and the next messages after it."""
        places = range(turn.start, turn.limit)
        end = next((place + 1 for place in places if self.tokens[place] in ends), None)
        if end is None or not _tells(self.text(turn.start, end - 1), self.messages[turn.index]):
            return None
        rest = self.text(end, turn.limit)
        for message in self.messages[turn.index + 1 : turn.next_index]:
            place = rest.find(content := _content(message))
            if place < 0:
                return None
            rest = rest[place + len(content) :]
        return end

    def closing(self, last: _Turn) -> frozenset[int]:
        """The token that ends the last turn, where nothing comes after that."""
        if last.next_index != last.index + 1:
            return frozenset()
        turn = reversed(self.tokens[last.start :])
        return frozenset(next(([token] for token in turn if self.decode([token]).strip()), []))

    def text(self, start: int, end: int) -> str:
        return self.decode(self.tokens[start:end])

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)


def _tells(text: str, message: Mapping[str, Any]) -> bool:
    """Whether `text` is what the message says, with its thought or without, after marks of the template
    at most.
    """
    content = _content(message)
    answer = content.rpartition(THOUGHT_END)[2].strip()
    if calls := message.get("tool_calls"):
        names = [_called(call) for call in calls] if isinstance(calls, list) else [None]
        return answer in text and all(name and name in text for name in names)
    return _ends_in(text.strip(), content) or _ends_in(text.strip(), answer)


def _ends_in(text: str, said: str) -> bool:
    marks = text.removesuffix(said)
    return text.endswith(said) and not marks[-1:].isalnum() if said else not text


def _called(call: object) -> str | None:
    """The name of the function that is called, in either form that templates take; none in any other."""
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _content(message: Mapping[str, Any]) -> str:
    return str(message.get("content") or "").strip()
