"""Jobs that find a base loaded: they end as if they had loaded it, whatever came before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Checkpoint, Done, Evaluated, Log, Progress, RunnerMessage, Start
from graft_scheduler.states import FailureClass, StopReason
from graft_worker.engine import training
from graft_worker.engine.evaluation import Evaluator
from graft_worker.engine.resident import Resident
from graft_worker.engine.training import train
from graft_worker.link import JobError
from tests.worker.engine.tiny import RecordingLink, make_model, make_tokenizer, text_rows, write_rows

MakeStart = Callable[..., Start]
Run = Callable[..., Done]

OTHERS: dict[str, dict[str, Any]] = {
    "another optimizer": {"optimizer": {"name": "adafactor", "learning_rate": 1e-2}},
    "another rank, checkpointed": {"adapter": {"rank": 2}, "gradient_checkpointing": True},
    "other modules of fewer layers": {
        "adapter": {"rank": 4, "targets": ["q_proj", "down_proj"], "layers": 1}
    },
    "dropout from another seed": {"adapter": {"rank": 4, "dropout": 0.3}, "seed": 5},
    "dora": {"method": "dora"},
    "a rank that is cut": {"adapter": {"rank": "auto", "max_rank": 2}},
    "packed rows and the plain loss": {"compute": {"batching": "packed", "loss": "plain"}},
}


@pytest.fixture
def job(base: Path, texts: Path) -> Callable[..., TrainJob]:
    """A short job whose base and data have names that a runner may go by."""

    def make(**changes: Any) -> TrainJob:
        settings = {
            "model": {"source": str(base), "digest": f"sha256:{'a' * 64}"},
            "data": {"source": str(texts), "digest": f"sha256:{'b' * 64}"},
            "batch_size": 4,
            "steps": 2,
            "adapter": {"rank": 4},
            "max_length": 64,
            "micro_batch_tokens": 128,
            "optimizer": {"learning_rate": 3e-3},
            "evaluation": {"every": 2},
            **changes,
        }
        return TrainJob.model_validate(settings)

    return make


@pytest.fixture
def run(make_start: MakeStart) -> Run:
    """Does a job in a folder of its own: cold without a resident."""
    count = iter(range(1000))

    def do(job: TrainJob, resident: Resident | None = None, link: Any = None, **changes: Any) -> Done:
        folders = {"model_dir": job.model.source, "data_dir": job.data.source}
        start = make_start(job, f"work{next(count)}", **folders, **changes)
        return train(start, link or RecordingLink(), resident)

    return do


def weights(done: Done) -> dict[str, mx.array]:
    assert done.output_dir is not None
    return load(Path(done.output_dir))


def load(folder: Path) -> dict[str, mx.array]:
    arrays = mx.load(str(folder / "adapters.safetensors"))
    assert isinstance(arrays, dict)
    return arrays


def are_equal(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return one.keys() == other.keys() and all(mx.array_equal(one[name], other[name]).item() for name in one)


def told(link: RecordingLink) -> Sequence[object]:
    """What a job says of itself, but for times and memory."""
    return [
        message.text if isinstance(message, Log) else (message.step, message.loss)
        for message in link.messages
        if isinstance(message, (Log, Evaluated))
    ]


def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with each base that is loaded and each data set that is tokenised."""
    found: list[Any] = []
    for name in ("load_base", "tokenised"):
        real = getattr(training, name)

        def counting(*arguments: Any, _real: Any = real, _name: str = name, **named: Any) -> Any:
            found.append(_name)
            return _real(*arguments, **named)

        monkeypatch.setattr(training, name, counting)
    return found


