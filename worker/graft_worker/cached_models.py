"""Which models need no fetching on this host: what the store's and the hub's caches hold whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from graft_worker.cache.items import Item, Kind, items_in
from graft_worker.cache.notes import read_note
from graft_worker.cache.uses import used_at

MAX_MODELS = 64
"""The newest; the list travels with every heartbeat."""
SHARD = re.compile(r"-\d+-of-(\d+)\.safetensors$")


def cached_models(cache: Path, hub: Path) -> tuple[str, ...]:
    """Digests of the store's models, then hub ids as `org/name` and `org/name@revision`."""
    found = [
        (used_at(cache, item, folder), list(_names(item, folder)))
        for item, folder in items_in(cache, hub)
        if item.kind is Kind.MODEL or (item.kind is Kind.HUB and is_at_hand(cache, item, folder))
    ]
    newest = sorted(found, key=lambda one: one[0], reverse=True)[:MAX_MODELS]
    return tuple(sorted({name for _, names in newest for name in names}))


def hub_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the hub's library keeps models, by the variables that it reads."""
    if named := environment.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    caches = Path(environment.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(environment.get("HF_HOME") or caches / "huggingface") / "hub").expanduser()


def is_at_hand(cache: Path, item: Item, snapshot: Path) -> bool:
    """Whether a snapshot of the hub needs no fetching, as far as can be seen; Graft knows how far it has
    come with those that it fetches itself.
    """
    note = read_note(cache, item)
    return has_weights(snapshot) and (note.is_whole or not note.is_ours)


def has_weights(snapshot: Path) -> bool:
    """Whether all weights are there, not only the config: each shard says of how many it is one."""
    weights = [path.name for path in snapshot.glob("model*.safetensors") if path.exists()]
    counts = [int(found[1]) for name in weights if (found := SHARD.search(name))]
    return bool(weights) and len(weights) >= max(counts, default=1)


def _names(item: Item, folder: Path) -> Iterator[str]:
    yield item.name
    if item.kind is Kind.HUB and _read(folder.parent.parent / "refs" / "main") == item.commit:
        yield item.repository


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
