"""The adapter that a person means: a folder here, or one of the service, brought with what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from graft_cli.options import connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.adapters import Found
    from graft_scheduler.checkpoints import Which
    from graft_scheduler.client import Client
    from graft_scheduler.exports import HeldOutData
    from graft_scheduler.hyperparameters import Precision
    from graft_scheduler.jobs import ModelRef, TrainJob
    from graft_scheduler.states import Digest

AdapterArgument = Annotated[
    str,
    typer.Argument(metavar="DIR|NAME|JOB", help="An adapter: its folder, its name, or the job that made it."),
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


Need = Literal["base", "config", "nothing"]
"""What of the base a command reads."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An adapter on this machine, and what is known of its training."""

    folder: Path
    name: str
    """For files that are made of it."""
    model: ModelRef | None
    """What it is to be fused into, where that is known."""
    trained_on: ModelRef | None
    """Where the base of its training is, if that is known."""
    data: HeldOutData | None
    precision: Precision
    base_name: str | None = None
    """What others call the base, where `model` was brought here."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person says of an adapter."""

    adapter: str
    checkpoint: str | None = None
    model: str | None = None
    data: Path | None = None
    redis_url: str | None = None
    store_url: str | None = None


def choose_adapter(asked: Asked, needs: Need = "base") -> Chosen:
    """The adapter that is asked for; a job's is fetched, its held-out rows and its base too.

    Raises:
        NotFound: there is neither such a folder nor such a name or job.
        Conflict: the job has no adapter (yet), or its base is not what it was and the store has none.
    """
    from graft_scheduler.checkpoints import parse_which
    from graft_scheduler.errors import InvalidInput, NotFound

    which = None if asked.checkpoint is None else parse_which(asked.checkpoint)
    folder = Path(asked.adapter).expanduser()
    if folder.is_dir():
        if which is not None:
            raise InvalidInput(f"`--checkpoint` is of a job, and {asked.adapter} is a folder; leave it out")
        return _of_folder(folder, asked, needs)
    if "/" in asked.adapter:
        raise NotFound(f"there is no folder {asked.adapter}")
    with connect(asked.redis_url, store_url=asked.store_url) as client:
        return _of_service(client, asked, which, needs)


def adapter_folder(
    text: str, checkpoint: str | None = None, redis_url: str | None = None, store_url: str | None = None
) -> Path:
    """The folder of an adapter alone: one that is here, else that of a name or a job, brought here.

    Raises:
        NotFound: it is neither.
    """
    asked = Asked(text, checkpoint, redis_url=redis_url, store_url=store_url)
    return choose_adapter(asked, "nothing").folder


def _of_folder(folder: Path, asked: Asked, needs: Need) -> Chosen:
    from graft_scheduler.hyperparameters import Precision

    named = folder.absolute()
    name = named.parent.name if named.name in ADAPTER_NAMES else named.name
    found = None
    if needs != "nothing" and asked.model is None:
        found = _base_of_folder(folder, asked, needs)
    base, base_name = found or (None, None)
    model = _named(asked.model) or base
    return Chosen(folder, name, model, base, _given(asked.data), Precision.AUTO, base_name)


def _base_of_folder(folder: Path, asked: Asked, needs: Need) -> tuple[ModelRef, str] | None:
    """The store's copy of the base whose digest is in the adapter's card, and its name; a hub id needs none.

    Raises:
        NotFound: it was a folder, and the store has no copy.
    """
    from graft_scheduler.cards import is_hub_id, read_card
    from graft_scheduler.errors import GraftError, NotFound
    from graft_scheduler.jobs import ModelRef

    card = read_card(folder)
    if card is None or is_hub_id(card.base.name):
        return None
    remedy = "`--model` names it where it is now"
    if card.base.digest is None:
        raise NotFound(f"the adapter in {folder} was trained on a folder called `{card.base.name}`; {remedy}")
    if needs == "base":
        out.note(f"bringing {card.base.name} from the store")
    try:
        with connect(asked.redis_url, store_url=asked.store_url) as client:
            brought = _bring_base(client, card.base.digest, needs)
    except GraftError as error:
        raise NotFound(
            f"the adapter in {folder} was trained on a folder called `{card.base.name}`, which cannot be "
            f"had from the store ({error}); {remedy}"
        ) from error
    return ModelRef(source=str(brought), digest=card.base.digest), card.base.name


