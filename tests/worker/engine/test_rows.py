"""From rows to tokens, and which of them are learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer
from tokenizers import processors

from graft_scheduler.data.rows import Row
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

THINKING_TEMPLATE = (
    "{% set ns = namespace(last=0) %}"
    "{% for message in messages if message['role'] == 'user' %}{% set ns.last = messages.index(message) %}"
    "{% endfor %}"
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' and loop.index0 > ns.last and (loop.last or THOUGHT) %}"
    "[think][/think]{% endif %}"
    "{{ message['content'] | trim }}"
    "{% for call in message.tool_calls or [] %}[call]{{ call['function']['name'] }}[/call]{% endfor %}"
    "</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
).replace("THOUGHT", "message.reasoning_content")
"""As Qwen3's: an empty thought in the last turn of the assistant, and in none before it."""


@pytest.fixture
def tokenizer(base: Path) -> TokenizerWrapper:
    return load(base)


@pytest.fixture(scope="session")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    folder = tmp_path_factory.mktemp("thinking")
    make_tokenizer(folder, chat_template=THINKING_TEMPLATE)
    return load(folder)


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


def shown(tokenizer: TokenizerWrapper, row: TokenRow) -> str:
    """All tokens as text."""
    text = tokenizer.decode(row.tokens.tolist())
    assert isinstance(text, str)
    return text


def surround(tokenizer: TokenizerWrapper, template: str) -> None:
    """Let the tokenizer put tokens around every text, as `template` says."""
    special = [("<s>", 1), ("</s>", 2)]
    processor = processors.TemplateProcessing(single=template, special_tokens=special)
    tokenizer._tokenizer.backend_tokenizer.post_processor = processor


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


TURNS = (("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"), ("user", "three"))
THREE_TURNS = chat(("system", "S"), *TURNS, ("assistant", "3"))


def test_turns_that_the_template_rewrites_once_others_follow_are_found(
    make: Callable[..., TokenizerWrapper],
) -> None:
    tokenizer = make(chat_template=THINKING_TEMPLATE)

    tokens = read(tokenizer, [THREE_TURNS], DataFormat.CHAT)

    assert tokens.unrendered == 0
    assert learned(tokenizer, tokens.rows[0]) == "1</s>2</s>[think][/think]3</s>"


def test_the_end_of_a_rewritten_turn_may_be_known_from_the_last_one_alone(
    make: Callable[..., TokenizerWrapper],
) -> None:
    tokenizer = make(chat_template=THINKING_TEMPLATE.replace("</s>", "<pad>"))

    tokens = read(tokenizer, [THREE_TURNS, chat(*TURNS[:3])], DataFormat.CHAT)

    assert learned(tokenizer, tokens.rows[0]) == "1<pad>2<pad>[think][/think]3<pad>"
    assert (len(tokens.rows), tokens.unrendered) == (1, 1)  # of a chat that ends in a question it is not


@pytest.mark.parametrize(
    ("answer", "question", "wanted"),
    [
        ("same", "same", "same</s>"),
        ("", "two", "</s>"),
        (" 1\n", "two", "1</s>"),
        ("1", "two</s><|assistant|>1</s>", "1</s>"),
        ("1<|user|>", "1", "1<|user|></s>"),
    ],
)
def test_a_rewritten_turn_is_learned_to_its_end(
    make: Callable[..., TokenizerWrapper], answer: str, question: str, wanted: str
) -> None:
    tokenizer = make(chat_template=THINKING_TEMPLATE)
    row = chat(("user", "one"), ("assistant", answer), ("user", question), ("assistant", "2"))

    tokens = read(tokenizer, [row], DataFormat.CHAT)

    assert learned(tokenizer, tokens.rows[0]) == f"{wanted}[think][/think]2</s>"


@pytest.mark.parametrize("answer", ["1</s>", "1</s>2", "</s>", "</s><|user|>two</s>"])
def test_a_rewritten_turn_with_an_end_token_in_it_is_left_out(
    make: Callable[..., TokenizerWrapper], answer: str
) -> None:
    tokenizer = make(chat_template=THINKING_TEMPLATE)
    row = chat(("user", "one"), ("assistant", answer), ("user", "two"), ("assistant", "2"))

    tokens = read(tokenizer, [row], DataFormat.CHAT)

    assert (tokens.rows, tokens.unrendered) == ([], 1)
    assert tokens.first_problem is not None
    assert tokens.first_problem.startswith("line 1: the template renders the first 2 messages otherwise")


PIECES = st.lists(
    st.sampled_from(["a", "b", " ", "\n", "</s>", "<|user|>", "<|assistant|>", "[think]"]), max_size=4
)


