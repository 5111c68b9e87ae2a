"""`graft push-hub`: an adapter or a model made of it, to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from graft_cli.options import AsJson, CheckpointOption, RedisUrl, StoreUrl
from graft_cli.output import out


def push_hub(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|NAME|JOB", help="A folder of an adapter or a model, or an adapter's name or job."
        ),
    ],
    repo: Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="Is made where it is not there.")],
    checkpoint: CheckpointOption = None,
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and its card; send nothing.")
    ] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Send a folder to the Hugging Face hub, with a card.

    The token is that of HF_TOKEN or `hf auth login`.
    """
    from graft_cli.adapter_choice import adapter_folder
    from graft_scheduler.hub_push import pack, push

    folder = adapter_folder(source, checkpoint, redis_url, store_url)
    parcel = pack(folder)
    if dry_run:
        if as_json:
            out.json({"repository": repo, "kind": parcel.kind, "files": parcel.files, "card": parcel.card})
        else:
            out.data(parcel.card)
            out.note(f"{len(parcel.files)} files of {folder} would go to {repo}")
        return
    pushed = push(parcel, repo, private=private, message=message)
    if as_json:
        out.json(
            {
                "repository": pushed.repository,
                "url": pushed.url,
                "commit": pushed.commit,
                "files": pushed.files,
            }
        )
    else:
        out.data(pushed.url)
    out.note(f"{pushed.files} files in commit {pushed.commit}")
