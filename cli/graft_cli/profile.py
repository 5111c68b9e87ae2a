"""`graft profile`: a few real steps on this machine, and what they did to its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft_cli.amounts import size
from graft_cli.options import AsJson, Png
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.jobs import TrainJob
    from graft_scheduler.messages import TrainResult
    from graft_scheduler.planning import CutPlan, Question
    from graft_scheduler.records import MemorySample

STEPS = 3
LARGE_ROWS = 1024
"""A data set of so many rows has the automatic batch that its rows' length asks for."""
MOST_MICRO_BATCHES = 2
"""In a step: with more of them, the gradient of one and the sum of those before are held too."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What was predicted, what ran, and what was seen."""

    job: TrainJob
    device: str
    backend: str
    predicted: CutPlan
    result: TrainResult
    samples: tuple[MemorySample, ...]

    @property
    def predicted_bytes(self) -> int:
        """By the runner, which counts tokens; else from the bytes of the rows, which is no less."""
        return self.result.predicted_peak_bytes or self.predicted.estimate.peak_bytes

    @property
    def share(self) -> float | None:
        """Of the prediction that was measured."""
        measured = self.result.peak_memory_bytes
        return None if measured is None else measured / self.predicted_bytes

    def as_json(self) -> dict[str, Any]:
        from dataclasses import asdict

        from graft_cli.memory_timeline import as_plain

        return {
            "device": self.device,
            "backend": self.backend,
            "cut": asdict(self.predicted.cut),
            "predicted_peak_bytes": self.predicted_bytes,
            "predicted": asdict(self.predicted.estimate),
            "measured_peak_bytes": self.result.peak_memory_bytes,
            "measured_share": self.share,
            "footprint_peak_bytes": max((one.footprint_bytes for one in self.samples), default=None),
            "timeline": as_plain(self.samples),
            "result": self.result.model_dump(mode="json"),
            "job": self.job.model_dump(mode="json"),
        }


