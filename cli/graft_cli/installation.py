"""`info`, `config` and `version`: what is installed here and which settings hold."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from graft_cli.amounts import size
from graft_cli.options import AsJson, DataDir, RedisUrl, StoreUrl
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.settings import Settings

DISTRIBUTION = "mlx-graft"
REPORTED = ("mlx", "mlx-lm", "transformers", "celery", "redis", "flower", "typer", "pydantic")
PROBE = ("-m", "graft_worker", "probe")
PROBE_SECONDS = 120.0
"""The first import of MLX on a cold disk is slow."""


def version(as_json: AsJson = False) -> None:
    """Print Graft's version."""
    found = installed(DISTRIBUTION) or "unknown"
    if as_json:
        out.json({"version": found})
    else:
        out.data(f"graft {found}")


def info(
    as_json: AsJson = False, data_dir: DataDir = None, redis_url: RedisUrl = None, store_url: StoreUrl = None
) -> None:
    """Print versions, device, memory and addresses."""
    facts = gather({"data_dir": data_dir, "redis_url": redis_url, "store_url": store_url})
    if as_json:
        out.json(facts)
        return
    device = facts["device"]
    out.pairs("Versions", [(name, found or "not installed") for name, found in facts["versions"].items()])
    out.pairs("Device", [("name", device["name"]), ("system", facts["system"]), *_memory(device)])
    out.pairs(
        "Settings",
        [(name, facts[name] or "none") for name in ("redis_url", "store_url", "data_dir", "profile")],
    )


def config(
    as_json: AsJson = False, data_dir: DataDir = None, redis_url: RedisUrl = None, store_url: StoreUrl = None
) -> None:
    """Print every setting and where it came from."""
    from graft_scheduler.settings import config_path, profile_in_use, resolve_settings

    flags = {"data_dir": data_dir, "redis_url": redis_url, "store_url": store_url}
    resolved = resolve_settings(flags).values()
    if as_json:
        shown = {
            one.name: {"value": one.shown or None, "source": one.source, "help": one.option.help}
            for one in resolved
        }
        out.json({"file": str(config_path()), "profile": profile_in_use(), "settings": shown})
        return
    rows = [(one.name, one.shown or "-", one.source) for one in resolved]
    out.table(("SETTING", "VALUE", "FROM"), rows, shrink=(1, 2))
    out.note(f"file: {config_path()}; profile: {profile_in_use() or 'none'}")


def _budget(settings: Settings, device: dict[str, Any]) -> int | None:
    """What a worker here would offer, as its owner's settings have it."""
    budget = device.get("budget_bytes")
    if budget is not None and settings.reserve_bytes is not None:
        budget = max(0, int(device["memory_bytes"]) - settings.reserve_bytes)
    limits = [one for one in (settings.memory_bytes, budget) if one is not None]
    return min(limits, default=None)


def gather(flags: dict[str, Any]) -> dict[str, Any]:
    """Everything that `info` prints, as plain values."""
    import platform

    from graft_scheduler.settings import hide_password, load_settings, profile_in_use

    settings = load_settings(flags)
    device = probe()
    versions = {"graft": installed(DISTRIBUTION), "python": platform.python_version()}
    return {
        "versions": versions | {name: installed(name) for name in REPORTED},
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "device": {
            "name": device.get("device", ""),
            "memory_bytes": device.get("memory_bytes"),
            "budget_bytes": _budget(settings, device),
            "error": device.get("error"),
        },
        "redis_url": hide_password(settings.redis_url),
        "store_url": hide_password(settings.store_url or ""),
        "data_dir": str(settings.data_dir),
        "profile": profile_in_use(),
    }


def installed(distribution: str) -> str | None:
    """The version of an installed package."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def probe() -> dict[str, Any]:
    """What a child that imports MLX finds; `error` says why it found nothing."""
    try:
        child = subprocess.run(
            [sys.executable, *PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
        found: dict[str, Any] = json.loads(child.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {"device": "unknown", "error": f"the probe of the device failed: {error}"}
    return found


def _memory(device: dict[str, Any]) -> list[tuple[str, str]]:
    def shown(count: int | None) -> str:
        return size(count) if count else ""

    return [
        ("memory", shown(device["memory_bytes"])),
        ("for jobs", shown(device["budget_bytes"])),
        ("problem", device["error"] or ""),
    ]
