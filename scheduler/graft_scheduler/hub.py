"""A base model on the Hugging Face hub, described before anything large is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from graft_scheduler.basemodels import (
    CONFIG_FILE,
    DTYPES,
    TEMPLATE_FILES,
    WEIGHTS_PATTERN,
    BaseModel,
    WeightFacts,
    describe,
    read_json,
    weigh,
)
from graft_scheduler.errors import InvalidInput, NotAllowed
from graft_scheduler.tensors import Tensor

MODEL_PATTERNS = (
    "*.json",
    "model*.safetensors",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)
"""The files of a repository that mlx-lm loads, by its own patterns: a snapshot that has them all is whole,
whoever brought it.
"""
LICENCE_PATTERNS = ("README.md", "LICENSE*")
"""Those that tell its licence: fetched as well, and never needed. No others are fetched."""
HUB_TIMEOUT_SECONDS = 5.0
"""A submit waits this long for a hub that does not answer, and goes on without it."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub at one commit."""

    commit: str
    base: BaseModel


def fetch_hub_config(repo_id: str, revision: str | None = None) -> HubModel | None:
    """The model's facts from its config and file sizes; `None` when the hub cannot be asked from here.

    Raises:
        InvalidInput: the hub has no such model or revision, or it is none that MLX can load.
        NotAllowed: the model is gated, and this user has no access.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        return None
    try:
        info = hub.HfApi().model_info(
            repo_id, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_SECONDS
        )
        path = hub.hf_hub_download(repo_id, CONFIG_FILE, revision=info.sha, etag_timeout=HUB_TIMEOUT_SECONDS)
    except errors.GatedRepoError as error:  # a RepositoryNotFoundError too: first
        raise NotAllowed(
            f"{repo_id} is gated; accept its terms on https://huggingface.co/{repo_id} and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InvalidInput(
            f"the hub has no model {repo_id!r}, or it is private and needs HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InvalidInput(f"{repo_id} has no revision {revision!r}; leave it out for the newest") from error
    except errors.RemoteEntryNotFoundError as error:
        raise InvalidInput(f"{repo_id} has no {CONFIG_FILE}; it is no model that MLX can load") from error
    except errors.HFValidationError as error:
        raise InvalidInput(f"{repo_id!r} is not a hub id; it must be `org/name`") from error
    except Exception:  # offline, proxies, time-outs: the HTTP library and its errors change with the version
        return None
    tensors = _fetch_headers(repo_id, str(info.sha), hub)
    return HubModel(str(info.sha), _describe(repo_id, info, Path(path), tensors))


def _fetch_headers(repo_id: str, commit: str, hub: Any) -> dict[str, Tensor]:
    """What the weights hold, from the first kilobytes of their files; nothing where they cannot be had."""
    try:
        found = hub.HfApi().get_safetensors_metadata(repo_id, revision=commit, timeout=HUB_TIMEOUT_SECONDS)
        return {
            name: _tensor(one)
            for file, header in found.files_metadata.items()
            if fnmatchcase(file, WEIGHTS_PATTERN)
            for name, one in header.tensors.items()
        }
    except Exception:  # the estimate does without, only less exactly
        return {}


def _tensor(found: Any) -> Tensor:
    start, end = found.data_offsets
    return Tensor(str(found.dtype), tuple(int(size) for size in found.shape), int(end) - int(start))


def _describe(repo_id: str, info: Any, config_path: Path, tensors: dict[str, Tensor]) -> BaseModel:
    config = read_json(config_path, "")
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    weight_bytes = sum(
        size for name, size in sizes.items() if "/" not in name and name.endswith(".safetensors")
    )
    if not weight_bytes:
        raise InvalidInput(f"{repo_id} has no safetensors weights; look for it under mlx-community/")
    tokenizer = (info.config or {}).get("tokenizer_config") or {}
    has_template = bool(TEMPLATE_FILES & sizes.keys()) or bool(tokenizer.get("chat_template"))
    weights = weigh(tensors, config) if tensors else _weigh(info, config, weight_bytes)
    return describe(config, weights, set(sizes), has_template, repo_id)


def _weigh(info: Any, config: dict[str, Any], weight_bytes: int) -> WeightFacts:
    counts: dict[str, int] = dict(info.safetensors.parameters) if info.safetensors else {}
    floats = {DTYPES[name]: count for name, count in counts.items() if name in DTYPES}
    dtype = max(floats, key=lambda name: floats[name]) if floats else "bfloat16"
    bits = (config.get("quantization") or {}).get("bits")
    if bits and "U32" in counts:
        return WeightFacts(weight_bytes, counts["U32"] * 32 // bits, dtype)
    return WeightFacts(weight_bytes, sum(counts.values()) or weight_bytes // 2, dtype)
