"""The card of a model that was made of an adapter: the adapter's own, and what was asked of the model."""

from __future__ import annotations

from pathlib import Path

from graft_scheduler.basemodels import looks_like_path
from graft_scheduler.cards import BaseCard, What, derived_card, public_name, read_card, write_card
from graft_scheduler.exports import Fidelity
from graft_scheduler.licences import find_licence
from graft_worker.engine.adapter_source import AdapterSource


def write_fused_card(folder: Path, source: AdapterSource, what: What, form: str, fidelity: Fidelity) -> None:
    """Into the folder of the model."""
    own, base = read_card(source.folder), base_card(source)
    method, check = source.method.value, fidelity.model_dump()
    write_card(folder, derived_card(own, what, base, method, form=form, check=check))


def base_card(source: AdapterSource) -> BaseCard:
    """What is fused into, as it is called elsewhere."""
    own = read_card(source.folder)
    if own is not None and source.is_own_base:
        return own.base
    name, folder = source.target_name, source.target
    is_local = looks_like_path(name)
    revision = None if is_local or folder.parent.name != "snapshots" else folder.name
    return BaseCard(
        name=public_name(name, is_local=is_local), revision=revision, licence=find_licence(folder)
    )
