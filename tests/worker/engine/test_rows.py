"""From rows to tokens, and which of them are learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer

from graft_scheduler.datasets import Row
from graft_scheduler.jobs import DataFormat
from graft_scheduler.states import FailureClass
from graft_worker.engine.rows import Reading, TokenRow, TokenRows, digest, tokenise
from graft_worker.link import JobError
from tests.worker.engine.tiny import make_tokenizer

FORGETFUL_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if loop.last or message['role'] != 'assistant' %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Drops what earlier assistant turns said, as templates of reasoning models drop their thoughts."""


@pytest.fixture
def tokenizer(base: Path) -> TokenizerWrapper:
    return load(base)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., TokenizerWrapper]:
    def make_one(**changes: Any) -> TokenizerWrapper:
        make_tokenizer(tmp_path, **changes)
        return load(tmp_path)

    return make_one


def load(folder: Path) -> TokenizerWrapper:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, TokenizerWrapper)
    return tokenizer


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def read(
    tokenizer: TokenizerWrapper,
    rows: Sequence[dict[str, Any]],
    data_format: DataFormat,
    *,
    mask_prompt: bool = True,
    max_length: int = 1000,
) -> TokenRows:
    reading = Reading(data_format, mask_prompt, max_length)
    return tokenise([Row(number, row) for number, row in enumerate(rows, 1)], tokenizer, reading)


def learned(tokenizer: TokenizerWrapper, row: TokenRow) -> str:
    """The learned tokens as text."""
    text = tokenizer.decode(row.tokens[row.learned].tolist())
    assert isinstance(text, str)
    return text


def test_all_assistant_turns_of_a_chat_are_learned_and_nothing_else(tokenizer: TokenizerWrapper) -> None:
    row = chat(("system", "S"), ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"))

    tokens = read(tokenizer, [row], DataFormat.CHAT)

    assert learned(tokenizer, tokens.rows[0]) == "1</s>2</s>"


def test_a_chat_that_ends_in_a_user_turn_does_not_learn_it(tokenizer: TokenizerWrapper) -> None:
    row = chat(("user", "one"), ("assistant", "1"), ("user", "two"))

    tokens = read(tokenizer, [row], DataFormat.CHAT)

    assert learned(tokenizer, tokens.rows[0]) == "1</s>"


def test_without_a_prompt_mask_every_token_is_learned(tokenizer: TokenizerWrapper) -> None:
    rows = [chat(("user", "one"), ("assistant", "1"))]

    tokens = read(tokenizer, rows, DataFormat.CHAT, mask_prompt=False)

    assert tokens.rows[0].learned.all()
    assert tokens.rows[0].targets == tokens.rows[0].width


def test_a_chat_whose_turns_cannot_be_told_apart_is_left_out(make: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = make(chat_template=FORGETFUL_TEMPLATE)
    one_turn = chat(("user", "one"), ("assistant", "1"))
    two_turns = chat(("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"))

    tokens = read(tokenizer, [one_turn, two_turns], DataFormat.CHAT)

    assert len(tokens.rows) == 1
    assert tokens.unrendered == 1
    assert tokens.first_problem is not None
    assert tokens.first_problem.startswith("line 2: the template renders the first 2 messages otherwise")


def test_a_chat_that_the_template_refuses_is_left_out(make: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = make(chat_template="{{ raise_exception('no system role') }}")

    tokens = read(tokenizer, [chat(("user", "one"), ("assistant", "1"))], DataFormat.CHAT)

    assert (tokens.rows, tokens.unrendered) == ([], 1)
    assert tokens.first_problem == "line 1: the chat template refuses it: no system role"


def test_chats_need_a_chat_template(make: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = make(chat_template=None)

    with pytest.raises(JobError, match="has no chat template") as refusal:
        read(tokenizer, [chat(("user", "one"), ("assistant", "1"))], DataFormat.CHAT)

    assert refusal.value.failure is FailureClass.CONFIG


def test_a_completion_is_the_answer_of_a_chat(tokenizer: TokenizerWrapper) -> None:
    row = {"prompt": "one: ", "completion": "1"}
    turns = chat(("user", "one: "), ("assistant", "1"))

    as_completion = read(tokenizer, [row], DataFormat.COMPLETION).rows

    assert digest(as_completion) == digest(read(tokenizer, [turns], DataFormat.CHAT).rows)
    assert learned(tokenizer, as_completion[0]) == "1</s>"


def test_without_a_template_a_completion_and_its_end_are_learned_but_not_its_prompt(
    make: Callable[..., TokenizerWrapper],
) -> None:
    tokenizer = make(chat_template=None)
    row = {"prompt": "one: ", "completion": "1"}

    masked = read(tokenizer, [row], DataFormat.COMPLETION).rows[0]
    unmasked = read(tokenizer, [row], DataFormat.COMPLETION, mask_prompt=False).rows[0]

    assert learned(tokenizer, masked) == "1</s>"
    assert learned(tokenizer, unmasked) == "one: 1</s>"


def test_a_text_is_learned_whole_with_its_end_once(tokenizer: TokenizerWrapper) -> None:
    tokens = read(tokenizer, [{"text": "ab"}, {"text": "ab</s>"}], DataFormat.TEXT)

    assert [learned(tokenizer, row) for row in tokens.rows] == ["ab</s>", "ab</s>"]


def test_a_tokenizer_without_an_end_token_adds_none(make: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = make(eos=False)

    tokens = read(tokenizer, [{"text": "ab"}], DataFormat.TEXT)

    assert learned(tokenizer, tokens.rows[0]) == "ab"


def test_long_rows_are_cut_and_rows_with_nothing_left_to_learn_dropped(tokenizer: TokenizerWrapper) -> None:
    rows = [
        {"prompt": "p" * 4, "completion": "c" * 3},
        {"prompt": "p" * 4, "completion": "c" * 20},
        {"prompt": "p" * 30, "completion": "c"},
    ]

    tokens = read(tokenizer, rows, DataFormat.COMPLETION, max_length=13)

    assert (len(tokens.rows), tokens.cut, tokens.dropped) == (2, 1, 1)
    assert [learned(tokenizer, row) for row in tokens.rows] == ["ccc</s>", "c" * 6]


def test_a_digest_tells_other_tokens_and_other_masks_apart(tokenizer: TokenizerWrapper) -> None:
    row = {"prompt": "one: ", "completion": "1"}
    masked = read(tokenizer, [row], DataFormat.COMPLETION).rows
    unmasked = read(tokenizer, [row], DataFormat.COMPLETION, mask_prompt=False).rows
    other = read(tokenizer, [{**row, "completion": "2"}], DataFormat.COMPLETION).rows

    assert digest(masked) == digest(read(tokenizer, [row], DataFormat.COMPLETION).rows)
    assert len({digest(masked), digest(unmasked), digest(other)}) == 3
