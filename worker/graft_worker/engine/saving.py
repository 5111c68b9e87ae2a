"""The adapter's folder, written once training is over."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from graft_scheduler.cards import Card, write_card
from graft_scheduler.hyperparameters import Method
from graft_worker.engine.adapters import Parameters, adapter_config, write_adapter
from graft_worker.engine.folders import write_whole
from graft_worker.engine.loading import Base
from graft_worker.engine.loop import Task
from graft_worker.engine.ranks import Cut, saved_form
from graft_worker.engine.reports import Reporter

ADAPTER = "adapter"
UNCUT = "uncut"
TRACKING = "tracking"
"""Folders of the attempt's own folder. The files of trackers travel with the adapter."""


@dataclass(frozen=True, slots=True)
class Saved:
    """The state that becomes the adapter."""

    step: int
    parameters: Parameters
    loss: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """What a job has come to."""

    saved: Saved
    cut: Cut | None
    card: Card


def save_adapter(work_dir: Path, task: Task, result: Result, base: Base, reporter: Reporter) -> Path:
    """The adapter's folder; a full fine-tune is saved in the dtypes it was computed in."""
    saved, cut = result.saved, result.cut
    whole = adapter_config(task.adapted, task.spec, base.quantization)
    is_full = task.adapted.method is Method.FULL
    parameters = task.adapted.computed(saved.parameters) if is_full else saved.parameters
    config = whole
    if cut is not None:
        parameters, config = saved_form(cut, whole)
    folder = work_dir / ADAPTER
    problems: list[OSError] = []

    def write(aside: Path) -> None:
        write_adapter(aside, parameters, config)
        write_card(aside, result.card)
        if cut is not None and task.spec.adapter.keep_uncut:
            (aside / UNCUT).mkdir()
            write_adapter(aside / UNCUT, saved.parameters, whole)
        problems.extend(_copy_tracking(work_dir / TRACKING, aside / TRACKING))

    write_whole(folder, write)
    for problem in problems:
        reporter.log(f"a tracker's file does not travel with the adapter: {problem}", "warning")
    return folder


def _copy_tracking(source: Path, target: Path) -> list[OSError]:
    """Copy what trackers left; what cannot be is no reason to fail a trained job."""
    problems = []
    for file in sorted(source.rglob("*")):
        copy = target / file.relative_to(source)
        try:
            if file.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        except OSError as error:
            problems.append(error)
    return problems
