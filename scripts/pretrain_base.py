"""Make the small base model that `graft demo` ships, from text that comes with CPython.

Corpus (CPython's reference topics and the docstrings of its standard library), tokenizer, a
Llama of 1.6 million parameters, files. The model learns English sentences and to copy from
what it has just read; it does not learn to answer. Nothing is downloaded.

    python scripts/pretrain_base.py --out cli/graft_cli/samples/base

The shipped model took under three minutes on an H100; two CPU cores need hours. To train on a
machine with another Python, take the text along: `--write-corpus FILE` here, `--corpus FILE` there.
On a CPU under Linux preload OpenBLAS (`LD_PRELOAD=.../openblas-pthread/libopenblas.so.0`): MLX's
CPU build then multiplies matrices some twenty times faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx import optimizers as optim
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pretrain_corpus import (
    PINNED_PYTHON,
    PINNED_SHA256,
    Document,
    collect_documents,
    corpus_sha256,
    read_corpus,
    write_corpus,
)

PUNCTUATION = ".,;:!?()\"'"

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = [PAD, BEGIN, END, SYSTEM, USER, ASSISTANT]

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

WRITER_SHARES = [15, 25, 25, 35]
"""How often a document is written as prose, as a conversation, with echoes, with notes."""
SCRAMBLED_SHARE = 0.5
"""Of the echoes and notes: words in any order, in lines of so many, some of them made up."""
SCRAMBLED_WORDS = 10
BLENDED_SHARE = 0.3

VALIDATION_SHARE = 50
"""One document in this many is kept out of training."""
REPORT_EVERY_STEPS = 50


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the model. Its bf16 weights take 3.3 MB."""

    vocab_size: int = 1536
    hidden_size: int = 192
    num_hidden_layers: int = 3
    intermediate_size: int = 512
    num_attention_heads: int = 3
    row_tokens: int = 128


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast to train."""

    steps: int
    seed: int
    batch_size: int = 32
    peak_learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    gradient_norm: float = 1.0


def main() -> None:
    arguments = parse_arguments()
    documents = read_corpus(arguments.corpus) if arguments.corpus else collect_documents()
    check_corpus(documents, any_corpus=arguments.any_corpus)
    if arguments.write_corpus:
        write_corpus(documents, arguments.write_corpus)
        return
    training, validation = split_documents(documents)

    shape = Shape()
    tokenizer = train_tokenizer(documents, shape)
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed)
    model = pretrain(training, validation, tokenizer, shape, recipe)

    save(model, tokenizer, shape, arguments.out)
    (arguments.out / "README.md").write_text(model_card(shape, documents), encoding="utf-8")
    report(f"wrote {arguments.out}: {folder_bytes(arguments.out):,} bytes")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("cli/graft_cli/samples/base"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write-corpus", type=Path, help="write the text to this file and stop")
    parser.add_argument("--corpus", type=Path, help="read the text from a file so written")
    parser.add_argument(
        "--any-corpus", action="store_true", help="train on the text of another Python version"
    )
    return parser.parse_args()


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# The corpus


def check_corpus(documents: Sequence[Document], *, any_corpus: bool) -> None:
    """Raises SystemExit if this is not the text the shipped model was made from."""
    found = corpus_sha256(documents)
    characters = sum(len(sentence) for document in documents for sentence in document.sentences)
    report(f"corpus: {len(documents):,} documents, {characters:,} characters, sha256 {found}")
    if any_corpus or found == PINNED_SHA256:
        return
    version = sys.version.split()[0]
    raise SystemExit(
        f"the corpus of Python {version} has sha256 {found}; the shipped model was made with"
        f" Python {PINNED_PYTHON}, sha256 {PINNED_SHA256}. Use that version or --any-corpus"
    )


def split_documents(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Training and validation documents."""
    validation = list(documents[::VALIDATION_SHARE])
    training = [d for i, d in enumerate(documents) if i % VALIDATION_SHARE]
    return training, validation


# The tokenizer


def train_tokenizer(documents: Sequence[Document], shape: Shape) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((" ".join(d.sentences) for d in documents), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it has no types
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=shape.row_tokens,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
    )


# Rows


