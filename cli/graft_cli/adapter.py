"""`graft adapter`: what jobs have made, its cards, its names; `pull` is in `control`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.amounts import age, size
from graft_cli.asking import confirmed
from graft_cli.options import AdapterArgument, AsJson, CheckpointOption, RedisUrl, StoreUrl, connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.adapters import Found
    from graft_scheduler.checkpoints import Which
    from graft_scheduler.records import JobRecord

app = typer.Typer(
    help="List, describe, name or remove adapters.", no_args_is_help=True, rich_markup_mode=None
)

HEADER = ("NAME", "JOB", "WHAT", "BASE", "METHOD", "DATA", "LOSS", "SIZE", "MADE", "HOST")


@app.command()
def ls(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most adapters without a name.")] = 50,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """List adapters, the newest first."""
    with connect(redis_url) as client:
        found = client.adapters.all(limit)
    if as_json:
        out.json([one.as_json() for one in found])
    elif found:
        out.table(HEADER, [_row(one) for one in found], shrink=(0, 3, 5, 9))
    else:
        out.note("no job has made an adapter yet")
        out.hint("`graft train` trains one, `graft ps --all` lists the jobs")


@app.command()
def show(
    adapter: AdapterArgument,
    checkpoint: CheckpointOption = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Print the card of an adapter: what it was made of, how, where, and how well it does."""
    from graft_scheduler.cards import card_rows

    which = which_of(checkpoint)
    with connect(redis_url, store_url=store_url) as client:
        card = client.adapters.card(adapter, which)
    if as_json:
        out.json(card.model_dump(mode="json"))
        return
    for title, rows in card_rows(card).items():
        out.pairs(title, rows)


@app.command()
def tag(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or a name that it has already.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, `.`, `_` and `-`.")],
    checkpoint: CheckpointOption = None,
    force: Annotated[bool, typer.Option("--force", help="Move a name that something else has.")] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Give an adapter a name, under which it is kept for ever."""
    which = which_of(checkpoint)
    with connect(redis_url) as client:
        tagged = client.adapters.tag(job, name, which, force=force)
    if as_json:
        out.json(tagged.model_dump(mode="json"))
    else:
        out.data(tagged.name)
    out.hint(f"`graft pull {tagged.name}` brings it")


@app.command()
def rm(
    adapter: AdapterArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Take a name away, or remove what a job has made.

    A name goes at once. The adapter and the checkpoints of a job go out of its record after a question;
    `graft gc` frees their room later. What has a name stays under it. A job that failed or was cancelled
    begins at step 0 when it is tried again.
    """
    with connect(redis_url) as client:
        if client.adapters.is_name(adapter):
            taken = client.adapters.untag(adapter)
            out.note(f"{taken.name} names nothing any more; it was the {taken.what} of job {taken.job}")
            return
        record = client.get(adapter)
        cost = _cost(record)
        if not yes and not confirmed(f"Remove the adapter and the checkpoints of job {record.id}{cost}?"):
            raise typer.Exit
        client.adapters.remove(record.id)
    out.note(f"what job {record.id} had made is out of its record{cost}")
    out.hint("`graft gc --dry-run` shows what room that frees, after a day")


def _cost(record: JobRecord) -> str:
    """What it means for a job that could have gone on from its checkpoint."""
    if record.resume is None or record.state.value not in ("failed", "cancelled"):
        return ""
    return f"; `graft retry {record.id}` then begins at step 0"


def which_of(text: str | None) -> Which | None:
    """What `--checkpoint` means."""
    from graft_scheduler.checkpoints import parse_which

    return None if text is None else parse_which(text)


def _row(one: Found) -> tuple[str, ...]:
    return (
        ", ".join(one.tags) or "-",
        one.job,
        one.what if one.step is None else f"{one.what} {one.step}",
        one.base or "-",
        one.method,
        one.data or "-",
        "-" if one.loss is None else f"{one.loss:.4f}",
        "-" if one.bytes is None else size(one.bytes),
        "-" if one.made_at is None else age(time.time() - one.made_at),
        one.host or "-",
    )
