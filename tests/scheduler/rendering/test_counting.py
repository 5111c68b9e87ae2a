"""Many rows at once, and a row as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from graft_scheduler.jobs import DataFormat
from graft_scheduler.rendering import (
    ChatTokenizer,
    Encoded,
    Piece,
    counting,
    encode,
    lengths,
    open_tokenizer,
    pieces,
)
from tests.scheduler.rendering.families import FAMILIES, write


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ChatTokenizer]:
    folder = tmp_path_factory.mktemp("families")
    return lambda name: open_tokenizer(write(FAMILIES[name], folder / name))


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_rows_are_counted_in_order_across_batches(
    opened: Callable[[str], ChatTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "AT_ONCE", 7)
    monkeypatch.setattr(counting, "AT_ONCE_CHARACTERS", 900)
    tokenizer = opened("gemma2")
    rows = [chat(("user", "one " * (1 + place % 40)), ("assistant", "x")) for place in range(50)]
    rows[11] = chat(("system", "none"), ("assistant", "x"))
    rows[12] = chat(("user", "\ud800"), ("assistant", "x"))

    found = list(lengths(tokenizer, DataFormat.CHAT, iter(rows)))

    wanted = [
        None if place in (11, 12) else len(encode(tokenizer, DataFormat.CHAT, row).tokens)
        for place, row in enumerate(rows)
    ]
    assert found == wanted


def test_texts_are_counted_with_what_the_tokenizer_puts_around_them_once(
    opened: Callable[[str], ChatTokenizer],
) -> None:
    rows = [{"text": text} for text in ("one two", "<s>one two", "one two</s>", "\ud800", "")]

    found = list(lengths(opened("unigram"), DataFormat.TEXT, rows))

    assert found[0] == found[1] == found[2] is not None
    assert found[3:] == [None, 2]


def test_pieces_break_no_character_and_lose_nothing(opened: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = opened("gpt2")
    tokens = tokenizer.encode("a𝄞b")
    place = next(end for end in range(len(tokens)) if "\ufffd" in tokenizer.decode(tokens[:end]))
    learned = [False] * place + [True] * (len(tokens) - place)

    found = pieces(tokenizer, Encoded(tokens, learned))

    assert found == [Piece(" a𝄞", learned=False), Piece("b", learned=True)]


def test_pieces_show_special_tokens_and_the_spaces_between(opened: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = opened("mistral")

    found = pieces(
        tokenizer, encode(tokenizer, DataFormat.CHAT, chat(("user", "one"), ("assistant", " two")))
    )

    assert found == [Piece("<s>[INST] one[/INST]", learned=False), Piece(" two</s>", learned=True)]


def test_a_row_of_no_tokens_has_no_pieces(opened: Callable[[str], ChatTokenizer]) -> None:
    assert pieces(opened("gpt2"), Encoded([], [])) == []
