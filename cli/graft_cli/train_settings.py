"""From flags, a file and `--set` to a `TrainJob`: later ones win over earlier ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft_cli import samples

if TYPE_CHECKING:
    from graft_scheduler.jobs import TrainJob

EXCLUSIVE = {"epochs": "steps", "steps": "epochs", "adapter.alpha": "adapter.scale"}
"""Giving one on the command line takes back the other from the file."""


def build_job(file: Path | None, flags: Mapping[str, Any], assignments: Iterable[str]) -> TrainJob:
    """The job that a command line means.

    Raises:
        InvalidInput: names the setting or the option, its value, and what would be right.
    """
    from graft_scheduler.job_settings import build_train_job

    values = read_settings(file) if file else {}
    given = {name: value for name, value in flags.items() if value is not None}
    given |= dict(parse_assignment(text) for text in assignments)
    for name in given:
        values.pop(EXCLUSIVE.get(name, ""), None)
    values |= given
    require_model_and_data(values)
    return build_train_job(values)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML, JSON or YAML file.

    Raises:
        InvalidInput: the file is missing, is of another kind, or does not hold settings.
    """
    from graft_scheduler.errors import InvalidInput

    try:
        text = path.read_text()
    except OSError as error:
        raise InvalidInput(f"`--config` is {path}: {error.strerror}") from error
    try:
        values = _parse(path.suffix.lower(), text)
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise InvalidInput(f"{path} holds {type(values).__name__}; it must hold settings by name")
    return values


def parse_assignment(text: str) -> tuple[str, Any]:
    """`rank=16` as a name and a value: JSON where it is JSON, else text.

    Raises:
        InvalidInput: there is no name or no `=`.
    """
    from graft_scheduler.errors import InvalidInput

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InvalidInput(f"`--set {text}`: write it as NAME=VALUE, such as `--set rank=16`")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def parse_labels(texts: Iterable[str]) -> dict[str, str] | None:
    """`team=search` and the like as labels; nothing when there are none.

    Raises:
        InvalidInput: a label without `=`.
    """
    from graft_scheduler.errors import InvalidInput

    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidInput(f"`--label {text}`: write it as NAME=VALUE, such as `--label team=search`")
        labels[name] = value
    return labels or None


def require_model_and_data(values: Mapping[str, Any]) -> None:
    """Refuse a job without a model or data, with a command that would work.

    Raises:
        InvalidInput: says which option is missing.
    """
    from graft_scheduler.errors import InvalidInput

    missing = [f"`--{name}`" for name in ("model", "data") if not _has(values, name)]
    if not missing:
        return
    model, data = values.get("model", samples.base_model()), values.get("data", samples.data_folder())
    raise InvalidInput(
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
        f"to try it with the sample that comes with Graft:\n  {samples.train_command(str(model), str(data))}"
    )


def _has(values: Mapping[str, Any], name: str) -> bool:
    return bool(values.get(name) or values.get(f"{name}.source"))


def _parse(suffix: str, text: str) -> Any:
    match suffix:
        case ".toml":
            import tomllib

            return tomllib.loads(text)
        case ".json":
            return json.loads(text)
        case ".yaml" | ".yml":
            return _parse_yaml(text)
        case _:
            raise ValueError(f"`{suffix}` files are not understood; use .toml, .json or .yaml")


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ValueError(
            "reading YAML needs PyYAML (`pip install pyyaml`); TOML and JSON need nothing"
        ) from None
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace("\n", " ")) from error