def rows(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, shape: Shape, seed: int
) -> Iterator[list[int]]:
    """Rows of one token more than the model reads, without end.

    In every pass each document is written in another way, so that the model sees its text as
    prose, as a conversation, and repeated.
    """
    rng = random.Random(seed)
    width = shape.row_tokens + 1
    stream: list[int] = []
    while True:
        for document in rng.sample(documents, len(documents)):
            text = write_document(document, rng)
            stream += tokenizer.backend_tokenizer.encode(text).ids
            while len(stream) >= width:
                yield stream[:width]
                stream = stream[width - 1 :]


def write_document(document: Document, rng: random.Random) -> str:
    """The document as the model reads it this time."""
    [write] = rng.choices([write_prose, write_chat, write_echo, write_notes], WRITER_SHARES)
    if write in (write_echo, write_notes) and rng.random() < SCRAMBLED_SHARE:
        document = scramble(document, rng)
    return BEGIN + write(document, rng) + END


def write_prose(document: Document, rng: random.Random) -> str:
    return " ".join(document.sentences)


def write_chat(document: Document, rng: random.Random) -> str:
    """A conversation in which the assistant goes on with the text the user has begun."""
    sentences = document.sentences
    if len(sentences) < 2:
        return write_prose(document, rng)
    turns = []
    while len(sentences) >= 2:
        length = rng.randint(1, 3)
        turns.append(USER + sentences[0] + ASSISTANT + " ".join(sentences[1 : 1 + length]))
        sentences = sentences[1 + length :]
    system = SYSTEM + document.title if rng.random() < 0.2 else ""
    return system + END.join(turns)


def scramble(document: Document, rng: random.Random) -> Document:
    """The same words in another order, some made up of two: to be copied, not known by heart."""
    words = " ".join(document.sentences).split()
    rng.shuffle(words)
    words = [blend(w, rng.choice(words)) if rng.random() < BLENDED_SHARE else w for w in words]
    starts = range(0, len(words), SCRAMBLED_WORDS)
    return Document(
        document.title, tuple(" ".join(words[start : start + SCRAMBLED_WORDS]) for start in starts)
    )


