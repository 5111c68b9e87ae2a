"""`graft fuse` and `graft export` as a person types them, with the real process behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Graft

pytest.importorskip("mlx.core", reason="MLX is not installed: nothing is fused")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, rows, and an adapter that was trained on them."""
    import graft_worker
    from graft_scheduler.jobs import TrainJob
    from tests.worker.engine.tiny import make_model, make_tokenizer, text_rows, write_rows

    folder = tmp_path_factory.mktemp("lab")
    (folder / "base").mkdir()
    make_model(folder / "base")
    make_tokenizer(folder / "base")
    rows = write_rows(folder / "rows.jsonl", text_rows(12))
    settings = {"model": str(folder / "base"), "data": str(rows), "steps": 4, "adapter": {"rank": 4}}
    graft_worker.train(TrainJob.model_validate(settings), folder / "sql", tell=lambda message: None)
    return folder


@pytest.mark.processes
def test_a_fuse_shows_its_figures_and_names_the_output_after_the_adapter(
    graft: Graft, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = str(lab / "sql" / "adapter")

    base = str(lab / "base")

    unnamed = graft("fuse", adapter)
    run = graft("fuse", adapter, "-m", base, "--data", str(lab / "rows.jsonl"))

    assert unnamed.code == 3
    assert "was trained on a folder called `base`; `--model` names it where it is now" in unnamed.stderr
    assert run.code == 0
    assert "which is not here to compare with" not in run.stderr
    assert "tokens of the rows of rows.jsonl" in run.stdout
    assert (tmp_path / "fused" / "sql" / "model.safetensors").exists()
    lines = run.stdout.splitlines()
    assert lines[0] == "fuse"
    assert any(line.split()[0] == "kept" and "of the tuning" in line for line in lines)
    assert [line.split()[0] for line in lines[-4:]] == ["MODEL", "base", "adapted", "fused"]
    assert "graft generate -m fused/sql" in run.stderr
    sent = graft("push-hub", "fused/sql", "--repo", "lab/sql", "--dry-run").stdout
    assert "base_model_relation: finetune" in sent
    assert "| kept of the tuning |" in sent
    assert "| compared on | " in sent
    assert "| validation loss |" in sent
    told = sent + (tmp_path / "fused" / "sql" / "graft.json").read_text()
    assert str(lab) not in told


@pytest.mark.processes
def test_exports_are_what_they_are_asked_to_be(
    graft: Graft, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter, rows = str(lab / "sql" / "adapter"), str(lab / "rows.jsonl")

    words = ("export", adapter, "-m", str(lab / "base"), "--json", "--to")
    quantised = graft(*words, "mlx-quantized", "--bits", "8", "--group-size", "32", "-d", rows)
    peft = graft(*words, "peft")

    assert quantised.code == 0
    assert quantised.json["report"]["form"] == "8 bits in groups of 32 (affine)"
    assert quantised.json["report"]["fidelity"]["quantized_loss"] > 0
    assert (tmp_path / "exports" / "sql-mlx-quantized" / "config.json").exists()
    assert peft.json["output"] == "exports/sql-peft"
    config = json.loads((tmp_path / "exports" / "sql-peft" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 4 * 20
    assert config["base_model_name_or_path"] == "base"
    cards = {
        form: json.loads((tmp_path / "exports" / f"sql-{form}" / "graft.json").read_text())
        for form in ("mlx-quantized", "peft")
    }
    assert {form: card["what"] for form, card in cards.items()} == {
        "mlx-quantized": "quantised",
        "peft": "peft",
    }
    assert cards["mlx-quantized"]["check"]["quantized_loss"] > 0
    assert cards["peft"]["figures"]["trainable_parameters"] > 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("fuse", "./none"), 3, "there is no folder ./none"),
        (("fuse", "{adapter}", "--dequantize", "--keep-quantized"), 2, "exclude each other"),
        (("fuse", "{adapter}", "--dtype", "int4"), 2, "`--dtype` is 'int4'; it must be one of auto"),
        (("export", "{adapter}", "--to", "onnx"), 2, "`--to` is 'onnx'; it must be one of peft, gguf"),
        (("export", "{adapter}", "--to", "mlx-quantized", "-m", "{base}", "--bits", "1"), 2, "bits"),
        (("export", "{adapter}", "--to", "mlx-quantized", "-m", "{base}", "--mode", "int4"), 2, "mode"),
        (("push-hub", "./none", "--repo", "a/b"), 3, "there is no folder ./none"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    graft: Graft, lab: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    run = graft(*(word.format(adapter=lab / "sql" / "adapter", base=lab / "base") for word in words))

    assert run.code == code
    assert said in run.stderr
    assert run.stdout == ""
