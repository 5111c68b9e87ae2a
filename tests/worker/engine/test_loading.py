"""Models that cannot be loaded are refused in one line; the dtype is what was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from graft_scheduler.hyperparameters import Precision
from graft_scheduler.jobs import ModelRef
from graft_scheduler.states import FailureClass
from graft_worker.engine import loading
from graft_worker.engine.loading import load_base
from graft_worker.link import JobError
from tests.worker.engine.tiny import make_model, make_tokenizer


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A model folder of this test's own."""
    return shutil.copytree(base, tmp_path / "copy")


def refusal(folder: Path) -> JobError:
    with pytest.raises(JobError) as error:
        load_base(ModelRef(source="a model"), folder, Precision.AUTO)
    assert error.value.failure is FailureClass.CONFIG
    return error.value


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_folder_without_a_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()

    assert "has no config.json" in refusal(copy).text


def test_an_unknown_architecture_is_refused(copy: Path) -> None:
    change_config(copy, model_type="gru")

    assert "Model type gru not supported" in refusal(copy).text


def test_a_model_with_code_of_its_own_is_refused(copy: Path) -> None:
    change_config(copy, model_file="model.py")

    assert "trust_remote_code" in refusal(copy).text


def test_missing_and_truncated_weights_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])

    assert "cannot be loaded" in refusal(copy).text

    weights.unlink()

    assert "No safetensors found" in refusal(copy).text


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    change_config(copy, hidden_size=64)

    assert "cannot be loaded" in refusal(copy).text


def test_a_name_that_is_neither_a_folder_nor_a_hub_id_is_refused() -> None:
    with pytest.raises(JobError, match=r"the model folder \./no/such/folder does not exist") as error:
        load_base(ModelRef(source="./no/such/folder"), None, Precision.AUTO)

    assert error.value.failure is FailureClass.CONFIG


def test_a_hub_that_does_not_answer_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(*arguments: object, **options: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(loading, "snapshot_download", no_answer)

    with pytest.raises(JobError, match="does not answer") as error:
        load_base(ModelRef(source="somebody/model"), None, Precision.AUTO)

    assert error.value.failure is FailureClass.STORE


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [(Precision.AUTO, "float32"), (Precision.BFLOAT16, "bfloat16"), (Precision.FLOAT32, "float32")],
)
def test_the_base_computes_in_the_precision_asked_for(
    tmp_path: Path, precision: Precision, dtype: str
) -> None:
    make_tokenizer(tmp_path)
    make_model(tmp_path)

    base = load_base(ModelRef(source=str(tmp_path)), None, precision)

    assert base.dtype == dtype
    assert base.model(mx.array([[1, 2]])).dtype == getattr(mx, dtype)
