"""How many tokens rows have, many rows at once: what a report counts over a whole data set.

While the tokenizer's own threads work on some rows, the template renders the next ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from graft_scheduler.jobs import DataFormat
from graft_scheduler.rendering.chat_tokenizer import ChatTokenizer
from graft_scheduler.rendering.encoding import as_chat, encode_texts, is_chat

if TYPE_CHECKING:
    from concurrent.futures import Future

AT_ONCE = 512
"""Rows that are tokenised together,"""
AT_ONCE_CHARACTERS = 1 << 21
"""or fewer, so that long ones take little memory."""

Fields = Mapping[str, Any]
Lengths = list[int | None]
T = TypeVar("T")


def lengths(
    tokenizer: ChatTokenizer, data_format: DataFormat, rows: Iterable[Fields]
) -> Iterator[int | None]:
    """How many tokens `encode` makes of each row; `None` for one that the template or the tokenizer refuses.

    That the turns of a chat can be told apart is not looked at: it takes rendering the chat again for each.
    """
    if is_chat(tokenizer, data_format):
        chats = (_render(tokenizer, data_format, fields) for fields in rows)
        return _ahead(_batches(chats, lambda one: len(one or "")), partial(_count_chats, tokenizer))
    texts = _batches(rows, lambda fields: sum(map(len, _texts(fields))))
    return _ahead(texts, partial(_count_texts, tokenizer, data_format))


def _ahead(batches: Iterable[list[T]], count: Callable[[list[T]], Lengths]) -> Iterator[int | None]:
    """The counts of all batches, each counted while the next one is made."""
    from concurrent.futures import ThreadPoolExecutor  # not for a command line that counts nothing

    with ThreadPoolExecutor(1, "count-tokens") as pool:
        waiting: Future[Lengths] | None = None
        for batch in batches:
            counting = pool.submit(count, batch)
            if waiting is not None:
                yield from waiting.result()
            waiting = counting
        if waiting is not None:
            yield from waiting.result()


def _batches(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if len(batch) >= AT_ONCE or size >= AT_ONCE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _render(tokenizer: ChatTokenizer, data_format: DataFormat, fields: Fields) -> str | None:
    chat = as_chat(data_format, fields)
    try:
        return tokenizer.render(chat["messages"], tools=chat.get("tools"), add_generation_prompt=False)
    except Exception:  # a template is foreign code, and raises what it likes
        return None


def _count_chats(tokenizer: ChatTokenizer, chats: list[str | None]) -> Lengths:
    found = _tokens(tokenizer, [chat for chat in chats if chat is not None], special=False)
    return [len(found[chat]) if chat in found else None for chat in chats]


def _count_texts(tokenizer: ChatTokenizer, data_format: DataFormat, rows: list[Fields]) -> Lengths:
    texts = [text for fields in rows for text in _texts(fields)]
    plain = {text: one.ids for text, one in _tokens(tokenizer, texts, special=False).items()}
    special = {text: one.ids for text, one in _tokens(tokenizer, texts, special=True).items()}
    known = _Known(tokenizer.bos_token_id, tokenizer.eos_token_id, plain, special)
    return [_length(known, data_format, fields) for fields in rows]


def _length(known: _Known, data_format: DataFormat, fields: Fields) -> int | None:
    try:
        return len(encode_texts(known, data_format, fields, mask_prompt=False).tokens)
    except KeyError:
        return None


def _texts(fields: Fields) -> Iterator[str]:
    return (fields[name] for name in ("prompt", "completion", "text") if name in fields)


@dataclass(frozen=True, slots=True)
class _Known:
    """A tokenizer of texts that are tokenised already."""

    bos_token_id: int | None
    eos_token_id: int | None
    plain: Mapping[str, list[int]]
    special: Mapping[str, list[int]]

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        return (self.special if add_special_tokens else self.plain)[text]


def _tokens(tokenizer: ChatTokenizer, texts: Sequence[str], *, special: bool) -> dict[str, Any]:
    """The encodings of these texts, those left out that no tokenizer takes: with half a surrogate pair."""
    try:
        return dict(zip(texts, tokenizer.encode_batch(texts, add_special_tokens=special), strict=True))
    except (TypeError, UnicodeError):
        if len(texts) == 1:
            return {}
        return {
            name: one for text in texts for name, one in _tokens(tokenizer, [text], special=special).items()
        }
