"""Answers of a model, with or without an adapter, token by token.

Not mlx-lm's `stream_generate`: that sets the wired limit, which can bring a Mac down (mlx#3186).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.utils import load_adapters

from graft_scheduler.states import FailureClass
from graft_worker.engine.device import peak_bytes
from graft_worker.engine.loading import Base
from graft_worker.link import JobError


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how it is to be answered."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    is_raw: bool = False
    """The prompt goes to the model as it is, without the chat template."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and what it cost."""

    text: str
    prompt_tokens: int
    generation_tokens: int
    tokens_per_second: float
    peak_memory_bytes: int


def put_adapter(base: Base, folder: Path) -> None:
    """Put the trained adapter in `folder` on the base.

    Raises:
        JobError: there is none, or it belongs to another model; class `config`.
    """
    try:
        load_adapters(base.model, str(folder))
    except FileNotFoundError as error:
        text = f"the adapter folder {folder} does not exist or is not complete"
        raise JobError(FailureClass.CONFIG, text) from error
    except json.JSONDecodeError as error:
        text = f"the adapter's adapter_config.json in {folder} is not JSON: {error}"
        raise JobError(FailureClass.CONFIG, text) from error
    except (ValueError, KeyError, AttributeError, RuntimeError) as error:
        text = f"the adapter {folder} does not fit the model: {_one_line(error)}"
        raise JobError(FailureClass.CONFIG, text) from error
    base.model.eval()


def generate(base: Base, question: Question, tell: Callable[[str], None]) -> Answer:
    """Answer `question`; `tell` hears each piece of text as soon as it is there."""
    prompt = _prompt_tokens(base, question)
    mx.random.seed(question.seed)
    steps = generate_step(
        mx.array(prompt),
        base.model,
        max_tokens=question.max_tokens,
        sampler=make_sampler(temp=question.temperature),
    )
    detokenizer = base.tokenizer.detokenizer
    pieces: list[str] = []
    count, began = 0, time.monotonic()
    for token, _ in steps:
        count += 1
        if token in base.tokenizer.eos_token_ids:
            break
        detokenizer.add_token(token)
        _say(detokenizer.last_segment, pieces, tell)
    detokenizer.finalize()
    _say(detokenizer.last_segment, pieces, tell)
    seconds = time.monotonic() - began
    return Answer("".join(pieces), len(prompt), count, count / seconds, peak_bytes())


def _prompt_tokens(base: Base, question: Question) -> list[int]:
    tokenizer = base.tokenizer
    if question.is_raw or not tokenizer.has_chat_template:
        tokens = list(tokenizer.encode(question.prompt))
    else:
        messages = [{"role": "user", "content": question.prompt}]
        tokens = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
    if not tokens:
        raise JobError(FailureClass.DATA, "the prompt is empty: there is nothing to go on from")
    return tokens


def _say(piece: str, pieces: list[str], tell: Callable[[str], None]) -> None:
    if piece:
        pieces.append(piece)
        tell(piece)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
