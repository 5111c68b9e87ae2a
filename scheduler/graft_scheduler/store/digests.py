"""The digest that a store would give, without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from graft_scheduler.errors import InvalidInput
from graft_scheduler.states import Digest
from graft_scheduler.store.depots import Source
from graft_scheduler.store.manifest import build_entry, build_manifest, list_folder


def digest_of_files(files: Mapping[str, Path]) -> Digest:
    """The one that `Store.put_files` returns for these.

    Raises:
        InvalidInput: as there.
    """
    sources = ((name, Source.of_file(path)) for name, path in files.items())
    entries = [build_entry(name, source.size, source.digest) for name, source in sources]
    return Source.of_bytes(build_manifest(entries).encode()).digest


def is_folder_of(folder: Path, digest: Digest) -> bool:
    """Whether the files of `folder` are those that a store has under `digest`; reads them all."""
    try:
        return digest_of_files(list_folder(folder)) == digest
    except InvalidInput:  # such as no store would have taken
        return False
