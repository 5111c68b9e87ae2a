"""The cards of one job's adapter and checkpoints."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graft_scheduler.basemodels import looks_like_path
from graft_scheduler.cards import BaseCard, Card, DataCard, Figures, perplexity_of, public_config, public_name
from graft_scheduler.data.opening import FILES
from graft_scheduler.data.sources import find_files
from graft_scheduler.jobs import TrainJob
from graft_scheduler.licences import find_licence
from graft_scheduler.messages import Start, TrainResult
from graft_scheduler.states import Digest
from graft_scheduler.store.digests import digest_of_files
from graft_worker.engine.checkpoints import State
from graft_worker.engine.dataset import Dataset
from graft_worker.engine.device import device_name, peak_bytes, versions
from graft_worker.engine.loading import Base

DISTRIBUTION = "mlx-graft"


@dataclass(frozen=True)
class CardMaker:
    """Knows all that does not change while the job trains."""

    start: Start
    spec: TrainJob
    """With its batch size as a number."""
    base: Base
    dataset: Dataset
    trainable_parameters: int

    def of_checkpoint(self, state: State) -> Card:
        """Of a checkpoint, as whoever takes it for an adapter wants to know it."""
        figures = Figures(
            loss=state.loss_here,
            perplexity=perplexity_of(state.loss_here),
            initial_loss=state.initial_loss,
            final_loss=state.last_loss,
            best_loss=state.best_loss,
            best_step=state.best_step,
            tokens=state.tokens,
            peak_memory_bytes=peak_bytes(),
            training_seconds=state.trained_seconds,
            trainable_parameters=self.trainable_parameters,
        )
        return self._card("checkpoint", state.step, figures)

    def of_adapter(self, result: TrainResult, loss: float | None) -> Card:
        """Of the adapter that the job leaves; `loss` is its own."""
        same = Figures.model_fields.keys() & TrainResult.model_fields.keys()
        figures = Figures.model_validate(
            {
                **result.model_dump(include=set(same)),
                "loss": loss,
                "trainable_parameters": self.trainable_parameters,
            }
        )
        return self._card("adapter", result.saved_step or 0, figures)

    def _card(self, what: str, step: int, figures: Figures) -> Card:
        return Card.model_validate(
            {
                **self._fixed,
                "what": what,
                "step": step,
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "figures": figures,
            }
        )

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        spec, base, data = self.spec, self._base(), self._data()
        config = public_config(spec.model_dump(mode="json", exclude_none=True))
        config["model"] |= {"source": base.name}
        config["data"] |= {"source": data.name}
        return {
            "job": self.start.job,
            "base": base,
            "data": data,
            "method": spec.method.value,
            "seed": spec.seed,
            "config": config,
            "versions": {"graft": _own_version(), **versions()},
            "device": device_name(),
            "system": f"{platform.system()} {platform.machine()}",
        }

    def _base(self) -> BaseCard:
        model, folder = self.spec.model, self.base.folder
        is_local = model.digest is not None or looks_like_path(model.source)
        is_snapshot = not is_local and folder.parent.name == "snapshots"
        return BaseCard(
            name=public_name(model.source, is_local=is_local),
            revision=folder.name if is_snapshot else model.revision,
            digest=model.digest,
            fingerprint=self.base.fingerprint if is_local and model.digest is None else None,
            licence=find_licence(folder),
        )

    def _data(self) -> DataCard:
        data = self.spec.data
        name, _, version = (data.version or "").partition("@")
        return DataCard(
            name=name or public_name(data.source, is_local=Path(data.source).exists()),
            digest=data.digest or self._own_digest(),
            version=version or None,
            format=self.dataset.format.value,
            rows=self.dataset.counts(),
        )

    def _own_digest(self) -> Digest:
        """Of data that no store knows: the one under which a store would have them."""
        files = find_files(Path(self.start.data_dir or self.spec.data.source))
        return digest_of_files({FILES[one.split]: one.path for one in files})


def _own_version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
