"""Folders that exist whole or not at all, whenever the process or the power dies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

PARTIAL_PREFIX = ".partial-"


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder aside, sync it, and rename it to `folder`, replacing what is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f"{PARTIAL_PREFIX}{folder.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        write(aside)
    except RuntimeError as error:
        if "unable to write" in str(error).lower():  # MLX's word for a full or broken disk
            raise OSError(f"{aside} cannot be written: {error}") from error
        raise
    for path in aside.rglob("*"):
        _sync(path)
    _sync(aside)
    replaced = folder.parent / f"{PARTIAL_PREFIX}replaced-{folder.name}"
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    aside.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_whole(folder: Path) -> None:
    """Remove a folder that others may be reading: to them it is there with all its files, or gone."""
    aside = folder.parent / f"{PARTIAL_PREFIX}removed-{folder.name}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        folder.rename(aside)
    except OSError:
        aside = folder
    shutil.rmtree(aside, ignore_errors=True)


def remove_partial(parent: Path) -> None:
    """Remove what an interrupted `write_whole` left in `parent`."""
    for path in parent.glob(f"{PARTIAL_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