def _of_service(client: Client, asked: Asked, which: Which | None, needs: Need) -> Chosen:
    from graft_scheduler.cards import ADAPTER_FILES, public_name
    from graft_scheduler.errors import InvalidInput, NotFound
    from graft_scheduler.jobs import TrainJob

    try:
        found = client.adapters.find(asked.adapter, which)
    except NotFound as error:
        if which is not None:
            raise
        raise NotFound(f"there is no folder {asked.adapter}, and no adapter of that name: {error}") from error
    only = None if found.what == "adapter" else ADAPTER_FILES
    folder = client.store().cached_folder(found.digest, f"{found.what}s", only)
    name = _name(asked.adapter, found)
    try:
        spec = client.get(found.job).spec
    except NotFound:  # a name outlives the record of its job
        return replace(_of_folder(folder, asked, needs), name=name)
    if not isinstance(spec, TrainJob):
        raise InvalidInput(f"job {found.job} is no training")
    model = _named(asked.model)
    if needs == "nothing" or (needs == "config" and model is not None):
        return Chosen(folder, name, model, None, None, spec.precision)
    if needs == "config":
        is_local = spec.model.digest is not None
        base_name = public_name(spec.model.source, is_local=True) if is_local else None
        return Chosen(folder, name, _config_of_job(client, spec), None, None, spec.precision, base_name)
    base = _base_beside(client, spec, model) if model is not None else base_of_job(client, spec)
    rows = _given(asked.data, spec) or _held_out(client, spec)
    return Chosen(folder, name, model or base, base, rows, spec.precision)


def _name(asked: str, found: Found) -> str:
    """A name as it is; of a job's checkpoint the step too."""
    if asked in found.tags:
        return asked
    return found.job if found.what == "adapter" else f"{found.job}-step-{found.step}"


def _named(model: str | None) -> ModelRef | None:
    from graft_scheduler.jobs import ModelRef

    return None if model is None else ModelRef(source=model)


def _given(data: Path | None, spec: TrainJob | None = None) -> HeldOutData | None:
    from graft_scheduler.exports import HeldOutData

    if data is None:
        return None
    if spec is None:
        return HeldOutData(path=str(data), name=data.name)
    return HeldOutData(
        path=str(data), name=data.name, mask_prompt=spec.data.mask_prompt, max_length=spec.max_length
    )


def base_of_job(client: Client, spec: TrainJob) -> ModelRef:
    """The job's base: its folder where that is here and what it was, else the store's copy, or a hub id.

    Raises:
        Conflict: the folder is not what it was, and the store has no copy.
    """
    from graft_scheduler.errors import Conflict, StoreError
    from graft_scheduler.store.digests import is_folder_of

    digest, source = spec.model.digest, spec.model.source
    if digest is None:
        return spec.model
    folder = Path(source).expanduser()
    if is_changed := folder.is_dir():
        if is_folder_of(folder, digest):
            return spec.model
        out.note(f"{source} is not what the job was trained on: its files have changed since")
    out.note(f"bringing {source} from the store")
    try:
        brought = _bring_base(client, digest, "base")
    except StoreError as error:
        if not is_changed:
            raise
        raise Conflict(
            f"{source} is not the base that the job was trained on: its files have changed since, and the "
            f"store has no copy ({error}); `--model` names another"
        ) from error
    return spec.model.model_copy(update={"source": str(brought)})


def _config_of_job(client: Client, spec: TrainJob) -> ModelRef | None:
    """A folder with the config of the job's base; a hub id and revision are in the adapter's own record."""
    from graft_scheduler.errors import GraftError

    if spec.model.digest is None:
        return None
    try:
        brought = _bring_base(client, spec.model.digest, "config")
    except GraftError:  # then it is here, or whoever reads it says that it is not
        return spec.model
    return spec.model.model_copy(update={"source": str(brought)})


def _bring_base(client: Client, digest: Digest, needs: Need) -> Path:
    store = client.store()
    if needs == "config":
        return store.cached_folder(digest, "configs", {"config.json"})
    return store.cached_folder(digest, "models")


def _base_beside(client: Client, spec: TrainJob, model: ModelRef) -> ModelRef | None:
    """The job's base, to compare with, where a person names what to fuse into: perhaps the same elsewhere."""
    from graft_scheduler.errors import GraftError
    from graft_scheduler.store.digests import is_folder_of

    folder = Path(model.source).expanduser()
    if spec.model.digest is not None and folder.is_dir() and is_folder_of(folder, spec.model.digest):
        return spec.model.model_copy(update={"source": model.source})
    try:
        return base_of_job(client, spec)
    except GraftError as error:
        out.warning(f"the base that it was trained on cannot be had to compare with: {error}")
        return None


def _held_out(client: Client, spec: TrainJob) -> HeldOutData | None:
    """The rows that the job held out, if the store still has its data."""
    from graft_scheduler.cards import public_name
    from graft_scheduler.errors import GraftError
    from graft_scheduler.exports import HeldOutData

    if spec.data.digest is None:
        return None
    try:
        folder = client.store().cached_folder(spec.data.digest)
    except GraftError as error:
        out.warning(f"the job's data cannot be had ({error}); `--data` names rows to check with")
        return None
    return HeldOutData(
        path=str(folder),
        name=spec.data.version or public_name(spec.data.source, is_local=False),
        format=spec.data.format,
        mask_prompt=spec.data.mask_prompt,
        max_length=spec.max_length,
        valid_fraction=spec.data.valid_fraction,
        seed=spec.seed,
    )
