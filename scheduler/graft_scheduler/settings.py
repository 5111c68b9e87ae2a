"""Every setting of an installation: its value, and where that came from.

Strongest first: a flag, `GRAFT_<NAME>` in the environment, the profile in use and then the top
level of `config.toml`, the `graft up` that runs on this machine, the default.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from graft_scheduler.complaints import nearest
from graft_scheduler.errors import InvalidInput

ENVIRONMENT_PREFIX = "GRAFT_"
OTHER_VARIABLES = {"config", "profile", "debug"}
"""Names with our prefix that are no settings."""
UP_FILE = "up.json"
"""In the data folder while `graft up` runs: the addresses of its services."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the services are and how this machine takes part."""

    redis_url: str
    store_url: str | None
    """Absent: the gateway that Redis names, else `own_store_url`."""
    store_token: str | None
    gateway_host: str | None
    gateway_address: str
    gateway_port: int
    gateway_folder: Path | None
    gateway_quota_bytes: int | None
    data_dir: Path
    host_name: str | None
    slots: int
    memory_bytes: int | None
    reserve_bytes: int | None
    wired_memory_bytes: int | None
    lease_seconds: float
    claim_seconds: float
    heartbeat_seconds: float
    outage_seconds: float
    flower_address: str
    flower_port: int
    flower_user: str
    flower_password: str | None
    allow_remote_code: bool
    model_cache_bytes: int | None
    min_free_disk_bytes: int | None

    @property
    def own_store(self) -> Path:
        """The folder on this machine that is the store where no other is named."""
        return (self.data_dir / "store").absolute()

    @property
    def own_store_url(self) -> str:
        """Its `store_url`."""
        return self.own_store.as_uri()


@dataclass(frozen=True, slots=True)
class Option:
    """One setting as a person sees it."""

    parse: Callable[[str], Any]
    default: Any
    help: str
    is_secret: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """A value with its origin, for `graft config`."""

    name: str
    value: Any
    source: str
    option: Option

    @property
    def shown(self) -> str:
        """The value for a screen or a log: passwords left out."""
        if self.value is None:
            return ""
        if self.option.is_secret:
            return "(set)"
        return hide_password(str(self.value)) if self.name.endswith("_url") else str(self.value)


def parse_bytes(text: str) -> int:
    """`12GB`, `512MiB`, `1.5g` or plain bytes, as bytes.

    Raises:
        ValueError: no number, an unknown unit, or nothing above zero.
    """
    units = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    stripped = text.strip().lower()
    number = stripped.rstrip("abcdefghijklmnopqrstuvwxyz").strip()
    unit = stripped[len(number) :].strip()
    factor = units.get(unit.removesuffix("ib").removesuffix("b") if len(unit) > 1 else unit)
    if factor is None:
        raise ValueError(f"{text!r} has an unknown unit; use KB, MB, GB or TB (powers of 1024)")
    try:
        value = int(float(number) * factor)
    except ValueError:
        raise ValueError(f"{text!r} is no amount of memory; write it like 12GB or 512MB") from None
    if value <= 0:
        raise ValueError(f"{text!r} is not above zero")
    return value


def parse_bool(text: str) -> bool:
    """`true` or `false`, in the usual spellings.

    Raises:
        ValueError: anything else.
    """
    word = text.strip().lower()
    if word not in {"1", "true", "yes", "on", "0", "false", "no", "off"}:
        raise ValueError(f"{text!r} is neither true nor false")
    return word in {"1", "true", "yes", "on"}


def positive_float(text: str) -> float:
    """A number above zero.

    Raises:
        ValueError: anything else.
    """
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"{text} is not a number above zero")
    return value


def positive_int(text: str) -> int:
    """A whole number above zero.

    Raises:
        ValueError: anything else.
    """
    if (value := int(text)) <= 0:
        raise ValueError(f"{text} is not above zero")
    return value


OPTIONS: dict[str, Option] = {
    "redis_url": Option(str, "redis://127.0.0.1:6379/0", "the Redis of the fleet"),
    "store_url": Option(
        str,
        None,
        "where data sets, models and adapters are kept, file:///PATH, a gateway, http://HOST:PORT, "
        "s3://BUCKET/PREFIX or sftp://USER@HOST/PATH; when absent the gateway that Redis names, else `store` "
        "in the data folder",
    ),
    "store_token": Option(str, None, "what a gateway asks for; several with commas between", is_secret=True),
    "gateway_host": Option(
        str,
        None,
        "by which others reach the gateway; `redis` for the one by which they reach Redis; when absent, that "
        "one if Redis is on this machine, else this machine's address",
    ),
    "gateway_address": Option(str, "127.0.0.1", "address the gateway listens on"),
    "gateway_port": Option(positive_int, 8470, "port the gateway listens on"),
    "gateway_folder": Option(Path, None, "what the gateway serves; `store` in the data folder when absent"),
    "gateway_quota_bytes": Option(
        parse_bytes, None, "what the gateway's folder may hold; the disk when absent"
    ),
    "data_dir": Option(Path, Path(platformdirs.user_data_dir("graft")), "this machine's own files"),
    "host_name": Option(str, None, "name of this worker; the machine's name when absent"),
    "slots": Option(positive_int, 1, "jobs that may run at once on this worker, if they fit together"),
    "memory_bytes": Option(
        parse_bytes, None, "memory that jobs may use here; read from the device when absent"
    ),
    "reserve_bytes": Option(
        parse_bytes,
        None,
        "memory that jobs never use here; when absent 1 GB of a GPU's memory, 15% of a machine's without",
    ),
    "wired_memory_bytes": Option(
        parse_bytes,
        None,
        "memory that MLX may keep wired while it trains; untouched when absent",
    ),
    "lease_seconds": Option(positive_float, 60.0, "a job of a silent worker is queued again after this"),
    "claim_seconds": Option(
        positive_float, 10.0, "a placed job that is not taken is placed again after this"
    ),
    "heartbeat_seconds": Option(positive_float, 5.0, "how often a worker reports; three missed make it away"),
    "outage_seconds": Option(positive_float, 600.0, "how long a job trains on while Redis is away"),
    "flower_address": Option(str, "127.0.0.1", "address Flower listens on"),
    "flower_port": Option(positive_int, 5555, "port Flower listens on"),
    "flower_user": Option(str, "graft", "user name for Flower"),
    "flower_password": Option(
        str, None, "password for Flower; a new one each time when absent", is_secret=True
    ),
    "allow_remote_code": Option(parse_bool, False, "let models run code of their own on this worker"),
    "model_cache_bytes": Option(
        parse_bytes, None, "models and data sets that this worker keeps on its disk; no limit when absent"
    ),
    "min_free_disk_bytes": Option(
        parse_bytes,
        None,
        "disk that jobs leave free on this worker; when absent 10 GB, or 5% of a disk below 200 GB",
    ),
}


