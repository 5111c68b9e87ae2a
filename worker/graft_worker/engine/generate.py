"""Answers of a model, with or without an adapter, token by token.

Not mlx-lm's `stream_generate`: that sets the wired limit, which can bring a Mac down (mlx#3186).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.utils import load_adapters

from graft_scheduler.hyperparameters import QuantizationConfig
from graft_scheduler.states import FailureClass
from graft_worker.engine.adapters import CONFIG_FILE
from graft_worker.engine.device import is_out_of_memory, peak_bytes
from graft_worker.engine.loading import Base
from graft_worker.link import JobError

MAX_ERROR_CHARACTERS = 200
"""MLX names every array that does not fit; the first few say enough."""


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


def quantization_of(folder: Path) -> QuantizationConfig | None:
    """What the adapter in `folder` had its base quantised to when it was trained.

    Raises:
        JobError: there is no adapter, or its config cannot be read; class `config`.
    """
    with adapter_errors(folder):
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        found = config.get("base_quantization")
        return None if found is None else QuantizationConfig.model_validate(found)


def put_adapter(base: Base, folder: Path) -> None:
    """Put the trained adapter in `folder` on the base.

    Raises:
        JobError: there is none, or it belongs to another model; class `config`.
    """
    with adapter_errors(folder):
        load_adapters(base.model, str(folder))
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


@contextmanager
def adapter_errors(folder: Path) -> Iterator[None]:
    """What goes wrong in here is about the adapter in `folder`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        text = f"the adapter folder {folder} does not exist or is not complete"
        raise JobError(FailureClass.CONFIG, text) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        text = f"the adapter's {CONFIG_FILE} in {folder} is not JSON: {error}"
        raise JobError(FailureClass.CONFIG, text) from error
    except (ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        text = f"the adapter {folder} does not fit the model: {_one_line(error)}"
        raise JobError(FailureClass.CONFIG, text) from error


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
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:MAX_ERROR_CHARACTERS]}..."