def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Base model: a folder or a hub id.")],
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Whose longest rows to take; made-up rows without it.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="How to adapt the base: lora, qlora, dora or full; default: lora.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens; default: 2048.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step; default: by the data.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of a job, such as optimizer.name=sgd."),
    ] = None,
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Train a few of the longest steps here, and show the memory they take."""
    from graft_cli.generate import require_mlx

    require_mlx()
    require_plot(png)
    values = {"method": method, "max_length": max_length, "batch_size": batch_size}
    with TemporaryDirectory(prefix="graft-profile-") as folder:
        found = measure(model, data, values, settings or (), Path(folder))
    if png is not None:
        draw_profile(found, png)
    if as_json:
        out.json(found.as_json())
    else:
        describe_profile(found)
    if png is not None:
        out.note(f"the picture is in {png}")


def measure(
    model: str, data: str | None, values: dict[str, Any], assignments: Sequence[str], folder: Path
) -> Profile:
    """Run the profile in `folder`.

    Raises:
        InvalidInput: the model, the data or a setting can never work.
        JobFailed: it could not be trained here.
    """
    from graft_cli.installation import probe
    from graft_cli.memory_timeline import Sampler
    from graft_cli.progress import LocalProgress
    from graft_scheduler.local import run_locally

    device = probe()
    question = ask_question(model, data, values, assignments, folder, device.get("kind", "cpu"))
    planned = plan_cut(question, device.get("budget_bytes"))
    job = profiled_job(question, planned)
    with LocalProgress(title="profiling here") as progress, Sampler() as sampler:

        def take(message: Any) -> None:
            sampler.take(message)
            progress.take(message)

        result = run_locally(job, folder / "run", take)
    return Profile(
        job, str(device.get("device", "")), question.backend.value, planned, result, sampler.samples
    )


def ask_question(
    model: str, data: str | None, values: dict[str, Any], assignments: Sequence[str], folder: Path, kind: str
) -> Question:
    """What the planner is asked: the job on the longest rows, whose data are written into `folder`."""
    from graft_cli.profile_data import write_longest, write_made_up
    from graft_cli.train_settings import build_job
    from graft_scheduler.data.faults import ALLOWABLE
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.jobs import DataRef
    from graft_scheduler.memory import Backend
    from graft_scheduler.planning import Question
    from graft_scheduler.submission import resolve

    rows = folder / "rows"
    rows.mkdir()
    wanted = build_job(None, {**values, "model": model, "data": data or str(rows)}, assignments)
    if data is None:
        batch = made_up_batch(wanted)
        write_made_up(rows, STEPS * batch, wanted.max_length)
    else:
        batch = resolve(wanted).spec.batch_rows
        write_longest(wanted.data, rows, STEPS * batch)
    # The same rows to train and to validate on, in the format in which they are trained.
    own = DataRef(source=str(rows), allow=ALLOWABLE, mask_prompt=wanted.data.mask_prompt)
    longest = {"data": own, "batch_size": batch}
    chosen = resolve(wanted.model_copy(update=longest))
    if chosen.base is None:
        raise InvalidInput(f"`model` is {model!r}, of which nothing is known here; is the hub reachable?")
    return Question(chosen.base, chosen.spec, chosen.lengths, Backend(kind))


def made_up_batch(job: TrainJob) -> int:
    """The rows of a step, for a large data set whose rows are all as long as they may be."""
    from graft_scheduler.lengths import BYTES_PER_TOKEN, auto_batch_rows

    if job.batch_size != "auto":
        return job.batch_size
    return auto_batch_rows([job.max_length * BYTES_PER_TOKEN] * LARGE_ROWS, job.method, job.max_length)


def plan_cut(question: Question, budget_bytes: int | None) -> CutPlan:
    """As a worker here would cut it.

    Raises:
        InvalidInput: not even the smallest cut fits into this machine's memory.
    """
    from graft_scheduler.errors import InvalidInput
    from graft_scheduler.planning import fastest_cut, smallest_cut

    planned = fastest_cut(question, budget_bytes)
    if planned is not None:
        return planned
    needed, there = size(smallest_cut(question).peak_bytes), size(budget_bytes or 0)
    raise InvalidInput(
        f"it needs {needed} at least, and jobs may use {there} of this machine; try a smaller "
        "`--max-length`, or another method"
    )


def profiled_job(question: Question, planned: CutPlan) -> TrainJob:
    """A few steps with the cut, and no more rows in each than fill the largest micro-batch and another."""
    from graft_scheduler.planning import with_cut

    job = question.job
    rows = max(1, planned.cut.micro_batch_tokens // question.lengths.longest)
    batch = min(job.batch_rows, MOST_MICRO_BATCHES * rows)
    evaluation = job.evaluation.model_copy(update={"every": STEPS, "rows": min(rows, job.batch_rows)})
    changes = {"steps": STEPS, "epochs": None, "batch_size": batch, "evaluation": evaluation}
    return with_cut(job.model_copy(update=changes), planned.cut)


def describe_profile(found: Profile) -> None:
    """Print what was predicted beside what was seen, and the timeline."""
    from graft_cli.memory_timeline import print_timeline

    cut, measured = found.predicted.cut, found.result.peak_memory_bytes
    rows = "1 row" if found.job.batch_size == 1 else f"{found.job.batch_size} rows"
    held = max((one.footprint_bytes for one in found.samples), default=0)
    recomputed = "gradient checkpointing" if cut.gradient_checkpointing else "no gradient checkpointing"
    out.pairs(
        f"Profile of {found.job.model.source}",
        [
            ("device", f"{found.device} ({found.backend})"),
            ("step", f"{rows}, {cut.micro_batch_tokens} tokens at once, {recomputed}"),
            ("predicted", f"{size(found.predicted_bytes)} at the peak, in MLX's arrays"),
            ("measured", "" if measured is None else f"{size(measured)} ({found.share or 0:.0%} of that)"),
            ("process", f"{size(held)} at most" if held else ""),
        ],
    )
    print_timeline(found.samples)


def draw_profile(found: Profile, file: Path) -> None:
    """Write the picture."""
    from graft_cli.memory_plot import draw

    title = f"{Path(found.job.model.source).name}, {found.job.method.value}, on {found.device}"
    draw(found.samples, file, title, found.predicted_bytes, found.result.peak_memory_bytes)


def require_plot(png: Path | None) -> None:
    """Raises `InvalidInput` where a picture is asked for and cannot be drawn, before anything slow starts."""
    import importlib.util

    from graft_cli.memory_plot import NEEDS_MATPLOTLIB
    from graft_scheduler.errors import InvalidInput

    if png is not None and importlib.util.find_spec("matplotlib") is None:
        raise InvalidInput(NEEDS_MATPLOTLIB)
