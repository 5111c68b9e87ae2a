"""What a base shows to be impossible before anything is queued, and what is written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import TrainJob
from graft_scheduler.submission import check


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a row"}\n' * 4)
    return path


def make_base(folder: Path, quantization: dict[str, int] | None) -> Path:
    folder.mkdir()
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "vocab_size": 32,
        "quantization": quantization,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def checked(tmp_path: Path, rows: Path, bits: int | None, **settings: Any) -> TrainJob:
    quantization = None if bits is None else {"bits": bits, "group_size": 64}
    base = make_base(tmp_path / "base", quantization)
    spec = check(TrainJob.model_validate({"model": str(base), "data": str(rows), **settings})).spec
    assert isinstance(spec, TrainJob)
    return spec


@pytest.mark.parametrize(
    ("bits", "settings", "complaint"),
    [
        (4, {"method": "full"}, r"is quantised \(4 bits\); a full fine-tune needs the full-precision base"),
        (
            3,
            {"method": "dora"},
            r"is quantised \(3 bits\), and mlx-lm loads dora adapters on a base of 2, 4, 8",
        ),
        (6, {"method": "dora"}, r"is quantised \(6 bits\)"),
        (4, {"method": "qlora", "quantization": {"bits": 8}}, "`quantization` is 8 bits in groups of 64"),
        (4, {"method": "qlora", "quantization": {"group_size": 32}}, "leave `quantization` out"),
    ],
)
def test_a_method_that_does_not_fit_a_quantised_base_is_refused(
    tmp_path: Path, rows: Path, bits: int, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        checked(tmp_path, rows, bits, **settings)


@pytest.mark.parametrize(
    ("bits", "settings"),
    [
        (4, {"method": "lora"}),
        (3, {"method": "qlora"}),
        (4, {"method": "qlora", "quantization": {"bits": 4, "group_size": 64}}),
        (8, {"method": "dora"}),
        (None, {"method": "full"}),
        (None, {"method": "qlora", "quantization": {"bits": 8}}),
    ],
)
def test_a_method_that_fits_the_base_is_taken(
    tmp_path: Path, rows: Path, bits: int | None, settings: dict[str, Any]
) -> None:
    assert checked(tmp_path, rows, bits, **settings).method == settings["method"]


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 1e-4),
        ({"method": "full", "optimizer": {"name": "sgd"}}, 1e-3),
        ({"optimizer": {"learning_rate": 0.5}}, 0.5),
    ],
)
def test_the_learning_rate_is_written_out(
    tmp_path: Path, rows: Path, settings: dict[str, Any], rate: float
) -> None:
    assert checked(tmp_path, rows, None, **settings).optimizer.learning_rate == pytest.approx(rate)
