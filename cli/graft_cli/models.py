"""`graft model`: which bases the hosts have on their disks, and having them fetched, removed and kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.amounts import age, size
from graft_cli.asking import confirmed
from graft_cli.options import AsJson, RedisUrl, StoreUrl, connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.holdings.handle import Asked
    from graft_scheduler.holdings.values import HeldModel, Holding, Wish

app = typer.Typer(
    help="Bases on the hosts' disks: list, fetch ahead, remove, keep.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A hub id, perhaps with @COMMIT; a digest; or the folder it was."),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="HOST", help="Only this host, by name or id; may be given several times."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until all hosts have answered.")]
WaitTimeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0, help="Stop waiting after this; the hosts go on."),
]
HEADER = ("MODEL", "FROM", "SIZE", "HOSTS", "USED", "PINNED")
WISHES_HEADER = ("HOST", "ASKED", "MODEL", "STATE", "DETAIL")
DIGITS = 12
"""Of a digest or a commit that are shown."""


@app.command()
def ls(hosts: Hosts = None, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """List the bases on the hosts' disks, and what hosts are doing with them."""
    with connect(redis_url) as client:
        holdings = client.models.ls(hosts or ())
    if as_json:
        out.json([_as_json(one) for one in holdings])
        return
    rows = _rows(holdings)
    if rows:
        out.table(HEADER, rows, shrink=(1, 3))
    else:
        out.note("no host has a base on its disk")
        out.hint("`graft model pull MODEL` has hosts fetch one before jobs need it")
    wishes = [
        _wish(one.host.info.name, wish)
        for one in holdings
        for wish in one.wishes
        if not wish.state.is_over or wish.state.value == "failed"
    ]
    if wishes:
        out.data("")
        out.table(WISHES_HEADER, wishes, shrink=(2, 4))


@app.command()
def pull(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A hub id, perhaps with @REVISION, or a folder here.")
    ],
    hosts: Hosts = None,
    wait: Wait = False,
    timeout: WaitTimeout = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Have hosts fetch a base before jobs need it; a folder goes into the store first."""
    with connect(redis_url, store_url=store_url) as client:
        asked = client.models.pull(model, client.store, hosts or ())
        _finish(client.models.wait(asked, timeout) if wait else asked, wait=wait, as_json=as_json)


@app.command()
def rm(
    model: ModelArgument,
    hosts: Hosts = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = False,
    timeout: WaitTimeout = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Free the hosts' disks of a base; refused while it is in use, pinned, or not fetched by Graft."""
    with connect(redis_url) as client:
        found = client.models.meant(model, hosts or ())
        what = ", ".join(
            f"{short(held.name)} ({size(held.bytes)}) from {host.info.name}" for host, held in found
        )
        if not yes and not confirmed(f"Remove {what}?"):
            raise typer.Exit
        asked = client.models.remove(model, hosts or ())
        _finish(client.models.wait(asked, timeout) if wait else asked, wait=wait, as_json=as_json)


@app.command()
def pin(
    model: ModelArgument, hosts: Hosts = None, as_json: AsJson = False, redis_url: RedisUrl = None
) -> None:
    """Keep a base on the hosts that have it, whatever room others need."""
    with connect(redis_url) as client:
        pinned = [(host.info.name, name) for host, name in client.models.pin(model, hosts or ())]
    _tell_pins(pinned, as_json=as_json)
    out.hint(f"`graft model unpin {model}` ends that")


@app.command()
def unpin(
    model: ModelArgument, hosts: Hosts = None, as_json: AsJson = False, redis_url: RedisUrl = None
) -> None:
    """Let hosts evict a base again when others need the room."""
    with connect(redis_url) as client:
        unpinned = [(host.info.name, name) for host, name in client.models.unpin(model, hosts or ())]
    _tell_pins(unpinned, as_json=as_json)


def short(name: str) -> str:
    """The name of a model with as much of its digest or commit as tells it from others."""
    stem, separator, digits = name.rpartition(":" if name.startswith("sha256:") else "@")
    return f"{stem}{separator}{digits[:DIGITS]}" if separator else name


def progress(wish: Wish) -> str:
    """How far a wish is, or why it failed."""
    if wish.total_bytes and not wish.state.is_over:
        return f"{size(wish.brought_bytes)} of {size(wish.total_bytes)}"
    return wish.text


def _wish(host: str, wish: Wish) -> tuple[str, ...]:
    return host, wish.action.value, short(wish.model), wish.state.value, progress(wish)


def _finish(asked: Sequence[Asked], *, wait: bool, as_json: bool) -> None:
    from graft_cli.exits import ExitCode
    from graft_scheduler.holdings.values import WishState

    if as_json:
        out.json([{"host": one.host.info.name, **one.wish.model_dump(mode="json")} for one in asked])
    else:
        out.table(WISHES_HEADER, [_wish(one.host.info.name, one.wish) for one in asked], shrink=(2, 4))
    if not wait:
        out.hint("`graft model ls` shows how far they are; `--wait` stays until they have done it")
    elif any(one.wish.state is WishState.FAILED for one in asked):
        raise typer.Exit(ExitCode.JOB_FAILED)


def _tell_pins(pins: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    if as_json:
        out.json([{"host": host, "model": name} for host, name in pins])
        return
    for host, name in pins:
        out.data(f"{host}  {name}")


def _rows(holdings: Sequence[Holding]) -> list[tuple[str, ...]]:
    """One for each model, the most recently used first."""
    found: dict[str, list[tuple[Holding, HeldModel]]] = {}
    for holding in holdings:
        for held in holding.models:
            found.setdefault(held.name, []).append((holding, held))
    newest = sorted(found.values(), key=lambda places: -max(held.used_at for _, held in places))
    return [_row(places) for places in newest]


def _row(places: Sequence[tuple[Holding, HeldModel]]) -> tuple[str, ...]:
    models = [held for _, held in places]
    name = models[0].name
    pinned = [holding.host.info.name for holding, held in places if held.name in holding.pins]
    source = next((held.source for held in models if held.source), "")
    return (
        short(name),
        source if source != name.partition("@")[0] else "hub",
        size(max(held.bytes for held in models)),
        ", ".join(_host(holding, held) for holding, held in places),
        age(time.time() - max(held.used_at for held in models)),
        ", ".join(pinned) or "-",
    )


def _host(holding: Holding, held: HeldModel) -> str:
    """Its name, with what keeps the model there."""
    name = holding.host.info.name
    if not held.is_whole:
        return f"{name} (in part)"
    if held.is_in_use:
        return f"{name} (in use)"
    return name if held.is_ours else f"{name} (its owner's)"


def _as_json(holding: Holding) -> dict[str, object]:
    return {
        "host": holding.host.info.name,
        "host_id": holding.host.info.id,
        "is_alive": holding.host.is_alive,
        "free_disk_bytes": holding.host.info.free_disk_bytes,
        "no_access": list(holding.host.info.no_access),
        "models": [
            {**held.model_dump(mode="json"), "is_pinned": held.name in holding.pins}
            for held in holding.models
        ],
        "pins": sorted(holding.pins),
        "wishes": [wish.model_dump(mode="json") for wish in holding.wishes],
    }