def config_path() -> Path:
    """The config file: `GRAFT_CONFIG`, or `config.toml` in the user's config folder."""
    named = os.environ.get("GRAFT_CONFIG")
    return Path(named) if named else Path(platformdirs.user_config_dir("graft")) / "config.toml"


def resolve_settings(flags: Mapping[str, Any] | None = None) -> dict[str, Resolved]:
    """Every setting with its origin; flags that are `None` count as not given.

    Raises:
        InvalidInput: an unknown name or a bad value, with its file or variable.
    """
    layers = [("flag", {name: value for name, value in (flags or {}).items() if value is not None})]
    layers.append(("environment", _environment()))
    layers += _file_layers()
    resolved = {"data_dir": _resolve_one("data_dir", layers)}
    data_dir = Path(resolved["data_dir"].value).expanduser()
    layers.append(("running `graft up`", running_up(data_dir)))
    for name in OPTIONS:
        resolved[name] = _resolve_one(name, layers)
    return resolved


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings in force.

    Raises:
        InvalidInput: as `resolve_settings`.
    """
    values = {name: one.value for name, one in resolve_settings(flags).items()}
    values["data_dir"] = values["data_dir"].expanduser().absolute()
    return Settings(**values)


def profile_in_use() -> str | None:
    """The name of the profile whose settings hold, if any."""
    named = os.environ.get("GRAFT_PROFILE") or _read_config(config_path()).get("profile")
    return str(named) if named else None


def running_up(data_dir: Path) -> dict[str, str]:
    """The addresses of the `graft up` that runs on this data folder, if one does."""
    try:
        state = json.loads((data_dir / UP_FILE).read_text())
        os.kill(int(state["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return {}
    return {name: str(value) for name, value in state.items() if name in OPTIONS}


def hide_password(url: str) -> str:
    """The URL without the password that it may carry."""
    scheme, separator, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    if not at:
        return url
    return f"{scheme}{separator}{credentials.partition(':')[0]}:***@{place}"


def _environment() -> dict[str, str]:
    given = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in os.environ.items()
        if name.startswith(ENVIRONMENT_PREFIX) and value
    }
    for name in given.keys() - OPTIONS.keys() - OTHER_VARIABLES:
        if hint := nearest(name, tuple(OPTIONS)):
            raise InvalidInput(f"environment: `{ENVIRONMENT_PREFIX}{name.upper()}` is not a setting{hint}")
    return {name: value for name, value in given.items() if name in OPTIONS}


def _file_layers() -> list[tuple[str, dict[str, Any]]]:
    path = config_path()
    document = _read_config(path)
    profiles = document.pop("profiles", {})
    document.pop("profile", None)
    name = profile_in_use()
    layers = []
    if name is not None:
        if name not in profiles:
            raise InvalidInput(f"profile `{name}` is not in {path}; it has {', '.join(profiles) or 'none'}")
        layers.append((f"{path} [profiles.{name}]", _known_only(profiles[name], path)))
    layers.append((str(path), _known_only(document, path)))
    return layers


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from error


def _known_only(values: dict[str, Any], path: Path) -> dict[str, Any]:
    for name in values:
        if name not in OPTIONS:
            raise InvalidInput(f"{path}: `{name}` is not a setting{nearest(name, tuple(OPTIONS))}")
    return values


def _resolve_one(name: str, layers: list[tuple[str, dict[str, Any]]]) -> Resolved:
    option = OPTIONS[name]
    for source, values in layers:
        if name in values:
            origin = f"environment {ENVIRONMENT_PREFIX}{name.upper()}" if source == "environment" else source
            return Resolved(name, _parse(name, values[name], origin), origin, option)
    return Resolved(name, option.default, "default", option)


def _parse(name: str, value: Any, origin: str) -> Any:
    try:
        return OPTIONS[name].parse(str(value))
    except ValueError as error:
        raise InvalidInput(f"`{name}` from {origin}: {error}") from error
