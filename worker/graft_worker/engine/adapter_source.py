"""A trained adapter with the bases that it belongs to: the one it was trained on, the one to fuse into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from huggingface_hub import snapshot_download
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters

from graft_scheduler.basemodels import looks_like_path
from graft_scheduler.cards import public_name
from graft_scheduler.exports import ExportOrder
from graft_scheduler.hub import MODEL_PATTERNS
from graft_scheduler.hyperparameters import Method, QuantizationConfig
from graft_scheduler.jobs import ModelRef
from graft_scheduler.states import FailureClass
from graft_scheduler.store.digests import is_folder_of
from graft_worker.engine.adapters import CONFIG_FILE, WEIGHTS_FILE
from graft_worker.engine.generate import adapter_errors, put_adapter, quantization_of
from graft_worker.engine.loading import Base, find_model, load_base
from graft_worker.link import JobError


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """What is to be fused."""

    folder: Path
    method: Method
    quantization: QuantizationConfig | None
    """What its base was quantised to when it was loaded for the training."""
    trained_on: Path
    target: Path
    """What it is fused into."""
    target_name: str
    is_own_base: bool
    """It is fused into the base that it was trained on."""
    order: ExportOrder
    notes: tuple[str, ...]

    def load_trained(self, *, adapted: bool) -> Base:
        """The base as the adapter was trained on it, with the adapter or without."""
        ref = ModelRef(source=str(self.trained_on), trust_remote_code=self._trusts)
        base = load_base(ref, self.trained_on, self.order.precision, self.quantization)
        if adapted:
            put_adapter(base, self.folder)
        return base

    def load_made(self, folder: Path) -> Base:
        """A model that was made of it."""
        ref = ModelRef(source=str(folder), trust_remote_code=self._trusts)
        return load_base(ref, folder, self.order.precision)

    def put(self, model: nn.Module) -> None:
        """Put the adapter on a model of which nothing has been computed.

        Raises:
            JobError: it belongs to another model; class `config`.
        """
        with adapter_errors(self.folder):
            load_adapters(model, str(self.folder))

    def own_names(self) -> list[str]:
        """The arrays in its file."""
        with adapter_errors(self.folder):
            found = mx.load(str(self.folder / WEIGHTS_FILE))
        assert isinstance(found, dict)
        return list(found)

    @property
    def trusts(self) -> bool:
        """Whether code that comes with the base may run."""
        return self._trusts

    @property
    def _trusts(self) -> bool:
        return self.order.model is not None and self.order.model.trust_remote_code


def open_source(order: ExportOrder) -> AdapterSource:
    """The adapter that `order` names, and its bases.

    Raises:
        JobError: there is no adapter or no base (class `config`), or the hub does not answer (`store`).
    """
    folder = Path(order.adapter).expanduser()
    config = _read_config(folder)
    recorded = order.trained_on or _recorded(config)
    target_ref = order.model or recorded
    if target_ref is None:
        text = f"the adapter in {folder} does not say which base it belongs to; name it with `--model`"
        raise JobError(FailureClass.CONFIG, text)
    target = _find(target_ref, named=order.model is not None)
    trained_on, notes = target, []
    is_another = order.model is not None and (recorded is None or _is_another(order.model, recorded, config))
    if is_another and order.model is not None and recorded is not None:
        own = _find_here(recorded)
        trained_on = target if own is None else own
        if own is None:
            notes.append(
                f"{order.model.source} is not known to be {recorded.source}, the base that it was trained "
                "on, which is not here to compare with"
            )
    method = Method(config.get("fine_tune_type") or Method.LORA)
    return AdapterSource(
        folder,
        method,
        quantization_of(folder),
        trained_on,
        target,
        target_ref.source,
        not is_another,
        order,
        tuple(notes),
    )


def changed_arrays(source: AdapterSource, model: nn.Module, adapted: list[str]) -> dict[str, mx.array]:
    """The arrays of a fused model that are not its base's, by the model's names."""
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    if source.method is Method.FULL:
        return {name: arrays[name] for name in source.own_names()}
    return {f"{path}.weight": arrays[f"{path}.weight"] for path in adapted}


def adapted_paths(model: nn.Module) -> list[str]:
    """Where a model has adapters."""
    return [path for path, module in model.named_modules() if callable(getattr(module, "fuse", None))]


def _read_config(folder: Path) -> dict[str, Any]:
    with adapter_errors(folder):
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        if not isinstance(config, dict):
            raise TypeError(f"{CONFIG_FILE} holds no JSON object")
        return config


def _recorded(config: dict[str, Any]) -> ModelRef | None:
    """The base that the adapter's own record names; mlx-lm's adapters name it too."""
    source = config.get("model")
    if not isinstance(source, str) or not source:
        return None
    return ModelRef(source=source, revision=config.get("revision"))


def _is_another(named: ModelRef, recorded: ModelRef, config: dict[str, Any]) -> bool:
    """Whether a person names another base than the adapter was trained on, not the same one elsewhere."""
    if named.source == recorded.source:
        return False
    digest = recorded.digest or config.get("model_digest")
    if digest is None:  # a folder that no store knows: its name is all there is to go by
        return public_name(named.source, is_local=looks_like_path(named.source)) != recorded.source
    if named.digest is not None:
        return named.digest != digest
    folder = Path(named.source).expanduser()
    return not folder.is_dir() or not is_folder_of(folder, digest)


def _find(ref: ModelRef, *, named: bool) -> Path:
    if not named and looks_like_path(ref.source) and not Path(ref.source).expanduser().is_dir():
        text = (
            f"the adapter was trained on a folder called `{ref.source}`; `--model` names it where it is now"
        )
        raise JobError(FailureClass.CONFIG, text)
    try:
        return find_model(ref)
    except JobError as error:
        if named:
            raise
        text = f"{error}; the adapter was trained on it: `--model` names it where it is now"
        raise JobError(error.failure, text) from error


def _find_here(ref: ModelRef) -> Path | None:
    """The folder of the model, if it needs no fetching."""
    if looks_like_path(ref.source):
        folder = Path(ref.source).expanduser()
        return folder if folder.is_dir() else None
    try:
        found = snapshot_download(
            ref.source, revision=ref.revision, allow_patterns=list(MODEL_PATTERNS), local_files_only=True
        )
    except Exception:  # whatever the library says: it is not here
        return None
    return Path(found)