def blend(first: str, second: str) -> str:
    """A word that no one has read before: the head of one and the tail of the other."""
    return first[: (len(first) + 1) // 2] + second[len(second) // 2 :].lower()


def write_echo(document: Document, rng: random.Random) -> str:
    """Sentences, with pieces of the last two written again after each."""
    parts: list[str] = []
    for i, sentence in enumerate(document.sentences):
        words = document.sentences[max(0, i - rng.randint(0, 1))].split()
        start = rng.randrange(max(1, len(words) - 3))
        parts += [sentence, " ".join(words[start : start + rng.randint(4, 16)])]
    return "\n".join(parts)


def write_notes(document: Document, rng: random.Random) -> str:
    """Sentences, with a few of their phrases after each."""
    return "\n".join(f"{s}{note_phrases(s, rng)}" for s in document.sentences)


def note_phrases(sentence: str, rng: random.Random) -> str:
    """One to three phrases of one to three words, in the sentence's order."""
    words = sentence.split()
    starts = sorted(rng.sample(range(len(words)), min(len(words), rng.randint(1, 3))))
    phrases = [" ".join(words[start : start + rng.randint(1, 3)]) for start in starts]
    mark = rng.choice([":", ",", ";", " |", " -", " /", " ->", " ="])
    return "".join(f"{mark} {phrase.strip(PUNCTUATION)}" for phrase in phrases)


def batches(source: Iterator[list[int]], batch_size: int) -> Iterator[mx.array]:
    while block := list(itertools.islice(source, batch_size)):
        yield mx.array(np.array(block, dtype=np.int32))


# Training


def pretrain(
    training: Sequence[Document],
    validation: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    shape: Shape,
    recipe: Recipe,
) -> Model:
    """Train from random weights, in fp32."""
    mx.random.seed(recipe.seed)
    model = Model(model_arguments(shape))
    report(f"model: {sum(array.size for array in named_arrays(model).values()):,} parameters")

    train_batches = batches(rows(training, tokenizer, shape, recipe.seed), recipe.batch_size)
    run_steps(model, train_batches, recipe)

    held_out = list(itertools.islice(batches(rows(validation, tokenizer, shape, 1), 8), 8))
    loss = sum(float(mean_loss(model, batch)) for batch in held_out) / len(held_out)
    report(f"validation loss {loss:.3f}, perplexity {math.exp(loss):.1f}")
    return model


def model_arguments(shape: Shape) -> ModelArgs:
    sizes = asdict(shape)
    row_tokens = sizes.pop("row_tokens")
    return ModelArgs(
        model_type="llama",
        rms_norm_eps=1e-5,
        max_position_embeddings=row_tokens,
        tie_word_embeddings=True,
        **sizes,
    )


def run_steps(model: Model, source: Iterator[mx.array], recipe: Recipe) -> None:
    optimizer = optim.AdamW(
        learning_rate=learning_rates(recipe), betas=[0.9, 0.95], weight_decay=recipe.weight_decay
    )
    loss_and_gradients = value_and_grad(model, mean_loss)
    started, losses = time.monotonic(), []
    for step, batch in enumerate(itertools.islice(source, recipe.steps), start=1):
        loss, gradients = loss_and_gradients(model, batch)
        gradients = clip(gradients, recipe.gradient_norm)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(float(loss))
        if step % REPORT_EVERY_STEPS == 0 or step == recipe.steps:
            recent = sum(losses[-REPORT_EVERY_STEPS:]) / len(losses[-REPORT_EVERY_STEPS:])
            report(f"step {step}: loss {recent:.3f}, {time.monotonic() - started:.0f} s")


def clip(gradients: Any, norm: float) -> Any:
    clipped, _ = optim.clip_grad_norm(gradients, norm)
    return clipped


def learning_rates(recipe: Recipe) -> Any:
    """Linear warm-up, then a cosine down to a twentieth."""
    peak, warmup = recipe.peak_learning_rate, recipe.warmup_steps
    decay_steps = max(1, recipe.steps - warmup)
    return optim.join_schedules(
        [
            optim.linear_schedule(0.0, peak, warmup),
            optim.cosine_decay(peak, decay_steps, peak / 20),
        ],
        [warmup],
    )


def mean_loss(model: Model, batch: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(batch[:, :-1]), batch[:, 1:], reduction="mean")


# Files


def save(model: Model, tokenizer: PreTrainedTokenizerFast, shape: Shape, folder: Path) -> None:
    """Write bf16 weights, config and tokenizer (its chat template in its config)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: array.astype(mx.bfloat16) for name, array in named_arrays(model).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    write_config(tokenizer, shape, folder)
    tokenizer.save_pretrained(str(folder), save_jinja_files=False)


def named_arrays(model: Model) -> dict[str, mx.array]:
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())))


def write_config(tokenizer: PreTrainedTokenizerFast, shape: Shape, folder: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "torch_dtype": "bfloat16",
        **{k: v for k, v in asdict(model_arguments(shape)).items() if v is not None},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def model_card(shape: Shape, documents: Sequence[Document]) -> str:
    digest = corpus_sha256(documents)
    return MODEL_CARD.format(
        python=f"CPython {PINNED_PYTHON}" if digest == PINNED_SHA256 else "some CPython",
        digest=digest,
        layers=shape.num_hidden_layers,
        width=shape.hidden_size,
        vocabulary=shape.vocab_size,
        row_tokens=shape.row_tokens,
    )


MODEL_CARD = """\
---
license: other
license_name: psf-2.0
language: en
library_name: mlx
---

# The base model of `graft demo`

A Llama with {layers} blocks of width {width}, a vocabulary of {vocabulary} and bf16 weights, made by
`scripts/pretrain_base.py` so that `graft demo` needs no hub and no network.

- **It is** a model that has read the English in CPython's own documentation, and has learned to
  copy from what stands before it. That makes it a fair thing to put an adapter on.
- **It is not** an assistant. It continues text; it does not answer, and knows nothing worth asking.
- **Text**: the reference topics (`pydoc_data.topics`) and the standard library's docstrings of
  {python}, 1.4 million characters (SHA-256 `{digest}`).
  It read them as prose, as conversations whose assistant continues the user's text, and, so that
  it learns to copy, with phrases and pieces written again, half of that with the words shuffled
  and some made up. No row of the demo's data was in it.
- **Length**: trained on rows of {row_tokens} tokens.
- **Licence**: the text is under the Python Software Foundation License Version 2; the weights and
  the tokenizer are derived from it. Copyright (c) 2001 Python Software Foundation; All Rights Reserved.
"""


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    main()
