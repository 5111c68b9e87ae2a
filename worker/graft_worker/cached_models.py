"""Which models need no fetching on this host: what the store's and the hub's caches hold whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

MAX_MODELS = 64
"""The newest; the list travels with every heartbeat."""
DIGEST = re.compile(r"[0-9a-f]{64}")
SHARD = re.compile(r"-\d+-of-(\d+)\.safetensors$")
HUB_PREFIX = "models--"


def cached_models(cache: Path, hub: Path) -> tuple[str, ...]:
    """Digests of the store's models, then hub ids as `org/name` and `org/name@revision`."""
    found = [*_of_store(cache / "models"), *_of_hub(hub)]
    newest = sorted(found, key=lambda one: one[0], reverse=True)[:MAX_MODELS]
    return tuple(sorted({name for _, names in newest for name in names}))


def hub_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the hub's library keeps models, by the variables that it reads."""
    if named := environment.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    caches = Path(environment.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(environment.get("HF_HOME") or caches / "huggingface") / "hub").expanduser()


def _of_store(folder: Path) -> Iterator[tuple[float, list[str]]]:
    for model in _folders(folder):
        if DIGEST.fullmatch(model.name):
            yield _time(model), [f"sha256:{model.name}"]


def _of_hub(hub: Path) -> Iterator[tuple[float, list[str]]]:
    for repository in _folders(hub):
        if not repository.name.startswith(HUB_PREFIX):
            continue
        name = repository.name.removeprefix(HUB_PREFIX).replace("--", "/", 1)
        main = _read(repository / "refs" / "main")
        for snapshot in _folders(repository / "snapshots"):
            if _is_whole(snapshot):
                names = [f"{name}@{snapshot.name}"]
                yield _time(snapshot), [name, *names] if snapshot.name == main else names


def _is_whole(snapshot: Path) -> bool:
    """Whether all weights are there, not only the config: each shard says of how many it is one."""
    weights = [path.name for path in snapshot.glob("model*.safetensors") if path.exists()]
    counts = [int(found[1]) for name in weights if (found := SHARD.search(name))]
    return bool(weights) and len(weights) >= max(counts, default=1)


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
