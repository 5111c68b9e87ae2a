"""The adapter that a person means: a folder here, or a job's, brought here with all that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.client import Client
    from graft_scheduler.exports import HeldOutData
    from graft_scheduler.hyperparameters import Precision
    from graft_scheduler.jobs import ModelRef, TrainJob
    from graft_scheduler.states import Digest

AdapterArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or the job that trained it.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Its base, a folder or hub id; default: the one it was trained on."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        "-d",
        metavar="PATH",
        help="Rows to check it on: a .jsonl file, or a data set's folder: its validation rows.",
    ),
]
ADAPTER_NAMES = frozenset({"adapter", "adapters"})
"""Folders that are called after what they are; the one above says whose."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An adapter on this machine, and what is known of its training."""

    folder: Path
    name: str
    """For files that are made of it."""
    model: ModelRef | None
    data: HeldOutData | None
    precision: Precision


def choose_adapter(
    adapter: str,
    model: str | None,
    data: Path | None,
    redis_url: str | None,
    store_url: str | None,
    *,
    needs_base: bool = True,
) -> Chosen:
    """The adapter that `adapter` names; a job's is fetched, its held-out rows and its base too.

    Raises:
        NotFound: there is neither such a folder nor such a job.
        Conflict: the job has no adapter yet.
    """
    from graft_scheduler.hyperparameters import Precision

    folder = Path(adapter).expanduser()
    if folder.is_dir():
        named = folder.absolute()
        name = named.parent.name if named.name in ADAPTER_NAMES else named.name
        return Chosen(folder, name, _named(model), _given(data), Precision.AUTO)
    if "/" in adapter:
        from graft_scheduler.errors import NotFound

        raise NotFound(f"there is no folder {adapter}")
    from graft_cli.options import connect

    with connect(redis_url, store_url=store_url) as client:
        return _of_job(client, adapter, model, data, needs_base=needs_base)


def _of_job(client: Client, job: str, model: str | None, data: Path | None, *, needs_base: bool) -> Chosen:
    from graft_scheduler.errors import Conflict
    from graft_scheduler.jobs import TrainJob

    record = client.get(job)
    spec = record.spec
    if record.adapter is None or not isinstance(spec, TrainJob):
        raise Conflict(f"job {record.id} is {record.state.shown} and has no adapter")
    folder = client.pull(record.id, _cache(client, "adapters", record.adapter))
    base = _named(model) or _base(client, spec, fetches=needs_base)
    rows = _given(data, spec) or (_held_out(client, spec) if needs_base else None)
    return Chosen(folder, record.id, base, rows, spec.precision)


def _named(model: str | None) -> ModelRef | None:
    from graft_scheduler.jobs import ModelRef

    return None if model is None else ModelRef(source=model)


def _given(data: Path | None, spec: TrainJob | None = None) -> HeldOutData | None:
    from graft_scheduler.exports import HeldOutData

    if data is None:
        return None
    if spec is None:
        return HeldOutData(path=str(data))
    return HeldOutData(path=str(data), mask_prompt=spec.data.mask_prompt, max_length=spec.max_length)


def _base(client: Client, spec: TrainJob, *, fetches: bool) -> ModelRef | None:
    """The job's base: its folder where that is here, the store's copy where it is not, else a hub id."""
    if not fetches:  # a hub id is in the adapter's own record, with its revision
        return None if spec.model.digest is None else spec.model
    if spec.model.digest is None or Path(spec.model.source).expanduser().is_dir():
        return spec.model
    folder = _cache(client, "models", spec.model.digest)
    out.note(f"bringing {spec.model.source} from the store")
    client.store().get_folder(spec.model.digest, folder)
    return spec.model.model_copy(update={"source": str(folder)})


def _held_out(client: Client, spec: TrainJob) -> HeldOutData | None:
    """The rows that the job held out, if the store still has its data."""
    from graft_scheduler.errors import GraftError
    from graft_scheduler.exports import HeldOutData

    if spec.data.digest is None:
        return None
    folder = _cache(client, "data", spec.data.digest)
    try:
        client.store().get_folder(spec.data.digest, folder)
    except GraftError as error:
        out.warning(f"the job's data cannot be had ({error}); `--data` names rows to check with")
        return None
    return HeldOutData(
        path=str(folder),
        format=spec.data.format,
        mask_prompt=spec.data.mask_prompt,
        max_length=spec.max_length,
        valid_fraction=spec.data.valid_fraction,
        seed=spec.seed,
    )


def _cache(client: Client, kind: str, digest: Digest) -> Path:
    """Where this machine keeps it; a worker here would keep it there too."""
    return client.settings.data_dir / "cache" / kind / digest.removeprefix("sha256:")
