"""The checks of `graft validate`: each looks at one thing and says what to do when it is not right."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from graft_cli.amounts import size

if TYPE_CHECKING:
    from graft_scheduler.client import Client
    from graft_scheduler.settings import Settings
    from graft_scheduler.store import Store

OLDEST_PYTHON = (3, 11)
OLDEST_REDIS = (6, 2)
SCARCE_BYTES = 10 << 30
"""A base model and a few checkpoints."""
HUB_SECONDS = 3.0


class Verdict(StrEnum):
    """How a check ended; only `failed` makes `graft validate` fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def run_checks(settings: Settings) -> Iterator[Check]:
    """All checks, in the order in which a person would mend them."""
    from graft_scheduler.client import Client

    yield check_python()
    yield check_mlx()
    yield check_disk(settings)
    with Client(settings) as client:
        store, check = check_store(client)
        yield check
        yield from check_service(client, store)
    yield check_hub()


def check_python() -> Check:
    """The interpreter."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", Verdict.FAILED, version, "install Python 3.11 or newer")
    return Check("python", Verdict.OK, version)


def check_mlx() -> Check:
    """MLX and the device it finds; a machine without it may still submit jobs."""
    from graft_cli.installation import probe

    if importlib.util.find_spec("mlx") is None:
        remedy = "to train here, `pip install '.[worker]'` in Graft's folder"
        return Check("mlx", Verdict.WARNING, "not installed: this machine can submit, not train", remedy)
    device = probe()
    if device.get("error"):
        return Check(
            "mlx",
            Verdict.FAILED,
            str(device["error"]),
            "reinstall it: `pip install '.[worker]'` in Graft's folder",
        )
    version = device.get("versions", {}).get("mlx", "?")
    return Check(
        "mlx", Verdict.OK, f"{version} on {device['device']}, {size(device['budget_bytes'])} for jobs"
    )


def check_disk(settings: Settings) -> Check:
    """Room for models, checkpoints and adapters in the data folder."""
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < SCARCE_BYTES:
        remedy = f"free some space, or set GRAFT_DATA_DIR; {size(SCARCE_BYTES)} is little for real models"
        return Check("disk", Verdict.WARNING, f"{size(free)} free at {folder}", remedy)
    return Check("disk", Verdict.OK, f"{size(free)} free at {folder}")


def check_store(client: Client) -> tuple[Store | None, Check]:
    """Whether the store is there and takes what is put."""
    from graft_scheduler.errors import GraftError

    try:
        store = client.store()
        store.put_bytes(b"graft validate\n")
    except (GraftError, OSError) as error:
        text, _, remedy = str(error).partition("; ")
        remedy = remedy or "set GRAFT_STORE_URL to the same on all machines; docs/store.md says to what"
        return None, Check("store", Verdict.FAILED, text, remedy)
    return store, Check("store", Verdict.OK, store.place)


def check_service(client: Client, store: Store | None) -> Iterator[Check]:
    """Redis, and what lives behind it."""
    from graft_scheduler.errors import Unreachable
    from graft_scheduler.settings import hide_password

    try:
        seconds = client.ping()
    except Unreachable as error:
        text, _, remedy = str(error).partition("; ")
        yield Check("redis", Verdict.FAILED, text, remedy)
        return
    yield Check("redis", Verdict.OK, f"{hide_password(client.settings.redis_url)}, {seconds * 1000:.1f} ms")
    yield from check_redis_server(client)
    yield check_scheduler(client)
    yield from check_workers(client, store)


def check_redis_server(client: Client) -> Iterator[Check]:
    """Its version, and the settings that decide whether it may lose jobs."""
    from graft_scheduler.errors import GraftError

    try:
        facts = client.server_facts()
    except GraftError:
        yield Check("redis version", Verdict.WARNING, "it does not tell", "right for a trial, not for a team")
        return
    version = tuple(int(part) for part in facts["version"].split(".")[:2])
    if version < OLDEST_REDIS:
        yield Check(
            "redis version", Verdict.FAILED, facts["version"], "install Redis 6.2 or newer, or Valkey"
        )
    else:
        yield Check("redis version", Verdict.OK, facts["version"])
    if facts["appendonly"] != "yes":
        remedy = "`redis-cli config set appendonly yes`, and the same in redis.conf"
        yield Check("redis data", Verdict.WARNING, "append-only file off: a restart loses jobs", remedy)
    else:
        yield Check("redis data", Verdict.OK, "append-only file on")
    if facts["maxmemory_policy"] != "noeviction":
        remedy = "`redis-cli config set maxmemory-policy noeviction`, and the same in redis.conf"
        detail = f"{facts['maxmemory_policy']}: jobs may vanish when memory is short"
        yield Check("redis memory", Verdict.FAILED, detail, remedy)
    else:
        yield Check("redis memory", Verdict.OK, "noeviction")


def check_scheduler(client: Client) -> Check:
    """Whether one leads."""
    if client.leader() is None:
        return Check(
            "scheduler", Verdict.FAILED, "none runs", "`graft scheduler`, or `graft up` for everything"
        )
    return Check("scheduler", Verdict.OK, "one leads")


def check_workers(client: Client, store: Store | None) -> Iterator[Check]:
    """Whether somebody would train, and looks at the same store."""
    alive = [host for host in client.hosts() if host.is_alive]
    if not alive:
        yield Check("workers", Verdict.FAILED, "none is alive", "`graft worker` on a machine makes it a host")
        return
    yield Check("workers", Verdict.OK, ", ".join(host.info.name for host in alive))
    if store is None:
        return
    others = [host.info.name for host in alive if host.info.store_id != store.id]
    if others:
        remedy = "set GRAFT_STORE_URL to the same shared folder on all machines"
        yield Check("shared store", Verdict.FAILED, f"another one on {', '.join(others)}", remedy)
    else:
        yield Check("shared store", Verdict.OK, "the same one on all workers")


def check_hub() -> Check:
    """Whether models can be fetched by name; never needed for models in folders."""
    remedy = "use a model folder, or fetch the model where there is a network"
    if importlib.util.find_spec("huggingface_hub") is None:
        return Check("hub", Verdict.WARNING, "huggingface_hub is not installed: folders only", remedy)
    if os.environ.get("HF_HUB_OFFLINE"):
        return Check("hub", Verdict.WARNING, "HF_HUB_OFFLINE is set", remedy)
    import urllib.error
    import urllib.request

    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the person's own setting
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):  # noqa: S310
            return Check("hub", Verdict.OK, url)
    except urllib.error.HTTPError:  # it answered, which is all that matters here
        return Check("hub", Verdict.OK, url)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Check("hub", Verdict.WARNING, f"{url} does not answer ({reason})", remedy)
