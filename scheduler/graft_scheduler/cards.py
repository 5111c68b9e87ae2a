"""What is said of an adapter, or of what was made of one, to whoever finds it: of what, how, where, how well.

A card lies in a folder twice: as `graft.json`, which programs read, and as `README.md`, a
model card of the Hugging Face hub. Neither names a folder of the machine it was made on, nor a person.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graft_scheduler.errors import StoreError
from graft_scheduler.licences import UNKNOWN
from graft_scheduler.states import Digest

CARD_FILE = "graft.json"
README_FILE = "README.md"
WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
ADAPTER_FILES = frozenset({WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, README_FILE})
"""What of a checkpoint is an adapter; the rest is for going on from it."""
What = Literal["adapter", "checkpoint", "fused", "quantised", "gguf", "peft"]
RELATIONS: dict[What, str] = {
    "adapter": "adapter",
    "checkpoint": "adapter",
    "peft": "adapter",
    "fused": "finetune",
    "quantised": "quantized",
    "gguf": "quantized",
}
"""The hub's words for how a model comes from its base."""
LIBRARIES: dict[What, str] = {
    "adapter": "mlx",
    "checkpoint": "mlx",
    "peft": "peft",
    "fused": "transformers",
    "quantised": "mlx",
    "gguf": "gguf",
}
USES: dict[What, str] = {
    "adapter": "`mlx_lm.load(BASE, adapter_path=FOLDER)` loads it.",
    "checkpoint": "`mlx_lm.load(BASE, adapter_path=FOLDER)` loads it.",
    "peft": "`peft.PeftModel.from_pretrained(BASE, FOLDER)` loads it.",
    "fused": "`mlx_lm.load(FOLDER)` loads it.",
    "quantised": "`mlx_lm.load(FOLDER)` loads it.",
    "gguf": "llama.cpp loads it.",
}
PRIVATE = frozenset({"submitter", "labels", "name", "tracking"})
"""Settings of a job that have no part in the result."""


class Part(BaseModel):
    """Base of a card's parts; a later version may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class BaseCard(Part):
    """The model that was adapted."""

    name: str
    """A hub id, or the name of a folder."""
    revision: str | None = None
    """The commit of a model of the hub, where it is known."""
    digest: Digest | None = None
    """Of a folder, in the store."""
    fingerprint: str | None = None
    """Of a model that no store knows: its config, and the sizes and ends of its weight files."""
    licence: str = UNKNOWN


class DataCard(Part):
    """What it learned from."""

    name: str
    version: str | None = None
    digest: Digest | None = None
    """Of its files, as the store names them together."""
    format: str | None = None
    rows: dict[str, dict[str, int]] = Field(default_factory=dict)
    """What became of the rows that train and of those that validate."""


class Figures(Part):
    """How it does; losses are of the validation rows, in nats."""

    loss: float | None = None
    """Of this very state, where it was evaluated."""
    perplexity: float | None = None
    initial_loss: float | None = None
    final_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    training_seconds: float | None = None
    trainable_parameters: int | None = None


class Check(Part):
    """How near what was made of an adapter is to the adapted base; losses are in nats."""

    origin: str
    """What they were compared on."""
    tokens: int
    kept: float | None = None
    """The share of the tuning that is left; absent where there was next to none."""
    base_loss: float
    adapted_loss: float
    fused_loss: float
    quantized_loss: float | None = None


class Card(Part):
    """An adapter, a checkpoint taken for one, or what was made of either.

    Of an adapter that was not trained by Graft little is known; what is not is empty.
    """

    version: Literal[1] = 1
    what: What
    job: str = ""
    step: int | None = None
    created_at: str
    """In UTC, as ISO 8601 has it."""
    base: BaseCard
    data: DataCard = DataCard(name="")
    method: str
    seed: int | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    """Every setting of the job that has a part in the result."""
    versions: dict[str, str] = Field(default_factory=dict)
    device: str = ""
    system: str = ""
    figures: Figures = Figures()
    form: str = ""
    """What the weights of a model are, in words."""
    check: Check | None = None


def write_card(folder: Path, card: Card) -> None:
    """Into a folder that exists."""
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n")
    (folder / README_FILE).write_text(readme(card))


def derived_card(card: Card | None, what: What, base: BaseCard, method: str, **changes: Any) -> Card:
    """Of what was made now of the adapter with `card`, if it has one; `base` is what it belongs to."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known: dict[str, Any] = {"method": method} if card is None else dict(card)
    return Card.model_validate({**known, "what": what, "base": base, "created_at": now, **changes})


def parse_card(data: bytes, place: str) -> Card:
    """The card that `write_card` wrote.

    Raises:
        StoreError: it is none of a version that is known here.
    """
    try:
        return Card.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise StoreError(f"the card of {place} cannot be read ({where}: {problem['msg']})") from error


def read_card(folder: Path) -> Card | None:
    """The card in a folder, if there is one.

    Raises:
        StoreError: as `parse_card`.
    """
    path = folder / CARD_FILE
    return parse_card(path.read_bytes(), str(folder)) if path.is_file() else None


def readme(card: Card) -> str:
    """The card as a model card of the hub."""
    import yaml

    head = yaml.safe_dump(front_matter(card), sort_keys=False, allow_unicode=True)
    config = json.dumps(card.config, indent=2, ensure_ascii=False)
    parts = [
        f"---\n{head}---\n",
        f"# {_title(card)}\n",
        f"Made with Graft on {card.created_at[:10]}. {USES[card.what]}\n",
        _table([(name, value) for rows in card_rows(card).values() for name, value in rows]),
    ]
    settings = f"## Settings\n\n```json\n{config}\n```\n"
    return "\n".join([*parts, settings] if card.config else parts)