@pytest.mark.parametrize("method", ["lora", "qlora", "dora"])
def test_a_warm_job_ends_as_a_cold_one_and_loads_nothing(
    job: Callable[..., TrainJob], run: Run, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    group = {"quantization": {"group_size": 32}} if method == "qlora" else {}
    asked = job(method=method, adapter={"rank": 4, "dropout": 0.2}, **group)
    cold_link, warm_link, resident = RecordingLink(), RecordingLink(), Resident()
    cold = run(asked, link=cold_link)
    run(asked, resident)
    loaded = loads(monkeypatch)

    warm = run(asked, resident, warm_link)

    assert loaded == []
    assert are_equal(weights(warm), weights(cold))
    assert told(warm_link) == told(cold_link)
    assert cold.result is not None
    assert warm.result is not None
    assert warm.result.initial_loss == cold.result.initial_loss
    assert warm.result.first_step_seconds is not None
    assert warm.result.first_step_seconds < warm.result.training_seconds + 5


def picture(model: nn.Module) -> object:
    """Every module with its class and settings, and every array by its identity."""
    arrays = {name: id(array) for name, array in dict(tree_flatten(model.parameters())).items()}
    modules: list[tuple[str, nn.Module]] = model.named_modules()
    return arrays, [(path, id(one), type(one), sorted(vars(one))) for path, one in modules]


def test_a_job_ends_as_a_cold_one_whatever_was_done_before_it(job: Callable[..., TrainJob], run: Run) -> None:
    cold = {name: weights(run(job(**changes))) for name, changes in OTHERS.items()}
    first, resident = weights(run(job())), Resident()
    run(job(), resident)
    model = resident.base(job(), lambda: pytest.fail("it is there")).model
    before = picture(model)

    warm = {name: weights(run(job(**changes), resident)) for name, changes in OTHERS.items()}

    assert [name for name in OTHERS if not are_equal(warm[name], cold[name])] == []
    assert are_equal(weights(run(job(), resident)), first)
    assert picture(model) == before
    assert tree_flatten(model.trainable_parameters()) == []


def test_trials_that_take_turns_end_as_if_each_had_been_alone(job: Callable[..., TrainJob], run: Run) -> None:
    trials = [
        job(steps=4, adapter={"rank": 4, "dropout": 0.2}),
        job(steps=4, adapter={"rank": 2}, optimizer={"learning_rate": 1e-2}),
    ]
    alone = [weights(run(one)) for one in trials]
    resident, resumed = Resident(), [RecordingLink(), RecordingLink()]
    paused = [run(one, resident, link, pause_step=2) for one, link in zip(trials, resumed, strict=True)]
    folders = [link.of(Checkpoint)[-1].path for link in resumed]

    ended = [run(one, resident, resume_dir=folder) for one, folder in zip(trials, folders, strict=True)]

    assert [done.stopped for done in paused] == [StopReason.PAUSE] * 2
    assert [are_equal(weights(done), other) for done, other in zip(ended, alone, strict=True)] == [True, True]


def test_a_job_that_diverged_or_was_cancelled_leaves_nothing_behind(
    job: Callable[..., TrainJob], run: Run
) -> None:
    def cancel(message: RunnerMessage) -> StopReason | None:
        return StopReason.CANCEL if isinstance(message, Progress) else None

    first, resident = weights(run(job())), Resident()
    with pytest.raises(JobError) as error:
        run(
            job(
                steps=20,
                adapter={"rank": 4, "scale": 1e18},
                optimizer={"name": "sgd", "learning_rate": 10.0, "max_grad_norm": None},
                schedule={"name": "constant", "warmup": 0.0},
            ),
            resident,
        )
    stopped = run(job(), resident, RecordingLink(cancel))

    assert error.value.failure is FailureClass.DIVERGED
    assert stopped.stopped is StopReason.CANCEL
    assert are_equal(weights(run(job(), resident)), first)


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"model": {"digest": f"sha256:{'c' * 64}"}}, ["load_base", "tokenised"]),
        ({"method": "qlora", "quantization": {"group_size": 32}}, ["load_base", "tokenised"]),
        ({"method": "full"}, ["load_base", "tokenised"]),
        ({"data": {"digest": f"sha256:{'c' * 64}"}}, ["tokenised"]),
        ({"max_length": 32}, ["tokenised"]),
    ],
)
def test_what_is_not_the_same_is_loaded_again(
    job: Callable[..., TrainJob],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    again: list[str],
) -> None:
    resident, settings = Resident(), job().model_dump()
    for name, value in changes.items():
        settings[name] = {**settings[name], **value} if isinstance(settings[name], dict) else value
    run(job(steps=1), resident)
    loaded = loads(monkeypatch)

    run(TrainJob.model_validate({**settings, "steps": 1, "optimizer": {}}), resident)

    assert loaded == again


def test_a_base_without_a_name_of_its_content_is_not_kept(
    job: Callable[..., TrainJob], run: Run, monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    make_tokenizer(folder)
    make_model(folder)
    resident = Resident()
    nameless = job(model=str(folder), steps=1)
    run(nameless, resident)
    loaded = loads(monkeypatch)

    run(nameless, resident)

    assert loaded == ["load_base", "tokenised"]


def test_the_untrained_model_is_evaluated_once_for_all_that_start_from_it(
    job: Callable[..., TrainJob], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = Resident()
    link = RecordingLink()
    first = run(job(), resident)
    calls: list[Any] = []
    real = Evaluator.__call__

    def counting(self: Evaluator, *arguments: Any) -> Any:
        calls.append(self)
        return real(self, *arguments)

    monkeypatch.setattr(Evaluator, "__call__", counting)

    second = run(job(adapter={"rank": 2, "layers": 1}), resident, link)

    assert len(calls) == 1
    assert [message.step for message in link.of(Evaluated)] == [0, 2]
    assert first.result is not None
    assert second.result is not None
    assert second.result.initial_loss == first.result.initial_loss


def test_a_job_like_one_before_it_is_not_tried_again_and_is_cut_alike(
    job: Callable[..., TrainJob], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(micro_batch_tokens=None, steps=1)
    tight = {"budget_bytes": 4 << 20}
    cold, resident = run(asked, **tight), Resident()
    run(asked, resident, **tight)
    monkeypatch.setattr("graft_worker.engine.trying.peak_of", lambda work: pytest.fail("it was tried"))

    warm = run(job(micro_batch_tokens=None, steps=1, optimizer={"learning_rate": 1e-4}), resident, **tight)
    same = run(asked, resident, **tight)

    assert cold.result is not None
    assert warm.result is not None
    assert warm.result.facts["cut"] == cold.result.facts["cut"]
    assert "probed_peak_bytes" in warm.result.facts["memory"]
    assert are_equal(weights(same), weights(cold))


def test_each_job_is_told_what_of_the_data_is_not_used(
    job: Callable[..., TrainJob], run: Run, tmp_path: Path
) -> None:
    write_rows(tmp_path / "train.jsonl", [*text_rows(8), {"text": "a" * 90}])
    write_rows(tmp_path / "valid.jsonl", text_rows(2))
    asked = job(steps=1, data={"source": str(tmp_path), "digest": f"sha256:{'d' * 64}"})
    links, resident = [RecordingLink(), RecordingLink()], Resident()

    for link in links:
        run(asked, resident, link)

    assert told(links[0]) == told(links[1])
    assert "1 training rows are longer than 64 tokens and were cut" in told(links[1])
