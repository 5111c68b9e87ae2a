"""A row on a laptop is the row that the engine trains: token by token, mask by mask, word by word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import models
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import MODEL_REMAPPING, load_config, load_tokenizer
from transformers.models.auto import tokenization_auto as library

from graft_scheduler.jobs import DataFormat
from graft_scheduler.rendering import (
    ChatTokenizer,
    Encoded,
    Tokenizer,
    Unrendered,
    encode,
    lengths,
    open_tokenizer,
    pieces,
)
from graft_scheduler.rendering.class_names import BY_MODEL_TYPE, NOT_HERE, OVERRULED
from graft_scheduler.rendering.classes import CLASSES
from tests.scheduler.rendering.families import FAMILIES, write

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Größe <b>&</b>",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}],
}
ROLES = ("user", "assistant")
SAID = st.lists(
    st.sampled_from(
        [
            *("one two", " ", "\n\n", "Größe", "e\u0301", "日本語", "😀👩‍👧", "12345", "<think>", "</think>"),
            *("<|im_end|>", "</s>", "<s>", "[INST]", "<eos>", "{{ x }}", "\u00a0", "\x00", "'s", "\ufffd"),
        ]
    ),
    min_size=1,
    max_size=4,
).map("".join)
MESSAGES = st.lists(
    st.one_of(
        st.builds(lambda text: {"role": "system", "content": text}, SAID),
        st.builds(lambda text: {"role": "user", "content": text}, SAID),
        st.builds(lambda text: {"role": "assistant", "content": text}, SAID),
        st.builds(
            lambda text, thought: {"role": "assistant", "content": text, "reasoning_content": thought},
            SAID,
            SAID,
        ),
        st.builds(lambda text: {"role": "tool", "content": text}, SAID),
        st.just(CALL),
    ),
    min_size=1,
    max_size=6,
)
ORDERLY = st.builds(
    lambda first, said: [
        *first,
        *({"role": role, "content": one} for pair in said for role, one in zip(ROLES, pair, strict=True)),
    ],
    st.lists(st.builds(lambda text: {"role": "system", "content": text}, SAID), max_size=1),
    st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3),
)
CHATS = st.builds(
    lambda messages, tools: {"messages": messages, **tools},
    ORDERLY | MESSAGES,
    st.sampled_from([{}, {}, {"tools": None}, {"tools": TOOLS}, {"tools": []}]),
)
Both = tuple[TokenizerWrapper, ChatTokenizer]


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    """The engine's tokenizer of a family, and the laptop's."""
    made: dict[str, Both] = {}

    def open_both(name: str) -> Both:
        if name not in made:
            folder = write(FAMILIES[name], tmp_path_factory.mktemp("family") / name)
            made[name] = (load_as_the_engine(folder), open_tokenizer(folder))
        return made[name]

    return open_both


def load_as_the_engine(folder: Path) -> TokenizerWrapper:
    ends = load_config(folder).get("eos_token_id")
    tokenizer = load_tokenizer(folder, {"trust_remote_code": False}, eos_token_ids=ends)
    assert isinstance(tokenizer, TokenizerWrapper)
    return tokenizer


def outcome(tokenizer: Tokenizer, data_format: DataFormat, row: dict[str, Any], mask: bool) -> Encoded | str:
    try:
        return encode(tokenizer, data_format, row, mask_prompt=mask)
    except Unrendered as error:
        return str(error)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokenizer_knows_the_same_special_tokens(name: str, both: Callable[[str], Both]) -> None:
    engines, ours = both(name)

    assert ours.has_chat_template == engines.has_chat_template
    assert ours.bos_token_id == engines.bos_token_id
    assert ours.eos_token_id == engines.eos_token_id
    assert set(ours.eos_token_ids) == engines.eos_token_ids
    for added in engines.added_tokens_encoder:
        assert ours.encode(f"a{added} b", add_special_tokens=False) == engines.encode(
            f"a{added} b", add_special_tokens=False
        )


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.templates])
@settings(deadline=None, max_examples=40)
@given(chat=CHATS, mask=st.booleans())
def test_a_chat_is_encoded_as_the_engine_does_or_refused_in_its_words(
    name: str, both: Callable[[str], Both], chat: dict[str, Any], mask: bool
) -> None:
    engines, ours = both(name)

    found = outcome(ours, DataFormat.CHAT, chat, mask)

    assert found == outcome(engines, DataFormat.CHAT, chat, mask)
    if isinstance(found, Encoded):
        assert list(lengths(ours, DataFormat.CHAT, [chat])) == [len(found.tokens)]
        assert "".join(one.text for one in pieces(ours, found)) == engines.decode(found.tokens)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=25)
@given(prompt=SAID, completion=SAID, mask=st.booleans())
def test_texts_and_completions_are_encoded_as_the_engine_does(
    name: str, both: Callable[[str], Both], prompt: str, completion: str, mask: bool
) -> None:
    engines, ours = both(name)
    rows = [
        (DataFormat.TEXT, {"text": prompt}),
        (DataFormat.COMPLETION, {"prompt": prompt, "completion": completion}),
    ]

    for data_format, row in rows:
        found = outcome(ours, data_format, row, mask)

        assert found == outcome(engines, data_format, row, mask)
        if isinstance(found, Encoded):
            assert list(lengths(ours, data_format, [row])) == [len(found.tokens)]


def test_most_chats_of_the_families_are_learned(both: Callable[[str], Both]) -> None:
    turns = [("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}

    learned = {}
    for name in ("qwen2.5", "qwen3", "llama3", "gemma2", "mistral", "llama2", "command-r"):
        _, ours = both(name)
        encoded = encode(ours, DataFormat.CHAT, chat)
        learned[name] = [one.text for one in pieces(ours, encoded) if one.learned]

    assert learned == {
        "qwen2.5": ["1<|im_end|>\n", "2<|im_end|>\n"],
        "qwen3": ["1<|im_end|>", "<think>\n\n</think>\n\n2<|im_end|>\n"],
        "llama3": ["1<|eot_id|>", "2<|eot_id|>"],
        "gemma2": ["1<end_of_turn>\n", "2<end_of_turn>\n"],
        "mistral": [" 1</s>", " 2</s>"],
        "llama2": [" 1 </s>", " 2 </s>"],
        "command-r": ["1<|END_OF_TURN_TOKEN|>", "2<|END_OF_TURN_TOKEN|>"],
    }


def test_a_thought_in_the_text_of_a_turn_that_the_template_drops_is_not_learned(
    both: Callable[[str], Both],
) -> None:
    engines, _ = both("qwen3")
    turns = [("user", "one"), ("assistant", "<think>\nhm\n</think>\n\n1"), ("user", "two")]
    chat = {"messages": [{"role": role, "content": content} for role, content in (*turns, turns[1])]}

    encoded = encode(engines, DataFormat.CHAT, chat)

    learned = [one.text for one in pieces(engines, encoded) if one.learned]
    assert learned == ["1<|im_end|>", "<think>\nhm\n</think>\n\n1<|im_end|>\n"]


def test_the_tables_of_classes_are_those_of_the_libraries() -> None:
    trained = {path.stem for path in Path(models.__path__[0]).glob("*.py")} | MODEL_REMAPPING.keys()
    by_type = {name: one for name, one in library.TOKENIZER_MAPPING_NAMES.items() if name in trained and one}
    overruled = library.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS & trained

    assert by_type == BY_MODEL_TYPE
    assert overruled == OVERRULED
    assert [name for name in (*CLASSES, *NOT_HERE) if not _has_rules_of_its_own(name)] == []


def _has_rules_of_its_own(name: str) -> bool:
    kind = getattr(transformers, name)
    return "__init__" in vars(kind) and issubclass(kind, transformers.TokenizersBackend)