def _title(card: Card) -> str:
    fused = f"{card.base.name} with a {card.method} adapter fused in"
    if card.method == "full":
        fused = f"{card.base.name}, fine-tuned"
    adapter = f"{card.method} adapter for {card.base.name}"
    titles: dict[What, str] = {
        "adapter": adapter,
        "checkpoint": f"{card.method} checkpoint of step {card.step} for {card.base.name}",
        "peft": f"{adapter}, in PEFT's form",
        "fused": fused,
        "quantised": f"{fused}, quantised",
        "gguf": f"{fused}, for llama.cpp",
    }
    return titles[card.what]


def front_matter(card: Card) -> dict[str, Any]:
    """What the hub reads of a model card."""
    is_adapter = RELATIONS[card.what] == "adapter" and card.method != "full"
    form = card.what if card.what in {"peft", "gguf"} else "mlx"
    tags = [form, "graft", card.method, "adapter" if is_adapter else "fine-tuned"]
    # Of a folder the name means another model there, if any.
    base = {"base_model": card.base.name} if is_hub_id(card.base.name) else {}
    head: dict[str, Any] = {
        **base,
        "base_model_relation": RELATIONS[card.what],
        "library_name": LIBRARIES[card.what],
        "pipeline_tag": "text-generation",
        "license": card.base.licence,
        "tags": list(dict.fromkeys(tags)),
    }
    return head | ({"datasets": [card.data.name]} if is_hub_id(card.data.name) else {})


def card_rows(card: Card) -> dict[str, list[tuple[str, str]]]:
    """Names and values for a person, in titled blocks; values that are not known are left out."""
    base, data, figures = card.base, card.data, card.figures
    rows: dict[str, list[tuple[str, str | None]]] = {
        "Base": [
            ("base", base.name),
            ("revision", base.revision),
            ("base digest", base.digest),
            ("base fingerprint", base.fingerprint if base.digest is None else None),
            ("licence of the base", base.licence),
        ],
        "Data": [
            ("data", data.name if data.version is None else f"{data.name}@{data.version}"),
            ("data digest", data.digest),
            ("format", data.format),
            ("rows", ", ".join(f"{counts.get('used', 0)} {name}" for name, counts in data.rows.items())),
        ],
        "Training": [
            ("job", card.job),
            ("method", card.method),
            ("step", _number(card.step, "")),
            ("seed", _number(card.seed, "")),
            ("tokens", _number(figures.tokens, ",")),
            ("tokens a second", _number(figures.tokens_per_second, ",.0f")),
            ("seconds", _number(figures.training_seconds, ",.1f")),
            ("peak memory", None if figures.peak_memory_bytes is None else _gib(figures.peak_memory_bytes)),
            ("trainable parameters", _number(figures.trainable_parameters, ",")),
        ],
        "Result": [
            ("validation loss", _number(figures.loss, ".4f")),
            ("perplexity", _number(figures.perplexity, ".4g")),
            ("loss before training", _number(figures.initial_loss, ".4f")),
            ("loss at the end", _number(figures.final_loss, ".4f")),
            ("best loss", _best(figures)),
        ],
        "Check": _check_rows(card.check),
        "Made": [
            ("date", card.created_at),
            ("weights", card.form),
            ("device", card.device),
            ("system", card.system),
            ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
        ],
    }
    known = {title: [(name, value) for name, value in pairs if value] for title, pairs in rows.items()}
    return {title: pairs for title, pairs in known.items() if pairs}


def public_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A job's settings without people, places and secrets: of a path its last part, of a URL no password."""
    return {name: _public(value) for name, value in spec.items() if name not in PRIVATE}


def public_name(source: str, *, is_local: bool) -> str:
    """How a source is called elsewhere: a hub id as it is, a file or folder by its name alone."""
    if is_local or _is_place(source) or not is_hub_id(source):
        return re.split(r"[/\\]", source.rstrip("/\\"))[-1] or "unnamed"
    return source


def is_hub_id(name: str) -> bool:
    """Whether it is written as the hub names things."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def perplexity_of(loss: float | None) -> float | None:
    """Of a loss in nats; absent where it is too large for a number."""
    return None if loss is None or loss > 700 else math.exp(loss)


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _public(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    if not isinstance(value, str):
        return value
    if "://" in value and not value.startswith("file:"):
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
    return public_name(value, is_local=False)


def _is_place(text: str) -> bool:
    return text.startswith(("/", "~", "./", "../", "file:")) or re.match(r"[A-Za-z]:\\", text) is not None


def _best(figures: Figures) -> str | None:
    if figures.best_loss is None:
        return None
    return f"{figures.best_loss:.4f} after step {figures.best_step}"


def _check_rows(check: Check | None) -> list[tuple[str, str | None]]:
    if check is None:
        return []
    return [
        ("compared on", f"{check.tokens} tokens of {check.origin}"),
        ("kept of the tuning", _number(check.kept, ".1%")),
        ("loss of the base there", _number(check.base_loss, ".4f")),
        ("loss with the adapter", _number(check.adapted_loss, ".4f")),
        ("loss when fused", _number(check.fused_loss, ".4f")),
        ("loss when quantised", _number(check.quantized_loss, ".4f")),
    ]


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GB"


def _table(rows: list[tuple[str, str]]) -> str:
    lines = ["|  |  |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value.replace('|', '/')} |" for name, value in rows)]) + "\n"
