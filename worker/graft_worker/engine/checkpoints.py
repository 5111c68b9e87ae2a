"""Checkpoints: everything a job needs to go on as if it had never stopped.

A checkpoint is also an adapter folder that stock mlx-lm loads. Besides the newest ones that of the
best validation loss stays; its arrays travel with every later checkpoint, as the job may end on
another host.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
from pydantic import BaseModel, ConfigDict, ValidationError

from graft_scheduler.cards import Card, write_card
from graft_scheduler.hyperparameters import Output
from graft_scheduler.states import FailureClass
from graft_worker.engine.adapters import WEIGHTS_FILE, Parameters, write_adapter
from graft_worker.engine.device import is_out_of_memory, versions
from graft_worker.engine.folders import PARTIAL_PREFIX, remove_partial, remove_whole, write_whole
from graft_worker.link import JobError

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
STEP_PREFIX = "step-"
BEST_FILE = "best.safetensors"
"""The arrays of the best validation loss, in checkpoints that are of another step."""


class State(BaseModel):
    """Where training stands. The place in the data and dropout's keys follow from the step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Learned from so far."""
    trained_seconds: float = 0.0
    evaluated_step: int | None = None
    """The last step whose validation loss is known."""
    initial_loss: float | None = None
    last_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    patience_loss: float | None = None
    """The loss that a better one has to beat by `evaluation.min_delta`."""
    bad_evaluations: int = 0
    """In a row, without a better loss."""
    stopped_early: bool = False
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    @property
    def loss_here(self) -> float | None:
        """The validation loss after this very step, where it is known."""
        return self.last_loss if self.evaluated_step == self.step else None


class _StateFile(BaseModel):
    """What `state.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    state: State
    agreement: dict[str, Any]
    """The settings that must be the same for the job that goes on from here."""
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint in memory."""

    state: State
    parameters: Parameters
    optimizer: dict[str, mx.array]
    best_file: Path | None = None
    """Holds the arrays of the best validation loss, where those are of another step."""


@dataclass(slots=True)
class CheckpointFolder:
    """The checkpoints in one folder; the newest `keep` stay, and that of the best validation loss."""

    root: Path
    keep: int
    agreement: Mapping[str, Any]
    adapter_config: Mapping[str, Any]
    keeps_best: bool
    """The best arrays travel with every checkpoint."""
    describe: Callable[[State], Card] | None = None
    """What is said of a checkpoint to whoever takes it for an adapter."""
    saved: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        remove_partial(self.root)
        self.saved = sorted(self.root.glob(f"{STEP_PREFIX}*"), key=_step_of)

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, whole or not at all, and remove those that are too old."""
        folder = self.root / f"{STEP_PREFIX}{snapshot.state.step}"
        write_whole(folder, lambda aside: self._write(aside, snapshot))
        # What lies beyond is of an attempt that went on from an earlier step than it had reached.
        beyond = [path for path in self.saved if _step_of(path) > snapshot.state.step]
        for path in beyond:
            remove_whole(path)
        self.saved = [path for path in self.saved if path not in (folder, *beyond)] + [folder]
        if snapshot.state.best_step == snapshot.state.step:
            self.take_best(folder / WEIGHTS_FILE)
        self._remove_old(snapshot.state)
        return folder

    def take_best(self, file: Path) -> None:
        """The arrays in `file` are those of the best validation loss now."""
        if self.keeps_best:
            aside = self.root / f"{PARTIAL_PREFIX}{BEST_FILE}"
            aside.unlink(missing_ok=True)
            self.root.mkdir(parents=True, exist_ok=True)
            _link(file, aside)
            aside.replace(self._best)

    def best(self) -> Parameters:
        """The arrays of the best validation loss.

        Raises:
            JobError: they cannot be read; class `store`.
        """
        return _read_arrays(self._best)

    @property
    def _best(self) -> Path:
        return self.root / BEST_FILE

    def _remove_old(self, state: State) -> None:
        best = f"{STEP_PREFIX}{state.best_step}"
        old = [folder for folder in self.saved[: -self.keep] if folder.name != best]
        for folder in old:
            remove_whole(folder)
        self.saved = [folder for folder in self.saved if folder not in old]

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        write_adapter(folder, snapshot.parameters, dict(self.adapter_config))
        mx.save_safetensors(str(folder / OPTIMIZER_FILE), snapshot.optimizer)
        document = _StateFile(state=snapshot.state, agreement=dict(self.agreement), versions=versions())
        (folder / STATE_FILE).write_text(document.model_dump_json(indent=2) + "\n")
        if self.describe is not None:
            write_card(folder, self.describe(snapshot.state))
        if self._best.exists() and snapshot.state.best_step != snapshot.state.step:
            _link(self._best, folder / BEST_FILE)


def read_checkpoint(folder: Path, agreement: Mapping[str, Any]) -> Snapshot:
    """The checkpoint in `folder`, which must be of a job that agrees with this one.

    Raises:
        JobError: it cannot be read (class `store`), or is of another job (class `config`).
    """
    document = _read_state(folder)
    for name in sorted(agreement.keys() | document.agreement.keys()):
        theirs, ours = document.agreement.get(name), agreement.get(name)
        if theirs != ours:
            text = f"the checkpoint {folder} was made with {name} {theirs}; this job has {ours}"
            raise JobError(FailureClass.CONFIG, text)
    return Snapshot(
        document.state,
        _read_arrays(folder / WEIGHTS_FILE),
        _read_arrays(folder / OPTIMIZER_FILE),
        _best_file(folder, document),
    )


def _best_file(folder: Path, document: _StateFile) -> Path | None:
    """Which file of the checkpoint holds the best arrays; it is read, to know now that it can be."""
    if document.state.best_step == document.state.step:
        return folder / WEIGHTS_FILE
    if document.state.best_step is None or document.agreement.get("output") != Output.BEST:
        return None
    _read_arrays(folder / BEST_FILE)
    return folder / BEST_FILE


def _read_state(folder: Path) -> _StateFile:
    try:
        return _StateFile.model_validate_json((folder / STATE_FILE).read_bytes())
    except OSError as error:
        raise _unreadable(folder / STATE_FILE, error.strerror) from error
    except ValidationError as error:
        raise _unreadable(folder / STATE_FILE, error.errors()[0]["msg"]) from error


def _read_arrays(path: Path) -> dict[str, mx.array]:
    try:
        arrays = mx.load(str(path))
        mx.eval(arrays)  # reads the file: loading alone only looks at its head
    except (RuntimeError, ValueError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise _unreadable(path, error) from error
    assert isinstance(arrays, dict)  # what MLX makes of every safetensors file
    return arrays


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(STEP_PREFIX))


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _unreadable(path: Path, reason: object) -> JobError:
    return JobError(FailureClass.STORE, f"the checkpoint file {path} cannot be read: {reason}")
