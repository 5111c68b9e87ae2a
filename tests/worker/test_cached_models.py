"""Which models a host says it holds: whole ones, by the names that jobs use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graft_worker.cached_models import MAX_MODELS, cached_models, hub_cache

DIGEST = "ab" * 32
REVISION = "0123abcd" * 5


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("x")


def hub_model(hub: Path, revision: str = REVISION, *files: str, main: bool = True) -> Path:
    repository = hub / "models--org--my--model"
    write(repository / "snapshots" / revision, *files)
    if main:
        write(repository / "refs")
        (repository / "refs" / "main").write_text(revision)
    return repository


def test_models_of_the_store_are_named_by_their_digests(tmp_path: Path) -> None:
    write(tmp_path / "models" / DIGEST, "model.safetensors")
    write(tmp_path / "models" / f".{DIGEST}.partial", "model.safetensors")
    write(tmp_path / "data" / DIGEST, "train.jsonl")

    assert cached_models(tmp_path, tmp_path / "hub") == (f"sha256:{DIGEST}",)


def test_a_model_of_the_hub_is_named_with_its_revision_and_without_if_it_is_the_newest(
    tmp_path: Path,
) -> None:
    hub_model(tmp_path, REVISION, "config.json", "model.safetensors")
    hub_model(tmp_path, "older", "config.json", "model.safetensors", main=False)

    assert cached_models(tmp_path, tmp_path) == (
        "org/my--model",
        f"org/my--model@{REVISION}",
        "org/my--model@older",
    )


@pytest.mark.parametrize(
    "files",
    [
        ("config.json", "model.safetensors.index.json"),
        ("config.json", "model-00001-of-00002.safetensors"),
        (),
    ],
)
def test_a_model_that_is_not_whole_is_not_held(tmp_path: Path, files: tuple[str, ...]) -> None:
    hub_model(tmp_path, REVISION, *files)

    assert cached_models(tmp_path, tmp_path) == ()


def test_a_weight_file_whose_content_is_gone_is_not_held(tmp_path: Path) -> None:
    repository = hub_model(tmp_path, REVISION, "config.json")
    (repository / "snapshots" / REVISION / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")

    assert cached_models(tmp_path, tmp_path) == ()


def test_the_newest_models_are_told_when_there_are_many(tmp_path: Path) -> None:
    for number in range(MAX_MODELS + 5):
        folder = tmp_path / "models" / f"{number:064x}"
        write(folder)
        os.utime(folder, (number, number))

    found = cached_models(tmp_path, tmp_path)

    assert len(found) == MAX_MODELS
    assert f"sha256:{4:064x}" not in found
    assert f"sha256:{5:064x}" in found


def test_the_hubs_folder_is_found_as_its_library_finds_it() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/a"}) == Path("/a")
    assert hub_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert hub_cache({}) == Path("~/.cache/huggingface/hub").expanduser()
