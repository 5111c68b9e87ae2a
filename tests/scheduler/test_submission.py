"""What a base shows to be impossible before anything is queued, and what is written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.data.rows import Row
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import DataFormat, ModelRef, TrainJob
from graft_scheduler.rendering import encode, open_tokenizer
from graft_scheduler.submission import Resolved, check, held_commit, resolve
from graft_scheduler.token_counts import TEMPLATE_TOKENS, RowFile, TokenCounts, count_tokens
from tests.scheduler.rendering.families import FAMILIES, write

BASE_CONFIG = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 32}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a row"}\n' * 4)
    return path


def make_base(folder: Path, quantization: dict[str, int] | None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**BASE_CONFIG, "quantization": quantization}))
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
        texts = (f"{name}{number}".ljust(size - 13, "x") for number, size in enumerate(sizes))
        if lines := [json.dumps({"text": text}) + "\n" for text in texts]:
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


def test_rows_are_counted_as_they_will_be_trained(tmp_path: Path) -> None:
    chats = [[("user", "Hi"), ("assistant", "Paris " * count)] for count in (1, 30, 5, 12)]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]} for turns in chats]
    data = tmp_path / "data"
    data.mkdir()
    for name, some in (("train", rows[:3]), ("valid", rows[3:])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    base = write(FAMILIES["qwen2.5"], make_base(tmp_path / "base", None))
    (base / "config.json").write_text(json.dumps({**BASE_CONFIG, "model_type": "qwen2"}))

    found = resolve(TrainJob.model_validate({"model": str(base), "data": str(data), "max_length": 4096}))

    tokenizer = open_tokenizer(base)
    exact = [len(encode(tokenizer, DataFormat.CHAT, row).tokens) for row in rows]
    assert found.likely_lengths.tokens == tuple(sorted(exact[:3]))
    assert found.lengths.longest == max(exact)
    assert found.likely_lengths.is_counted


def test_a_chat_that_the_template_refuses_counts_for_nothing(tmp_path: Path) -> None:
    folder = write(FAMILIES["gemma2"], tmp_path / "base")
    refused = [{"role": "system", "content": "long " * 400}, {"role": "assistant", "content": "x"}]
    taken = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]
    rows = [Row(line, {"messages": messages}) for line, messages in enumerate((refused, taken), 1)]
    file = RowFile(rows.__getitem__, [2100, 100], DataFormat.CHAT)

    counts = count_tokens(file, folder, seed=0)
    nothing = count_tokens(RowFile(rows.__getitem__, [2100], DataFormat.CHAT), folder, seed=0)

    taken_tokens = len(encode(open_tokenizer(folder), DataFormat.CHAT, rows[1].fields).tokens)
    assert counts == TokenCounts([taken_tokens], [taken_tokens])
    assert nothing is None


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
