"""Model folders with tokenizers of the well-known kinds, trained here on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.scheduler.rendering import chat_templates

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.",
    "You are a helpful assistant. What is the capital of France? It is Paris.",
    "select name, count(*) from people where age > 42 group by name;",
    "Größe und Maß: naïve café, élève. 日本語の文章です。Привет, мир! 😀👩‍👩‍👧 ok",
    'system user assistant model tool {"name": "weather", "arguments": {"city": "Rome"}}',
] * 3
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = QWEN.replace(r"\p{N}| ", r"\p{N}{1,3}| ")


@dataclass(frozen=True)
class Family:
    """What its folder holds."""

    make: Callable[[Sequence[str]], Tokenizer]
    special: tuple[str, ...]
    config: dict[str, Any]
    model: dict[str, Any]
    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""
    templates: str | dict[str, str] | None = None
    """In `chat_template.jinja`, or by name in the config."""
    files: dict[str, Any] = field(default_factory=dict)


def write(family: Family, folder: Path) -> Path:
    """The family's model in `folder`, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = family.make(family.special)
    tokenizer.add_special_tokens(list(family.special))
    tokenizer.add_tokens([AddedToken(one, normalized=False) for one in family.plain])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = dict(family.config)
    if isinstance(family.templates, dict):
        named = family.templates.items()
        config["chat_template"] = [{"name": name, "template": template} for name, template in named]
    elif family.templates is not None:
        (folder / "chat_template.jinja").write_text(family.templates)
    files = {"tokenizer_config.json": config, "config.json": family.model, **family.files}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def byte_level(pattern: str | None = None, bos: str | None = None) -> Callable[[Sequence[str]], Tokenizer]:
    """BPE over bytes; cut by `pattern`, or as GPT-2 does; with `bos` put before every text."""

    def make(special: Sequence[str]) -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        cut = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, last])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        tokenizer.add_special_tokens(list(special))
        if bos is not None:
            tokenizer.post_processor = _before(tokenizer, bos)
        return tokenizer

    return make


def composed(special: Sequence[str]) -> Tokenizer:
    """As Qwen's: bytes of composed characters."""
    tokenizer = byte_level(QWEN)(special)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def with_fallback(style: str) -> Callable[[Sequence[str]], Tokenizer]:
    """BPE over characters with `▁` for spaces and bytes for what is unknown, as SentencePiece makes it.

    The `style` is that of `gemma`, `mistral` (its second kind of file) or `llama2`.
    """

    def make(special: Sequence[str]) -> Tokenizer:
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trained.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=400, show_progress=False))
        found = json.loads(trained.to_str())["model"]
        first = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n"]
        words = dict.fromkeys([*first, *sorted(found["vocab"], key=found["vocab"].__getitem__)])
        vocabulary = {token: number for number, token in enumerate(words)}
        merges = [tuple(merge) for merge in found["merges"]]
        model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        tokenizer = Tokenizer(model)
        _spaces(tokenizer, style)
        tokenizer.add_special_tokens(list(special))
        tokenizer.post_processor = _before(tokenizer, "<bos>" if style == "gemma" else "<s>")
        return tokenizer

    return make


def unigram(special: Sequence[str]) -> Tokenizer:
    """As SentencePiece's unigram models: no bytes, unknown characters are lost; an end behind each text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=list(special), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(one, tokenizer.token_to_id(one)) for one in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return tokenizer


def _spaces(tokenizer: Tokenizer, style: str) -> None:
    tail = [] if style == "gemma" else [decoders.Strip(content=" ", left=1)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    if style == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    elif style == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _before(tokenizer: Tokenizer, bos: str) -> Any:
    ids = [(bos, tokenizer.token_to_id(bos))]
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=ids)


def token(text: str) -> dict[str, Any]:
    """As a config writes a token with its properties."""
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"__type": "AddedToken", "content": text, **flags}


QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
COHERE_SPECIAL = (
    *("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>"),
    *("<|END_OF_TURN_TOKEN|>", "<|USER|>", "<|BOT|>", "<|SYS|>"),
)
SENTENCEPIECE = ("<unk>", "<s>", "</s>")
SENTENCEPIECE_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

FAMILIES: dict[str, Family] = {
    "qwen2.5": Family(
        composed,
        QWEN_SPECIAL,
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
        {"model_type": "qwen2", "eos_token_id": 0},
        plain=("<tool_call>", "</tool_call>"),
        templates=chat_templates.CHATML,
    ),
    "qwen3": Family(
        composed,
        QWEN_SPECIAL,
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        {"model_type": "qwen3"},
        plain=("<tool_call>", "</tool_call>", "<think>", "</think>"),
        templates=chat_templates.THINKING,
    ),
    "llama3": Family(
        byte_level(LLAMA, bos="<|begin_of_text|>"),
        LLAMA3_SPECIAL,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token("<|begin_of_text|>"),
            "eos_token": "<|eot_id|>",
            "clean_up_tokenization_spaces": True,
        },
        {"model_type": "llama", "eos_token_id": 1},
        templates=chat_templates.LLAMA3,
        files={"generation_config.json": {"eos_token_id": [492, 493, 496]}},
    ),
    "gemma2": Family(
        with_fallback("gemma"),
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": True,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
        {"model_type": "gemma2", "eos_token_id": [1, 5]},
        templates=chat_templates.GEMMA,
    ),
    "mistral": Family(
        with_fallback("mistral"),
        (*SENTENCEPIECE, "[INST]", "[/INST]"),
        {"tokenizer_class": "LlamaTokenizer", "legacy": False, **SENTENCEPIECE_NAMES},
        {"model_type": "mistral"},
        templates=chat_templates.INST,
    ),
    "llama2": Family(
        with_fallback("llama2"),
        SENTENCEPIECE,
        {"tokenizer_class": "LlamaTokenizerFast", "legacy": True, **SENTENCEPIECE_NAMES},
        {"model_type": "llama"},
        templates=chat_templates.LLAMA2,
    ),
    "command-r": Family(
        byte_level(bos="<BOS_TOKEN>"),
        COHERE_SPECIAL,
        {"tokenizer_class": "CohereTokenizerFast", "boi_token": "<|SYS|>"},
        {"model_type": "cohere"},
        templates={"default": chat_templates.NAMED_DEFAULT, "tool_use": chat_templates.NAMED_TOOLS},
    ),
    "gpt-neox": Family(
        byte_level(bos="<|endoftext|>"),
        ("<|endoftext|>", "<|padding|>"),
        {"tokenizer_class": "GPTNeoXTokenizer"},
        {"model_type": "gpt_neox"},
    ),
    "gpt2": Family(
        byte_level(),
        ("<|endoftext|>",),
        {"add_prefix_space": True},
        {"model_type": "gpt2", "eos_token_id": 7},
    ),
    "unigram": Family(
        unigram,
        SENTENCEPIECE,
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"model_type": "granite"},
        files={
            "special_tokens_map.json": {
                "bos_token": {"content": "<s>", "lstrip": False, "normalized": False},
                "eos_token": "</s>",
                "pad_token": "<pad>",
            }
        },
    ),
}
