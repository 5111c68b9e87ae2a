"""Tiny random models, their data and a link that remembers, for the tests of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from graft_scheduler.messages import RunnerMessage
from graft_scheduler.states import StopReason

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
M = TypeVar("M")

WORDS = ("apple", "pear", "plum", "quince", "cherry", "medlar", "fig", "grape")


@dataclass
class RecordingLink:
    """Keeps what is reported; asks for a stop or to shrink when a function says so after a message."""

    stop_when: Callable[[RunnerMessage], StopReason | None] = lambda message: None
    shrink_when: Callable[[RunnerMessage], bool] = lambda message: False
    messages: list[RunnerMessage] = field(default_factory=list)
    reason: StopReason | None = None
    shrinks: int = 0

    def report(self, message: RunnerMessage) -> None:
        self.messages.append(message)
        self.reason = self.reason or self.stop_when(message)
        self.shrinks += self.shrink_when(message)

    def stop_reason(self) -> StopReason | None:
        return self.reason

    def shrink_requested(self) -> bool:
        asked, self.shrinks = self.shrinks > 0, 0
        return asked

    def of(self, kind: type[M]) -> list[M]:
        """The messages of one kind, in order."""
        return [message for message in self.messages if isinstance(message, kind)]


def make_tokenizer(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE, eos: bool = True) -> None:
    """A tokenizer of single bytes, saved into `folder`."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate((*SPECIAL_TOKENS, *symbols))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types here
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>" if eos else None,
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
    )
    fast.chat_template = chat_template
    fast.save_pretrained(str(folder))


def make_model(folder: Path, **changes: Any) -> None:
    """A random two-block Llama, saved into `folder`."""
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(SPECIAL_TOKENS) + 256,
        "tie_word_embeddings": True,
        **changes,
    }
    mx.random.seed(7)
    model = Model(ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    """A JSONL file of `rows`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text_rows(count: int) -> list[dict[str, str]]:
    """Short texts of different lengths that share a pattern."""
    return [
        {"text": " ".join(WORDS[(row + word) % 8] for word in range(1 + row % 5))} for row in range(count)
    ]
