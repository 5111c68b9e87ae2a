"""One prompt, one answer: through the function and through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlx import nn

import graft_worker
from graft_scheduler.hyperparameters import Precision
from graft_scheduler.jobs import ModelRef, TrainJob
from graft_scheduler.states import FailureClass
from graft_worker.engine import loading
from graft_worker.engine.device import prepared
from graft_worker.engine.generate import Question, generate, put_adapter, quantization_of
from graft_worker.engine.loading import Base, load_base
from graft_worker.generate_command import main
from graft_worker.link import JobError
from tests.worker.engine.tiny import make_model, make_tokenizer, write_rows


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that learned to answer `apple`."""
    folder = tmp_path_factory.mktemp("apple")
    chats = [{"messages": [{"role": "user", "content": "fruit?"}, {"role": "assistant", "content": "apple"}]}]
    settings = {
        "model": str(base),
        "data": str(write_rows(folder / "chats.jsonl", chats * 4)),
        "batch_size": 4,
        "steps": 60,
        "adapter": {"rank": 8, "scale": 10.0},
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": {"every": 60},
    }
    graft_worker.train(TrainJob.model_validate(settings), folder / "out", tell=lambda message: None)
    return str(folder / "out" / "adapter")


def test_an_adapter_changes_the_answer_to_what_it_learned(
    base: Path, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ["--model", str(base), "--prompt", "fruit?", "--max-tokens", "12"]

    assert main(prompt) == 0
    plain = capsys.readouterr().out
    assert main([*prompt, "--adapter", adapter]) == 0
    learned = capsys.readouterr().out

    assert learned == "apple\n"
    assert plain != learned


def test_an_adapter_of_qlora_is_put_on_the_quantised_base(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "texts.jsonl", [{"text": "apple"}] * 4)
    job = TrainJob.model_validate(
        {
            "model": str(base),
            "data": str(rows),
            "method": "qlora",
            "quantization": {"bits": 4, "group_size": 32},
            "steps": 2,
            "adapter": {"rank": 4},
        }
    )
    graft_worker.train(job, tmp_path / "out", tell=lambda message: None)
    capsys.readouterr()
    loaded: list[Base] = []

    def load(*arguments: Any) -> Base:
        loaded.append(load_base(*arguments))
        return loaded[-1]

    monkeypatch.setattr(loading, "load_base", load)

    command = ["--model", str(base), "--prompt", "a", "--max-tokens", "2", "--json", "--adapter"]
    code = main([*command, str(tmp_path / "out" / "adapter")])

    assert code == 0
    assert json.loads(capsys.readouterr().out)["generation_tokens"] > 0  # mlx-lm prints of its own accord
    assert loaded[0].quantization == {"bits": 4, "group_size": 32}
    linear = loaded[0].model.layers[0].self_attn.q_proj.linear
    assert isinstance(linear, nn.QuantizedLinear)


def test_a_quantisation_that_there_is_not_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_quantization": {"bits": 5, "group_size": 32}}')

    with pytest.raises(JobError, match="does not fit the model") as error:
        quantization_of(tmp_path)

    assert error.value.failure is FailureClass.CONFIG
    assert "\n" not in error.value.text


def test_json_tells_what_the_answer_cost(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--model", str(base), "--prompt", "abc", "--max-tokens", "5", "--raw", "--json"])

    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert set(answer) == {
        "text",
        "prompt_tokens",
        "generation_tokens",
        "tokens_per_second",
        "peak_memory_bytes",
    }
    assert answer["prompt_tokens"] == 3
    assert 1 <= answer["generation_tokens"] <= 5


def test_pieces_are_told_as_they_come_and_add_up_to_the_text(base: Path) -> None:
    model = load_base(ModelRef(source=str(base)), None, Precision.AUTO)
    pieces: list[str] = []

    with prepared(None):
        answer = generate(model, Question("abc", max_tokens=8, temperature=1.0, seed=3), pieces.append)
        told = "".join(pieces)
        again = generate(model, Question("abc", max_tokens=8, temperature=1.0, seed=3), pieces.append)

    assert told == answer.text
    assert again.text == answer.text


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"num_layers": 2, "lora_parameters": {"rank": 4}}']
)
def test_a_folder_that_is_no_adapter_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)

    code = main(["--model", str(base), "--prompt", "a", "--adapter", str(tmp_path)])

    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert len(captured.err.splitlines()) == 1
    assert str(tmp_path) in captured.err


def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_tokenizer(other)
    make_model(other, hidden_size=64)

    code = main(["--model", str(other), "--prompt", "a", "--adapter", adapter])

    captured = capsys.readouterr()
    assert code == 2
    assert "does not fit the model" in captured.err
    assert len(captured.err.partition("does not fit the model: ")[2]) <= 204


def test_a_missing_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path / "none"), "--prompt", "a"]) == 2
    assert capsys.readouterr().err == f"the model folder {tmp_path / 'none'} does not exist\n"
    assert main(["--model", str(tmp_path), "--prompt", "a"]) == 2
    assert "has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--max-tokens", "0"), ("--temperature", "-1"), ("--temperature", "nan")])
def test_numbers_out_of_range_are_refused(base: Path, option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--model", str(base), "--prompt", "a", *option])

    assert leaving.value.code == 2


def test_an_empty_prompt_is_refused(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(base), "--prompt", "", "--raw"]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_an_adapter_can_be_put_on_a_loaded_base(base: Path, adapter: str) -> None:
    model = load_base(ModelRef(source=str(base)), None, Precision.AUTO)

    put_adapter(model, Path(adapter))

    assert generate(model, Question("fruit?", max_tokens=12), lambda piece: None).text == "apple"
