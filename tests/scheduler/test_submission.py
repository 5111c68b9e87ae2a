"""What a base shows to be impossible before anything is queued, and what is written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler import token_counts
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import ModelRef, TrainJob
from graft_scheduler.submission import Resolved, check, held_commit, resolve
from graft_scheduler.token_counts import TEMPLATE_TOKENS


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


def resolved(tmp_path: Path, train: list[int], valid: list[int] | None = None, **settings: Any) -> Resolved:
    """A job on rows of so many bytes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, sizes in (("train", train), ("valid", valid or [])):
        lines = [json.dumps({"text": "x" * (size - len('{"text": ""}') - 1)}) + "\n" for size in sizes]
        if lines:
            (folder / f"{name}.jsonl").write_text("".join(lines))
    base = make_base(tmp_path / "base", None)
    return resolve(TrainJob.model_validate({"model": str(base), "data": str(folder), **settings}))


def test_the_automatic_batch_is_written_out_by_the_data(tmp_path: Path) -> None:
    assert resolved(tmp_path, [1024] * 2000).spec.batch_size == 32


def test_a_batch_that_a_person_names_stays(tmp_path: Path) -> None:
    assert resolved(tmp_path, [1024] * 2000, batch_size=3).spec.batch_size == 3


def test_no_row_is_taken_for_shorter_than_it_can_be(tmp_path: Path) -> None:
    found = resolved(tmp_path, [100, 200], [900], max_length=2048)

    assert found.lengths.longest == 900 + TEMPLATE_TOKENS
    assert (found.lengths.rows, found.valid_rows) == (2, 1)
    assert not found.lengths.is_counted


def test_time_counts_rows_as_they_probably_are(tmp_path: Path) -> None:
    found = resolved(tmp_path, [100, 200, 40_000], [100], max_length=512)

    assert found.likely_lengths.tokens == (25, 50, 512)
    assert found.lengths.tokens[0] == 100 + TEMPLATE_TOKENS


def test_time_counts_the_tokens_of_each_row_that_trains_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_counts, "_encoder", lambda folder: lambda texts: [len(one) for one in texts])

    found = resolved(tmp_path, [100, 200, 300], [900], max_length=2048)

    extra = TEMPLATE_TOKENS + 2 * token_counts.TURN_TOKENS - len('{"text": ""}\n')
    assert found.likely_lengths.tokens == (100 + extra, 200 + extra, 300 + extra)
    assert found.lengths.longest == 900 + extra
    assert found.likely_lengths.is_counted


def test_rows_that_are_held_out_are_not_trained_on(tmp_path: Path) -> None:
    found = resolved(tmp_path, [100] * 100)

    assert (found.lengths.rows, found.valid_rows) == (90, 10)


@pytest.mark.parametrize(
    ("revision", "cached", "commit"),
    [
        (None, ["org/a", "org/a@111", "org/ab@222"], "111"),
        (None, ["org/a@111", "org/a@222"], None),
        ("22", ["org/a@111", "org/a@222"], "222"),
        (None, ["org/b@111", "sha256:abc"], None),
    ],
)
def test_a_base_that_its_submitter_may_not_have_is_taken_at_the_one_commit_that_hosts_have(
    revision: str | None, cached: list[str], commit: str | None
) -> None:
    assert held_commit(ModelRef(source="org/a", revision=revision), cached) == commit
