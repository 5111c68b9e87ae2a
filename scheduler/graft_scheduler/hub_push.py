"""A folder on its way to the Hugging Face hub: its card, and the upload.

The token is the affair of the hub's own library: from its variable or its login, and nowhere else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_scheduler.basemodels import looks_like_path
from graft_scheduler.cards import LIBRARIES, README_FILE, RELATIONS, What, is_hub_id, public_name, read_card
from graft_scheduler.errors import InvalidInput, NotAllowed, NotFound, Unreachable

FENCE = "---"
TRACKING = "tracking"
"""The trackers' own files beside an adapter: they name machines and people."""
PLACES = {"adapter_config.json": ("model", "base_model_name_or_path"), "config.json": ("_name_or_path",)}
"""Where other libraries and older adapters may have written a folder of the machine they were made on."""
REFUSED = (401, 403)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is on the hub now."""

    repository: str
    url: str
    commit: str
    files: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is to be sent."""

    folder: Path
    kind: What
    base: str | None
    card: str
    files: tuple[str, ...]
    changed: Mapping[str, str]
    """Files that are sent otherwise than they lie there: without places of this machine."""


def pack(folder: Path) -> Parcel:
    """What to send of `folder`, with a card that says what it is; nothing is written.

    Raises:
        NotFound: there is no such folder.
        InvalidInput: it holds no adapter and no model.
        StoreError: what it says of itself cannot be read.
    """
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    files = tuple(
        sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and _is_sent(path.relative_to(folder))
        )
    )
    kind, base = _kind(folder, files)
    return Parcel(folder, kind, base, _card(folder, kind, base), files, _without_places(folder, files))