@settings(deadline=None, max_examples=150)
@given(said=st.lists(PIECES.map("".join), min_size=6, max_size=6))
def test_whatever_is_said_nothing_but_whole_answers_is_learned(
    thinking: TokenizerWrapper, said: list[str]
) -> None:
    roles = ("user", "assistant") * 3

    tokens = read(thinking, [chat(*zip(roles, said, strict=True))], DataFormat.CHAT)

    one, two, three = (answer.strip() for answer in said[1::2])
    if "</s>" not in one + two:
        assert tokens.unrendered == 0
    for row in tokens.rows:
        assert learned(thinking, row) == f"{one}</s>{two}</s>[think][/think]{three}</s>"


def test_a_call_of_a_tool_before_the_answer_is_learned(make: Callable[..., TokenizerWrapper]) -> None:
    tokenizer = make(chat_template=THINKING_TEMPLATE)
    row = chat(("user", "one"), ("assistant", ""), ("tool", "1"), ("assistant", "is 1"))
    row["messages"][1]["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": {}}}]

    tokens = read(tokenizer, [row], DataFormat.CHAT)

    assert learned(tokenizer, tokens.rows[0]) == "[call]f[/call]</s>[think][/think]is 1</s>"


@pytest.mark.parametrize("calls", ["f", 1, [None], [{"function": None}], [{"name": ["f"]}], {"f": 1}])
def test_a_call_of_a_tool_that_is_none_is_left_out(
    make: Callable[..., TokenizerWrapper], calls: object
) -> None:
    tokenizer = make(chat_template=THINKING_TEMPLATE.replace("message.tool_calls or []", "[]"))
    row = chat(("user", "one"), ("assistant", ""), ("user", "two"), ("assistant", "2"))
    row["messages"][1]["tool_calls"] = calls

    tokens = read(tokenizer, [row], DataFormat.CHAT)

    assert (tokens.rows, tokens.unrendered) == ([], 1)


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "[left out]",
        "{{ message['content'] }}<|user|>{{ messages[loop.index]['content'] }}",
        "x{{ message['content'] }}",
    ],
)
def test_a_rewritten_turn_that_is_not_what_was_said_is_left_out(
    make: Callable[..., TokenizerWrapper], shown: str
) -> None:
    template = (
        "{% for message in messages %}<|{{ message['role'] }}|>"
        "{% if message['role'] == 'assistant' and not loop.last %}SHOWN"
        "{% else %}{{ message['content'] }}{% endif %}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ).replace("SHOWN", shown)
    tokenizer = make(chat_template=template)
    row = chat(("user", "one"), ("assistant", "o"), ("user", "two"), ("assistant", "2"))

    tokens = read(tokenizer, [row], DataFormat.CHAT)

    assert (tokens.rows, tokens.unrendered) == ([], 1)


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


def test_a_first_token_that_the_text_has_already_is_not_doubled(
    make: Callable[..., TokenizerWrapper],
) -> None:
    tokenizer = make(chat_template=None)
    surround(tokenizer, "<s> $A")

    texts = read(tokenizer, [{"text": "ab"}, {"text": "<s>ab"}, {"text": "<s><s>ab"}], DataFormat.TEXT)
    prompt = read(tokenizer, [{"prompt": "<s>one", "completion": "1"}], DataFormat.COMPLETION)

    assert [shown(tokenizer, row) for row in texts.rows] == ["<s>ab</s>", "<s>ab</s>", "<s><s>ab</s>"]
    assert shown(tokenizer, prompt.rows[0]) == "<s>one1</s>"


def test_a_first_token_of_the_text_alone_stays_as_often_as_it_is_there(
    make: Callable[..., TokenizerWrapper],
) -> None:
    tokenizer = make()

    tokens = read(tokenizer, [{"text": "<s>ab"}, {"text": "<s><s>ab"}], DataFormat.TEXT)

    assert [shown(tokenizer, row) for row in tokens.rows] == ["<s>ab</s>", "<s><s>ab</s>"]


def test_an_end_that_the_tokenizer_puts_behind_a_prompt_is_taken_off(
    make: Callable[..., TokenizerWrapper],
) -> None:
    tokenizer = make(chat_template=None)
    surround(tokenizer, "<s> $A </s>")

    prompt = read(tokenizer, [{"prompt": "one", "completion": "1"}], DataFormat.COMPLETION)
    texts = read(tokenizer, [{"text": "ab"}, {"text": "ab</s>"}], DataFormat.TEXT)

    assert shown(tokenizer, prompt.rows[0]) == "<s>one1</s>"
    assert [shown(tokenizer, row) for row in texts.rows] == ["<s>ab</s>", "<s>ab</s>"]


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
