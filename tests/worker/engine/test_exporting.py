"""Adapters fused into their bases and quantised, on tiny models that stock mlx-lm reads back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.convert import convert
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

import graft_worker
from graft_scheduler.errors import Conflict, NotAllowed
from graft_scheduler.exports import (
    ExportAnswer,
    ExportReport,
    FuseOrder,
    GgufOrder,
    Into,
    QuantiseOrder,
)
from graft_scheduler.hyperparameters import Method, Precision
from graft_scheduler.jobs import TrainJob
from graft_worker import export_command
from graft_worker.engine import model_folder
from graft_worker.engine.adapter_source import open_source
from graft_worker.engine.base_files import put_back
from graft_worker.engine.device import peak_of, prepared
from graft_worker.engine.exporting import write_fused
from graft_worker.engine.fidelity import judge
from graft_worker.engine.quantising import cost
from graft_worker.exporting import make
from graft_worker.link import JobError
from tests.worker.engine.architectures import save_architecture
from tests.worker.engine.test_peft_logits import save_base
from tests.worker.engine.tiny import make_model, make_tokenizer

MakeJob = Callable[..., TrainJob]
Order = FuseOrder | QuantiseOrder | GgufOrder
TOKENS = mx.array([[1, 40, 50, 60, 70, 80]])


def quiet(line: str) -> None:
    del line


@dataclass(frozen=True)
class Trained:
    """An adapter, and where its base is: it does not say so itself."""

    folder: Path
    base: str


def trained(job: TrainJob, folder: Path) -> Trained:
    graft_worker.train(job, folder, tell=lambda message: None)
    return Trained(folder / "adapter", job.model.source)


def order_of(kind: type[Order], adapter: Trained, output: Path, rows: Path, **changes: Any) -> Order:
    settings = {"output": str(output), "data": {"path": str(rows)}, "trained_on": {"source": adapter.base}}
    return kind.model_validate({"adapter": str(adapter.folder), **settings, **changes})


def made(kind: type[Order], adapter: Trained, output: Path, rows: Path, **changes: Any) -> ExportReport:
    return make(order_of(kind, adapter, output, rows, **changes), quiet)


def logits(model: str | Path, adapter: Path | None = None) -> mx.array:
    loaded = mlx_lm.load(str(model), adapter_path=None if adapter is None else str(adapter))[0]
    found: mx.array = loaded(TOKENS).astype(mx.float32)
    return found


def tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path in folder.glob("model*.safetensors"):
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        found |= loaded
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora", "adapter": {"rank": 8, "alpha": 16.0, "rslora": True}},
        {"method": "lora", "adapter": {"rank": "auto", "max_rank": 4}},
        {"method": "dora", "adapter": {"rank": 4, "layers": 1}},
        {"method": "full"},
    ],
)
def test_a_fused_model_says_what_the_adapted_one_says(
    base: Path, texts: Path, make_job: MakeJob, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter = trained(make_job(**settings), tmp_path / "out")

    report = made(FuseOrder, adapter, tmp_path / "fused", texts)

    assert mx.allclose(logits(tmp_path / "fused"), logits(base, adapter.folder), atol=1e-4)
    assert report.fidelity.kept is not None
    assert report.fidelity.kept > 0.999
    assert report.fidelity.adapted_loss < report.fidelity.base_loss
    assert report.fidelity.fused_loss == pytest.approx(report.fidelity.adapted_loss, abs=1e-4)
    assert tensors(tmp_path / "fused").keys() == tensors(base).keys()
    assert (tmp_path / "fused" / "tokenizer.json").exists()


def test_of_qlora_the_whole_base_is_fused_or_the_one_it_was_trained_on(
    base: Path, texts: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(method=Method.QLORA, quantization={"group_size": 32}, steps=12)
    adapter = trained(job, tmp_path / "out")

    reports = {into: made(FuseOrder, adapter, tmp_path / into, texts, into=into) for into in Into}

    kept = {into: report.fidelity.kept or 0.0 for into, report in reports.items()}
    assert kept[Into.TRAINED] > 0.9999
    assert 0.9 < kept[Into.FULL] < kept[Into.TRAINED]
    assert reports[Into.QUANTIZED].form == "4 bits in groups of 32 (affine)"
    unfused = "model.embed_tokens.weight"
    assert mx.array_equal(tensors(tmp_path / "full")[unfused], tensors(base)[unfused])
    assert not mx.array_equal(tensors(tmp_path / "trained")[unfused], tensors(base)[unfused])
    for into in Into:
        assert logits(tmp_path / into).shape == (1, 6, 262)


def test_a_small_tuning_is_lost_in_four_bits_and_refused(
    base: Path, texts: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    convert(str(base), str(tmp_path / "base4"), quantize=True, q_group_size=32, q_bits=4)
    job = make_job(
        model=str(tmp_path / "base4"),
        steps=3,
        adapter={"rank": 2, "scale": 1.0},
        optimizer={"learning_rate": 1e-3},
    )
    adapter = trained(job, tmp_path / "out")
    settings = {"into": Into.QUANTIZED}

    with pytest.raises(NotAllowed, match="keeps 0% of the tuning; at least 90% is asked for"):
        made(FuseOrder, adapter, tmp_path / "lost", texts, **settings)
    left = sorted(path.name for path in tmp_path.iterdir())
    forced = made(FuseOrder, adapter, tmp_path / "forced", texts, **settings, force=True)
    whole = made(FuseOrder, adapter, tmp_path / "whole", texts)
    original = made(FuseOrder, adapter, tmp_path / "original", texts, model={"source": str(base)}, force=True)

    assert left == ["base4", "out"]
    assert not forced.fidelity.is_kept
    assert whole.fidelity.is_kept
    assert whole.form == "float32"
    assert "quantization" not in json.loads((tmp_path / "whole" / "config.json").read_text())
    assert mx.allclose(logits(tmp_path / "whole"), logits(tmp_path / "base4", adapter.folder), atol=1e-4)
    assert original.fidelity.base_loss == whole.fidelity.base_loss  # compared with what it was trained on
    unfused = "model.embed_tokens.weight"
    assert mx.array_equal(tensors(tmp_path / "original")[unfused], tensors(base)[unfused])


def test_experts_go_back_under_the_names_and_dtype_of_the_base(
    texts: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    make_tokenizer(base)
    save_base(base, "mixtral")
    halved = {name: value.astype(mx.bfloat16) for name, value in tensors(base).items()}
    mx.save_safetensors(str(base / "model.safetensors"), halved)
    adapter = trained(make_job(model=str(base), steps=12), tmp_path / "out")

    model, _ = load_model(base, lazy=True)
    source = open_source(order_of(FuseOrder, adapter, tmp_path / "fused", texts))
    source.put(model)
    name = "model.layers.0.block_sparse_moe.switch_mlp.down_proj.weight"
    files = put_back(base, model, {name: mx.ones((4, 32, 48))})

    assert files is not None
    back = dict(files.hand_over(None))
    assert back.keys() == halved.keys()
    changed = {one for one in back if not mx.array_equal(back[one], halved[one])}
    assert changed == {f"model.layers.0.block_sparse_moe.experts.{n}.w2.weight" for n in range(4)}
    assert {array.dtype for array in back.values()} == {mx.bfloat16}


def test_a_base_of_experts_is_fused(texts: Path, make_job: MakeJob, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    make_tokenizer(base)
    save_architecture(base, "qwen3_moe")
    adapter = trained(make_job(model=str(base), steps=8), tmp_path / "out")

    report = made(FuseOrder, adapter, tmp_path / "fused", texts)

    assert report.fidelity.kept is not None
    assert report.fidelity.kept > 0.999
    assert mx.allclose(logits(tmp_path / "fused"), logits(base, adapter.folder), atol=1e-3)


def test_weights_in_half_precision_stay_so_and_keep_the_tuning(
    base: Path, texts: Path, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half"
    convert(str(base), str(half), dtype="bfloat16")
    adapter = trained(make_job(model=str(half), steps=8), tmp_path / "out")
    monkeypatch.setattr(model_folder, "SHARD_BYTES", 20_000)

    report = made(FuseOrder, adapter, tmp_path / "fused", texts)
    whole = made(FuseOrder, adapter, tmp_path / "whole", texts, dtype=Precision.FLOAT32)

    assert (report.form, whole.form) == ("bfloat16", "float32")
    assert report.size_bytes * 2 == whole.size_bytes
    assert {array.dtype for array in tensors(tmp_path / "fused").values()} == {mx.bfloat16}
    index = json.loads((tmp_path / "fused" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == report.size_bytes
    assert index["weight_map"].keys() == tensors(tmp_path / "fused").keys()
    assert len(set(index["weight_map"].values())) > 2
    assert 0.99 < (report.fidelity.kept or 0) < (whole.fidelity.kept or 0)


def test_no_more_than_a_file_of_weights_is_in_memory_while_fusing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, fused = tmp_path / "base", tmp_path / "adapter", tmp_path / "fused"
    for folder in (base, adapter, fused):
        folder.mkdir()
    make_tokenizer(base)
    make_model(base, hidden_size=256, intermediate_size=512, num_hidden_layers=16)
    model, _ = load_model(base)
    settings = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.up_proj"]}
    linear_to_lora_layers(model, 16, settings)
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(
        str(adapter / "adapters.safetensors"), {name: one for name, one in arrays.items() if "lora_" in name}
    )
    config = {"num_layers": 16, "lora_parameters": settings, "model": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    del model, arrays
    monkeypatch.setattr(model_folder, "SHARD_BYTES", 2 << 20)
    source = open_source(FuseOrder(adapter=str(adapter), output=str(fused)))

    with prepared(None):
        peak = peak_of(lambda: write_fused(source, Into.FULL, Precision.AUTO, fused, quiet))

    size = (base / "model.safetensors").stat().st_size
    assert size > 30 << 20
    assert peak < 5 << 20


def test_without_rows_it_is_checked_on_texts_of_its_own(
    base: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    adapter = trained(make_job(), tmp_path / "out")

    report = graft_worker.fuse(adapter.folder, tmp_path / "fused", model=str(base), tell=quiet)

    assert report.fidelity.is_generated
    assert report.fidelity.origin == "8 texts that the adapted model wrote itself"
    assert report.fidelity.is_kept


def test_quantising_is_measured_on_the_same_rows(
    base: Path, texts: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    adapter = trained(make_job(steps=12), tmp_path / "out")

    report = made(QuantiseOrder, adapter, tmp_path / "eight", texts, bits=8, group_size=32)
    coarse = made(QuantiseOrder, adapter, tmp_path / "two", texts, bits=2, group_size=32)

    figures, lost = report.fidelity, coarse.fidelity
    assert figures.quantized_loss is not None
    assert lost.quantized_loss is not None
    assert abs(figures.quantized_loss - figures.fused_loss) < 0.02
    assert lost.quantized_loss > figures.quantized_loss
    assert report.notes == ()
    assert "quantising raises the perplexity by" in coarse.notes[0]
    assert report.size_bytes < report.fused_bytes / 2
    assert report.form == "8 bits in groups of 32 (affine)"
    assert logits(tmp_path / "eight").shape == (1, 6, 262)
    assert not (tmp_path / "eight" / ".fused").exists()
    with pytest.raises(JobError, match="groups of 128 divide no layer"):
        made(QuantiseOrder, adapter, tmp_path / "none", texts, group_size=128)
    assert not (tmp_path / "none").exists()


def test_an_output_that_exists_or_does_not_fit_is_refused(
    base: Path, texts: Path, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(make_job(steps=1), tmp_path / "out")

    with pytest.raises(Conflict, match="exists and is not empty"):
        made(FuseOrder, adapter, base, texts)
    monkeypatch.setattr(model_folder, "SPARE_BYTES", 1 << 60)
    with pytest.raises(Conflict, match="MiB on a disk that has"):
        made(FuseOrder, adapter, tmp_path / "fused", texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_adapter_of_another_base_is_refused(texts: Path, make_job: MakeJob, tmp_path: Path) -> None:
    adapter = trained(make_job(steps=1), tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    make_tokenizer(other)
    make_model(other, hidden_size=64)

    with pytest.raises(JobError, match="does not fit the model"):
        made(FuseOrder, adapter, tmp_path / "fused", texts, model={"source": str(other)})


@pytest.mark.parametrize(
    ("tuning", "difference", "kept", "is_kept"),
    [
        (1.0, 0.05, 0.95, True),
        (1.0, 0.2, 0.8, False),
        (1e-4, 1e-3, -9.0, False),
        (1e-8, 1e-8, None, True),
        (1e-8, 1e-2, None, False),
    ],
)
def test_what_is_kept_is_judged_by_what_was_changed(
    tuning: float, difference: float, kept: float | None, is_kept: bool
) -> None:
    share, verdict = judge(tuning, difference, 1e-7)

    assert share == (None if kept is None else pytest.approx(kept))
    assert verdict is is_kept


def test_quantising_is_warned_of_by_perplexity_and_by_what_it_gives_back() -> None:
    assert cost(3.0, 1.0, 1.01) is None
    assert "by 11%" in (cost(3.0, 1.0, 1.1) or "")
    assert "gives back 20% of what the tuning gained" in (cost(1.1, 1.0, 1.02) or "")
    assert cost(1.0, 1.0, 0.99) is None


def test_the_process_answers_in_json_and_says_why_not(
    base: Path,
    texts: Path,
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = trained(make_job(steps=1), tmp_path / "out")
    order = order_of(FuseOrder, adapter, tmp_path / "fused", texts)

    def answer() -> tuple[int, ExportAnswer]:
        monkeypatch.setattr("sys.stdin", io.StringIO(order.model_dump_json()))
        code = export_command.main()
        return code, ExportAnswer.model_validate_json(capsys.readouterr().out.splitlines()[-1])

    code, done = answer()
    again, refused = answer()

    assert code == 0
    assert done.report is not None
    assert again == 7
    assert refused.report is None
    assert "exists and is not empty" in (refused.error or "")