def push(parcel: Parcel, repository: str, *, private: bool, message: str | None = None) -> Pushed:
    """Send it, in one commit; a repository that is not there is made.

    Raises:
        InvalidInput: the hub does not take such a name.
        NotAllowed: there is no token, or it may not write there.
        Unreachable: the hub does not answer, or fails.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise NotFound("this needs huggingface_hub; `pip install huggingface_hub` installs it") from error
    api = hub.HfApi()
    with _in_words(hub, repository):
        if hub.get_token() is None:
            raise NotAllowed("there is no token for the hub; set HF_TOKEN, or log in with `hf auth login`")
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as aside:
            changed = {**parcel.changed, README_FILE: parcel.card}
            for name, text in changed.items():
                (Path(aside) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(aside) / name).write_text(text)
            operations = [
                hub.CommitOperationAdd(name, str((Path(aside) if name in changed else parcel.folder) / name))
                for name in sorted({*parcel.files, README_FILE})
            ]
            commit = api.create_commit(
                repository,
                operations,
                commit_message=message or f"Upload a model made with Graft ({parcel.kind})",
            )
    return Pushed(repository, str(commit.repo_url), str(commit.oid), len(operations))


@contextmanager
def _in_words(hub: Any, repository: str) -> Iterator[None]:
    errors = hub.errors
    try:
        yield
    except errors.HFValidationError as error:
        raise InvalidInput(f"`--repo` is {repository!r}; it must be `org/name` or `name`") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in REFUSED:
            why = (
                "the token is not valid"
                if status == REFUSED[0]
                else f"the token may not write to {repository}"
            )
            text = (
                f"the hub refuses: {why}; a token with the right to write is made on the hub's settings page"
            )
            raise NotAllowed(text) from error
        line = str(error).strip().splitlines()[0]
        if status is not None and 400 <= status < 500:
            raise InvalidInput(f"the hub refuses {repository}: {line}") from error
        raise Unreachable(f"the hub does not take it now: {line}") from error
    except (InvalidInput, NotAllowed, OSError) as error:
        if isinstance(error, OSError):
            raise Unreachable(f"the hub does not answer: {error}") from error
        raise
    except Exception as error:  # what its HTTP library raises changes with the version
        if type(error).__module__.partition(".")[0] in {"httpx", "httpcore", "requests", "httpx2"}:
            raise Unreachable(f"the hub does not answer: {error}") from error
        raise


def _is_sent(name: Path) -> bool:
    return name.parts[0] != TRACKING and not any(part.startswith(".") for part in name.parts)


def _kind(folder: Path, files: tuple[str, ...]) -> tuple[What, str | None]:
    """What the folder holds, and which base it comes from, if it says so by a name of the hub."""
    card = read_card(folder)
    if card is not None:
        return card.what, card.base.name if is_hub_id(card.base.name) else None
    adapter = _read(folder / "adapter_config.json")
    if "adapter_model.safetensors" in files:
        return "peft", _hub_id(adapter.get("base_model_name_or_path"))
    if "adapters.safetensors" in files:
        return "adapter", _hub_id(adapter.get("model"))
    if any(name.endswith(".gguf") for name in files):
        return "gguf", None
    config = _read(folder / "config.json")
    if not config or not any(name.endswith(".safetensors") for name in files):
        raise InvalidInput(f"{folder} holds neither an adapter nor a model")
    return ("quantised" if config.get("quantization") else "fused"), None


def _hub_id(source: object) -> str | None:
    is_one = isinstance(source, str) and is_hub_id(source) and not looks_like_path(source)
    return str(source) if is_one else None


def _without_places(folder: Path, files: tuple[str, ...]) -> dict[str, str]:
    """The configs that name a folder of this machine, with its name alone."""
    changed = {}
    for file in files:
        keys = PLACES.get(Path(file).name, ())
        found = _read(folder / file) if keys else {}
        places = {key: found[key] for key in keys if isinstance(found.get(key), str)}
        names = {key: public_name(place, is_local=looks_like_path(place)) for key, place in places.items()}
        if names != places:
            changed[file] = json.dumps({**found, **names}, indent=2) + "\n"
    return changed


def _card(folder: Path, kind: What, base: str | None) -> str:
    """The card that lies in the folder, with what is missing in its head; or a short one."""
    path = folder / README_FILE
    head, body = _split(path.read_text(encoding="utf-8")) if path.is_file() else ({}, _body(kind, base))
    known: dict[str, Any] = {
        "library_name": LIBRARIES[kind],
        "pipeline_tag": "text-generation",
        "tags": ["mlx", "graft"] if kind != "gguf" else ["gguf", "graft"],
        "base_model_relation": RELATIONS[kind],
    }
    if base is not None:
        known["base_model"] = base
    if isinstance(named := head.get("base_model"), str) and not is_hub_id(named):
        head.pop("base_model")  # a place on somebody's machine, or the name of another model
    return _joined({**known, **head}, body)


def _split(text: str) -> tuple[dict[str, Any], str]:
    import yaml

    if not text.startswith(f"{FENCE}\n"):
        return {}, text
    head, found, body = text.removeprefix(f"{FENCE}\n").partition(f"\n{FENCE}\n")
    if not found:
        return {}, text
    try:
        parsed = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise InvalidInput(f"the head of the card is not YAML: {error}") from error
    return (parsed if isinstance(parsed, dict) else {}), body


def _joined(head: Mapping[str, Any], body: str) -> str:
    import yaml

    return f"{FENCE}\n{yaml.safe_dump(dict(head), sort_keys=True, allow_unicode=True)}{FENCE}\n{body}"


def _body(kind: What, base: str | None) -> str:
    bodies: dict[What, str] = {
        "adapter": "A LoRA adapter for mlx-lm",
        "checkpoint": "A LoRA adapter for mlx-lm",
        "peft": "A LoRA adapter for PEFT",
        "fused": "A fine-tuned model, its adapter fused into its weights",
        "quantised": "A fine-tuned model, fused and then quantised, for mlx-lm",
        "gguf": "A fine-tuned model for llama.cpp",
    }
    of = f" of {base}" if base is not None else ""
    return f"\n{bodies[kind]}{of}. Made with Graft.\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
