"""From flags, a file and `--set` to a `TrainJob`: later ones win over earlier ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from graft_cli import samples
from graft_cli.output import out

if TYPE_CHECKING:
    import yaml

    from graft_scheduler.jobs import TrainJob

EXCLUSIVE = {
    "epochs": "steps",
    "steps": "epochs",
    "adapter.alpha": "adapter.scale",
    "adapter.scale": "adapter.alpha",
    "schedule.warmup": "schedule.warmup_steps",
}
"""Giving one on the command line takes back the other from the file."""
FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
"""Numbers that YAML 1.1, and so PyYAML, takes for text where they lack a point or a sign: 1e-5."""


def build_job(file: Path | None, flags: Mapping[str, Any], assignments: Iterable[str]) -> TrainJob:
    """The job that a command line means.

    Raises:
        InvalidInput: names the setting or the option, its value, and what would be right.
    """
    from graft_scheduler.job_settings import SHORT_NAMES, build_train_job

    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in map(parse_assignment, assignments):
        given[SHORT_NAMES.get(name, name)] = value
    values = read_settings(file, given.get("model")) if file else {}
    for name in given:
        values.pop(EXCLUSIVE.get(name, ""), None)
    values |= given
    require_model_and_data(values)
    return build_train_job(values)


def read_settings(path: Path, model: str | None = None) -> dict[str, Any]:
    """The settings in a TOML, JSON or YAML file: ours, or those of mlx-lm in ours.

    `model` is that of the command line, which stands in the place of the file's.

    Raises:
        InvalidInput: the file is missing, is of another kind, or does not hold settings.
    """
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.mlx_lm_config import is_mlx_lm

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
    return import_mlx_lm(path, values, model) if is_mlx_lm(values) else values


def import_mlx_lm(path: Path, values: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """Our settings for mlx-lm's in the file at `path`; says what they do not carry over.

    Raises:
        InvalidInput: names the file, the key, its value and the remedy.
    """
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.mlx_lm_config import from_mlx_lm

    try:
        imported = from_mlx_lm(values, _count_blocks(model or values.get("model")))
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    out.note(f"{path} is a configuration of mlx-lm's; docs/mlx-lm.md tells what becomes of its keys")
    for note in imported.notes:
        out.note(f"  {note}")
    return imported.settings


def parse_number_or_auto(text: str | None, option: str) -> int | str | None:
    """A number, or `auto`.

    Raises:
        BadParameter: it is neither.
    """
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        remedy = f"{text!r} must be a whole number, such as 8, or auto"
        raise typer.BadParameter(remedy, param_hint=f"'{option}'") from None


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


def _count_blocks(model: object) -> int | None:
    """Of a model folder on this machine; of a hub id, or of one that will be refused, nothing is known."""
    from graft_scheduler.basemodels import local_folder, read_base_model
    from graft_scheduler.errors import InvalidInput

    try:
        folder = local_folder(model) if isinstance(model, str) else None
        return None if folder is None else read_base_model(folder).num_layers
    except InvalidInput:
        return None


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
    import yaml

    try:
        return yaml.load(text, _loader()) or {}  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace("\n", " ")) from error


@cache
def _loader() -> type[yaml.SafeLoader]:
    """PyYAML's safe loader, which also reads 1e-5 as a number, as mlx-lm's does."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
    return Loader
