"""What would make a job fit: that it does, and in which order it is named."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_cli.train_settings import parse_assignment
from graft_scheduler.basemodels import BaseModel
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import Backend
from graft_scheduler.planning import Question, smallest_cut
from graft_scheduler.remedies import Harm, Remedy, remedies
from tests.scheduler.plans import GIB, LENGTHS, SMALL, SMALL_4BIT, job

FLAGS = {"--method": "method", "--max-length": "max_length", "--layers": "adapter.layers"}


def question(model: BaseModel = SMALL, backend: Backend = Backend.METAL, **settings: Any) -> Question:
    spec = job(**settings)
    return Question(model, spec, LENGTHS.cut(spec.max_length), backend)


def found(asked: Question, budget: int) -> list[Remedy]:
    return remedies(asked, LENGTHS, budget)


def typed(spec: TrainJob, remedy: Remedy) -> TrainJob:
    """The job after what a person would type, read as the command line reads it."""
    values: dict[str, Any] = spec.model_dump(mode="json", exclude={"version", "kind"})
    for flag, value in (shlex.split(one) for one in remedy.flags):
        name, new = parse_assignment(value) if flag == "--set" else (FLAGS[flag], value)
        *path, leaf = name.split(".")
        level = values
        for part in path:
            level = level[part]
        level[leaf] = int(new) if isinstance(new, str) and new.isdigit() else new
    return build_train_job(values)


JOBS: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(["lora", "qlora", "dora", "full"]),
    "batch_size": st.integers(1, 64),
    "max_length": st.integers(64, 4096),
    "micro_batch_tokens": st.none() | st.integers(1, 20_000),
    "gradient_checkpointing": st.sampled_from([None, True, False]),
    "compute.loss": st.sampled_from(["plain", "chunked"]),
    "optimizer.name": st.sampled_from(["adamw", "sgd", "adafactor"]),
}


@settings(max_examples=6, deadline=None)
@given(st.fixed_dictionaries(JOBS), st.sampled_from(list(Backend)), st.integers(1, 24))
def test_every_remedy_fits_as_typed(values: dict[str, Any], backend: Backend, gib: int) -> None:
    asked = question(backend=backend, **values)
    budget = gib * GIB // 2

    for remedy in found(asked, budget):
        changed = typed(asked.job, remedy)
        cut = smallest_cut(replace(asked, job=changed, lengths=LENGTHS.cut(changed.max_length)))
        assert cut.peak_bytes == remedy.peak_bytes <= budget


def test_a_job_that_fits_needs_no_remedy() -> None:
    assert found(question(), 64 * GIB) == []


def test_what_costs_only_time_is_named_alone_if_it_is_enough() -> None:
    asked = question(gradient_checkpointing=False)
    budget = smallest_cut(question(gradient_checkpointing=True)).peak_bytes

    (only,) = found(asked, budget)

    assert only.harm is Harm.NONE
    assert only.flags == ("--set gradient_checkpointing=null",)


def test_free_changes_are_joined_where_none_is_enough_alone() -> None:
    asked = question(SMALL_4BIT, gradient_checkpointing=False, compute={"loss": "plain"})
    both = question(SMALL_4BIT, gradient_checkpointing=True, compute={"loss": "chunked"})

    first = found(asked, smallest_cut(both).peak_bytes)[0]

    assert first.flags == ("--set gradient_checkpointing=null", "--set compute.loss=chunked")


def test_cutting_rows_says_how_many_are_cut() -> None:
    asked = question(SMALL_4BIT, gradient_checkpointing=True, batch_size=1)
    shorter = question(SMALL_4BIT, gradient_checkpointing=True, batch_size=1, max_length=512)

    (cut,) = [one for one in found(asked, smallest_cut(shorter).peak_bytes) if "--max-length" in one.flags[0]]

    length = int(cut.flags[0].split()[1])
    assert 512 <= length < 2000
    assert cut.lost == pytest.approx(LENGTHS.share_above(length))
    assert f"about {cut.lost:.1%} of them are longer" in cut.words


def test_a_quantised_base_is_named_before_fewer_layers_or_many_shorter_rows() -> None:
    asked = question(batch_size=1)
    budget = smallest_cut(question(method="qlora", batch_size=1)).peak_bytes

    harms = [one.harm for one in found(asked, budget)]

    assert found(asked, budget)[0].flags == ("--method qlora",)
    assert harms == sorted(harms)


def test_a_full_fine_tune_is_helped_by_an_optimizer_that_keeps_less() -> None:
    asked = question(method="full")
    budget = smallest_cut(question(method="full", optimizer={"name": "adafactor"})).peak_bytes

    assert found(asked, budget)[0].flags == ("--set optimizer.name=adafactor",)


def test_an_optimizers_own_settings_are_not_thrown_away() -> None:
    asked = question(method="full", optimizer={"betas": [0.9, 0.99]})

    assert all("adafactor" not in one.flags[0] for one in found(asked, 12 * GIB))


def test_a_harmful_change_is_named_beside_free_ones_where_it_is_not_enough_alone() -> None:
    asked = question(method="full", gradient_checkpointing=False)
    budget = smallest_cut(question(method="qlora")).peak_bytes

    assert found(asked, budget)[0].flags == ("--set gradient_checkpointing=null", "--method qlora")


def test_nothing_is_named_where_nothing_helps() -> None:
    assert found(question(), 1 << 20) == []
