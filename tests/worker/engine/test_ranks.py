"""Cutting the rank after training: the algebra of one module, the search, and what it is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Start
from graft_scheduler.states import FailureClass, StopReason
from graft_worker.engine.adapters import Parameters, adapter_config, write_adapter
from graft_worker.engine.ranks import (
    MAX_EVALUATIONS,
    Branches,
    Cut,
    check_can_cut,
    cut_ranks,
    cut_to,
    describe,
    key_of,
    saved_form,
    search,
)
from graft_worker.engine.reports import Stopped
from graft_worker.engine.survey import module_paths, survey
from graft_worker.engine.svd import Array, Components, decompose, gram
from graft_worker.engine.training import train
from graft_worker.link import JobError
from graft_worker.local import train as train_here
from tests.worker.engine.architectures import save_architecture
from tests.worker.engine.reopened import Reopened, reopened
from tests.worker.engine.tiny import WORDS, RecordingLink, make_model, make_tokenizer, write_rows

MakeJob = Callable[..., TrainJob]
MakeStart = Callable[..., Start]
TOKENS = mx.array([[1, 40, 50, 60, 70, 80]])
RANK = 8


def random_branch(
    seed: int = 0, experts: int = 1, inputs: int = 20, outputs: int = 15
) -> tuple[Array, Array, Array]:
    """A, B and inputs (experts, 300, inputs) that vary much more in some directions than in others."""
    random = np.random.default_rng(seed)
    a = random.normal(size=(experts, inputs, RANK))
    b = random.normal(size=(experts, RANK, outputs))
    x = random.normal(size=(experts, 300, inputs)) * np.logspace(1, -2, inputs)
    return a, b, x


def product(components: Components, kept: int) -> Array:
    """The weight of the first `kept` components."""
    a, b = components.first(kept, RANK)
    return np.asarray(a.astype(np.float64) @ b)


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(3, 30))
@settings(max_examples=25, deadline=None)
def test_all_components_add_up_to_the_branch(seed: int, experts: int, outputs: int) -> None:
    a, b, x = random_branch(seed, experts, outputs=outputs)

    components = decompose(a, b, gram(x @ a))

    assert np.allclose(product(components, RANK), a @ b, rtol=0, atol=1e-5 * np.abs(a @ b).max())
    assert (np.diff(components.scores) <= 0).all()


def test_on_uniform_inputs_the_error_is_the_tail_of_the_singular_values() -> None:
    a, b, _ = random_branch()
    values = np.linalg.svd(a[0] @ b[0], compute_uv=False)

    components = decompose(a, b, gram(a))

    for kept in range(RANK + 1):
        error = np.square(a @ b - product(components, kept)).sum()
        assert error == pytest.approx(np.square(values[kept:]).sum(), rel=1e-4, abs=1e-4)
        assert components.scores[kept:].sum() == pytest.approx(error, rel=1e-4, abs=1e-4)


def test_on_uneven_inputs_the_outputs_are_nearer_than_by_plain_svd() -> None:
    a, b, x = random_branch()
    by_data, plain = decompose(a, b, gram(x @ a)), decompose(a, b, gram(a))

    for kept in (1, 2, 4, 6):
        error, plain_error = (
            np.square(x @ (a @ b - product(components, kept))).sum() for components in (by_data, plain)
        )
        assert error < 0.9 * plain_error
        assert by_data.scores[kept:].sum() == pytest.approx(error, rel=1e-4)


def test_outputs_that_the_loss_feels_more_are_kept_better() -> None:
    a, b, _ = random_branch()
    basis = np.linalg.qr(b.swapaxes(1, 2))[0]
    sharp = np.diag([100.0, *[0.01] * (RANK - 1)])[None]
    feels = np.linalg.cholesky(basis @ sharp @ basis.swapaxes(1, 2) + 1e-9 * np.eye(15))

    weighted, unweighted = decompose(a, b, gram(a), (basis, sharp)), decompose(a, b, gram(a))

    errors = [np.square((a @ b - product(one, 2)) @ feels).sum() for one in (weighted, unweighted)]
    assert errors[0] < 0.5 * errors[1]


def test_a_branch_without_data_or_effect_stays_finite() -> None:
    a, b, _ = random_branch()

    unseen = decompose(a, b, np.zeros((1, RANK, RANK)))
    silent = decompose(a, np.zeros_like(b), gram(a))

    assert np.isfinite(product(unseen, 3)).all()
    assert not product(silent, RANK).any()
    assert not silent.scores.any()


def test_experts_are_cut_alike_and_their_scores_add_up() -> None:
    a, b, x = random_branch(experts=3)
    alone = [decompose(a[i : i + 1], b[i : i + 1], gram(x[i : i + 1] @ a[i : i + 1])) for i in range(3)]

    together = decompose(a, b, gram(x @ a))

    assert np.allclose(together.scores, sum(one.scores for one in alone), rtol=1e-3)
    assert np.allclose(product(together, 3), np.concatenate([product(one, 3) for one in alone]), atol=1e-3)


def toy_branches(modules: int = 4) -> tuple[Branches, Callable[[Parameters], float]]:
    """Modules of which each matters a tenth of the one before, and a loss that is the error of all."""
    parameters: Parameters = {}
    components = {}
    for number in range(modules):
        a, b, _ = random_branch(number)
        b *= 10.0**-number
        path = f"layers.{number}.up_proj"
        parameters |= {
            f"{path}.lora_a": mx.array(a[0], mx.float32),
            f"{path}.lora_b": mx.array(b[0], mx.float32),
        }
        components[path] = decompose(a, b, gram(a))
    whole = products(parameters)

    def loss(candidate: Parameters) -> float:
        return 1000.0 + sum(
            float(np.square(one - other).sum()) for one, other in zip(whole, products(candidate), strict=True)
        )

    return Branches(parameters, components), loss


def products(parameters: Parameters) -> list[Array]:
    return [
        np.array(parameters[f"{path}.lora_a"], np.float64)
        @ np.array(parameters[f"{path}.lora_b"], np.float64)
        for path in module_paths(parameters)
    ]


def test_the_search_keeps_the_tolerance_and_spends_the_rank_where_it_matters() -> None:
    branches, loss = toy_branches()

    cut = search(branches, loss, 0.1)

    ranks = list(cut.kept.values())
    assert cut.loss == loss(cut.parameters) <= cut.full_loss * 1.1
    assert cut.rank == max(ranks) == ranks[0]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == 0
    assert cut.evaluations <= MAX_EVALUATIONS
    assert {value.shape for value in cut.parameters.values()} == {(20, cut.rank), (cut.rank, 15)}


@given(st.lists(st.floats(0, 2), min_size=2, max_size=2).map(sorted))
@settings(max_examples=15, deadline=None)
def test_more_tolerance_never_keeps_a_higher_rank(tolerances: list[float]) -> None:
    branches, loss = toy_branches(2)

    cuts = [search(branches, loss, tolerance) for tolerance in tolerances]

    assert cuts[1].rank <= cuts[0].rank
    assert all(
        cut.loss <= cut.full_loss * (1 + tolerance) for cut, tolerance in zip(cuts, tolerances, strict=True)
    )


def test_where_every_component_counts_nothing_is_cut_and_it_is_said() -> None:
    branches, loss = toy_branches(1)

    cut = search(branches, loss, 0.0)

    assert (cut.rank, cut.loss) == (RANK, cut.full_loss)
    assert cut.parameters == branches.parameters(branches.uniform(RANK))
    assert describe(cut, RANK, ("up_proj",)).startswith("nothing was cut: every module needs its rank of 8")


def test_a_loss_that_is_no_number_is_never_within_the_tolerance() -> None:
    branches, _ = toy_branches(1)
    whole = branches.parameters(branches.uniform(RANK))

    cut = search(branches, lambda candidate: 1.0 if candidate is whole else float("nan"), 1.0)

    assert cut.rank == RANK


def test_a_module_that_keeps_nothing_in_any_layer_is_not_saved() -> None:
    shapes = {"lora_a": mx.ones((3, 2)), "lora_b": mx.ones((2, 3))}
    kept = {
        "model.layers.0.mlp.up": 2,
        "model.layers.1.mlp.up": 0,
        "model.layers.0.q": 0,
        "model.layers.1.q": 0,
    }
    parameters = {f"{path}.{leaf}": value for path in kept for leaf, value in shapes.items()}
    config = {"num_layers": 2, "lora_parameters": {"rank": 8, "scale": 2.0, "keys": ["mlp.up", "q"]}}

    saved, saved_config = saved_form(Cut(parameters, 2, kept, 1.0, 1.0, 3), config)

    assert saved_config["lora_parameters"] == {"rank": 2, "scale": 2.0, "keys": ["mlp.up"]}
    assert sorted(saved) == sorted(name for name in parameters if ".mlp.up." in name)
    assert "kept by layer: mlp.up 0-2, q 0" in describe(
        Cut(parameters, 2, kept, 1.0, 1.0, 3), 8, ["mlp.up", "q"]
    )


def test_a_module_goes_by_the_longest_key_that_fits() -> None:
    assert key_of("model.layers.0.shared.mlp.up", ["mlp.up", "shared.mlp.up"]) == "shared.mlp.up"
    assert key_of("model.layers.0.mlp.up", ["mlp.up", "shared.mlp.up"]) == "mlp.up"


def test_adapters_of_another_form_are_refused_before_they_are_trained() -> None:
    with pytest.raises(JobError, match=r"`layers\.0\.qkv\.lora_a\.0`.*`adapter\.rank`") as refusal:
        check_can_cut({"layers.0.qkv.lora_a.0": mx.zeros((2, 2))})

    assert refusal.value.failure is FailureClass.CONFIG


def trained(make_job: MakeJob, make_start: MakeStart, **changes: object) -> tuple[TrainJob, Path]:
    """A short job at rank 8 and its folder."""
    rate = {"learning_rate": 1e-2}
    job = make_job(
        adapter={"rank": RANK, "scale": 2.0, "rank_tolerance": 0.02}, optimizer=rate, steps=20, **changes
    )
    start = make_start(job)
    train(start, RecordingLink())
    return job, Path(start.work_dir)


def cut_of(subject: Reopened) -> Cut:
    return cut_ranks(subject.task, subject.parameters, subject.loss, subject.evaluator, subject.reporter)


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_stock_mlx_lm_loads_the_cut_adapter_with_equal_logits(
    tmp_path: Path, make_job: MakeJob, make_start: MakeStart, architecture: str
) -> None:
    make_tokenizer(tmp_path)
    save_architecture(tmp_path, architecture)
    job, folder = trained(make_job, make_start, model=str(tmp_path))
    with reopened(job, folder) as subject:
        cut = cut_of(subject)
        again = cut_of(subject)
        config = adapter_config(subject.task.adapted, job)
    parameters, config = saved_form(cut, config)
    subject.task.adapted.put(cut.parameters)
    write_adapter(folder, parameters, config)

    stock = mlx_lm.load(str(tmp_path), adapter_path=str(folder))[0]

    assert mx.allclose(stock(TOKENS), subject.task.adapted.model(TOKENS), atol=1e-4)
    assert cut.rank == config["lora_parameters"]["rank"] < RANK
    assert cut.loss <= cut.full_loss * 1.02
    assert cut.kept == again.kept
    assert all(mx.array_equal(value, again.parameters[name]) for name, value in cut.parameters.items())
    assert json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]["scale"] == 2.0


def test_the_whole_rank_in_components_computes_what_was_trained(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    with reopened(*trained(make_job, make_start)) as subject:
        components = survey(subject.task, subject.parameters, subject.loss)
        full = subject.evaluate(subject.parameters)

        branches = Branches(subject.parameters, components)
        losses = [subject.evaluate(cut_to(branches, rank)) for rank in (7, 4, 1)]

        assert cut_to(branches, RANK) is subject.parameters
        for path, parts in components.items():
            a, b = subject.parameters[f"{path}.lora_a"], subject.parameters[f"{path}.lora_b"]
            assert np.allclose(parts.a[0] @ parts.b[0], np.array(a @ b), atol=1e-5)
        assert full < losses[1] < losses[2]


def test_without_tolerance_the_loss_does_not_rise(make_job: MakeJob, make_start: MakeStart) -> None:
    job, folder = trained(make_job, make_start)
    strict = job.model_copy(update={"adapter": job.adapter.model_copy(update={"rank_tolerance": 0.0})})
    with reopened(strict, folder) as subject:
        cut = cut_of(subject)

        assert cut.loss <= cut.full_loss == pytest.approx(subject.evaluate(subject.parameters), rel=1e-6)


@pytest.mark.parametrize("asked", [1, 30, 50])
def test_a_stop_is_heard_between_rows_and_evaluations(
    make_job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    with reopened(*trained(make_job, make_start)) as subject:
        answers = iter([None] * (asked - 1) + [StopReason.CANCEL])
        monkeypatch.setattr(subject.link, "stop_reason", lambda: next(answers))

        with pytest.raises(Stopped):
            cut_of(subject)

        assert all("_gram" not in module for _, module in subject.task.adapted.model.named_modules())


def test_a_cut_adapter_is_no_worse_than_one_trained_at_its_rank(tmp_path: Path) -> None:
    """At one `scale`, rate and number of steps, as a job has them that only changes `rank`.

    In trials the cut was better by more than a nat at both ranks: no allowance for noise.
    """
    losses = {rank: loss_of(pattern_job(rank, tmp_path), tmp_path / str(rank)) for rank in (4, 8, 32)}

    with reopened(pattern_job(32, tmp_path), tmp_path / "32") as subject:
        branches = Branches(subject.parameters, survey(subject.task, subject.parameters, subject.loss))
        for rank in (4, 8):
            assert subject.evaluate(cut_to(branches, rank)) <= losses[rank]


def pattern_job(rank: int, folder: Path) -> TrainJob:
    """Eight sentences to be learned by a random model of 64 wide."""
    if not (folder / "base").exists():
        (folder / "base").mkdir()
        make_tokenizer(folder / "base")
        make_model(folder / "base", hidden_size=64, intermediate_size=128)
        random = np.random.default_rng(1)
        for name, count in (("train", 96), ("valid", 8)):
            starts = random.integers(0, len(WORDS), count)
            texts = [" ".join(WORDS[(start + word * word) % 8] for word in range(6)) for start in starts]
            write_rows(folder / f"{name}.jsonl", [{"text": text} for text in texts])
    return TrainJob.model_validate(
        {
            "model": str(folder / "base"),
            "data": {"source": str(folder), "allow": ["leak"]},  # there are eight sentences in all
            "steps": 40,
            "batch_size": 8,
            "adapter": {"rank": rank, "scale": 2.0},
            "optimizer": {"learning_rate": 3e-3},
            "evaluation": {"every": 40},
        }
    )


def loss_of(job: TrainJob, output: Path) -> float:
    loss = train_here(job, output, tell=lambda message: None).final_loss
    assert loss is not None
    return loss
