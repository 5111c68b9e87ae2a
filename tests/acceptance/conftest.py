"""A tiny random base and its data, for jobs that truly train."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-block Llama with a tokenizer of bytes."""
    pytest.importorskip("mlx.core", reason="MLX is not installed: nothing is trained")
    from tests.worker.engine.tiny import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("base")
    make_model(folder)
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short texts in one JSONL file."""
    from tests.worker.engine.tiny import text_rows, write_rows

    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", text_rows(40))
