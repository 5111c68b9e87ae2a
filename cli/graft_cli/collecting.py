"""`graft gc`: what the store holds for nobody, and its removal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.amounts import size
from graft_cli.asking import confirmed
from graft_cli.options import AsJson, RedisUrl, StoreUrl, connect
from graft_cli.output import out
from graft_cli.tune import seconds_of

if TYPE_CHECKING:
    from graft_scheduler.garbage import Collected, Garbage

HEADER = ("KIND", "COUNT", "BLOBS", "SIZE")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="Spare what was stored since: 1d, 12h.")
    ] = "1d",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Remove from the store what no job, study, data set or name refers to."""
    seconds = seconds_of("--older-than", older_than)
    assert seconds is not None  # there is a default
    with connect(redis_url, store_url=store_url) as client:
        garbage = client.find_garbage(seconds)
        if not as_json:
            tell_garbage(garbage)
        if dry_run:
            _end_dry_run(garbage, as_json=as_json)
            return
        question = f"Remove {len(garbage.blobs)} blobs, {size(garbage.bytes)}?"
        if garbage.blobs and not yes and not confirmed(question):
            raise typer.Exit
        collected = client.remove_garbage(garbage)
    if as_json:
        out.json(_as_json(garbage, collected))
        return
    if collected.blobs:
        out.note(f"removed {collected.blobs} blobs, {size(collected.bytes)}")
    if collected.spared:
        out.note(f"{collected.spared} were renewed or gone meanwhile")
    if collected.abandoned:
        out.note(f"removed {collected.abandoned} uploads that nobody went on with")


def tell_garbage(garbage: Garbage) -> None:
    """What would go, by kind, and what stays."""
    if garbage.shares:
        rows = [(one.kind, str(one.count), str(one.blobs), size(one.bytes)) for one in garbage.shares]
        out.table(HEADER, [*rows, ("all", "", str(len(garbage.blobs)), size(garbage.bytes))])
    else:
        out.note("the store holds nothing to remove")
    young = f"; {garbage.young_blobs} are too young to tell" if garbage.young_blobs else ""
    out.note(f"{garbage.kept_blobs} blobs, {size(garbage.kept_bytes)}, are in use{young}")


def _end_dry_run(garbage: Garbage, *, as_json: bool) -> None:
    if as_json:
        out.json(_as_json(garbage, None))
    elif garbage.blobs:
        out.hint("`graft gc` removes it")


def _as_json(garbage: Garbage, collected: Collected | None) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "kinds": [asdict(one) for one in garbage.shares],
        "blobs": len(garbage.blobs),
        "bytes": garbage.bytes,
        "kept_blobs": garbage.kept_blobs,
        "kept_bytes": garbage.kept_bytes,
        "young_blobs": garbage.young_blobs,
        "removed": None if collected is None else asdict(collected),
    }
