"""How much a job computes, and how long that takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_scheduler.chips import APPLE_TERAFLOPS, APPLE_UTILISATION, TERA, guessed_flops_per_second
from graft_scheduler.lengths import Lengths, of_rows
from graft_scheduler.time_estimate import active_block_parameters, estimate_time, flops, steps
from tests.scheduler.plans import LENGTHS, SMALL, job

NO_EVALUATIONS = 0


def work(lengths: Lengths = LENGTHS, **settings: object) -> float:
    return flops(job(**settings), SMALL, lengths, NO_EVALUATIONS)


def test_an_adapter_costs_about_four_operations_for_each_parameter_and_token() -> None:
    tokens = sum(LENGTHS.tokens)

    assert work() / tokens == pytest.approx(4 * SMALL.parameters, rel=0.2)


def test_a_full_fine_tune_costs_about_six() -> None:
    assert work(method="full") / sum(LENGTHS.tokens) == pytest.approx(6 * SMALL.parameters, rel=0.2)


def test_gradient_checkpointing_costs_most_of_one_more_forward_pass() -> None:
    assert 1.3 < work(gradient_checkpointing=True) / work() < 1.5


def test_blocks_below_the_first_adapted_one_are_not_gone_back_through() -> None:
    assert work(adapter={"layers": 1}) / work() == pytest.approx(0.6, abs=0.1)


def test_steps_and_epochs_count_the_same_rows() -> None:
    assert work(epochs=None, steps=LENGTHS.rows // 8) == pytest.approx(work())
    assert steps(job(epochs=2), 200) == 50


def test_evaluations_cost_forward_passes() -> None:
    without, with_rows = work(), flops(job(), SMALL, LENGTHS, valid_rows=20)

    assert without < with_rows < 2 * without


def test_experts_that_a_token_does_not_pass_cost_nothing() -> None:
    moe = replace(SMALL, num_experts=8, experts_per_token=2, parameters=8 * SMALL.parameters)
    expert = 3 * moe.hidden_size * moe.intermediate_size * moe.num_layers

    assert active_block_parameters(moe) == pytest.approx(
        moe.parameters - moe.vocab_size * moe.hidden_size - 6 * expert
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=30), st.integers(1, 4))
def test_longer_rows_and_more_of_them_never_cost_less(tokens: list[int], times: int) -> None:
    some = of_rows(tokens, 4096)
    longer = of_rows([one + 10 for one in tokens], 4200)
    more = Lengths(tuple(sorted(some.tokens * times)), some.rows * times)

    assert work(some) <= work(longer)
    assert work(some) <= work(more) * (1 + 1e-9)


def test_what_was_measured_wins_over_the_chips_figures() -> None:
    measured = estimate_time(1e15, "metal", "Apple M2 Max", 2e12, 3)

    assert measured is not None
    assert (measured.seconds, measured.is_measured) == (500, True)
    assert measured.basis == "measured on 3 jobs like it"


def test_a_guess_is_called_one() -> None:
    guess = estimate_time(1e15, "metal", "Apple M2 Max")

    assert guess is not None
    assert not guess.is_measured
    assert guess.basis == "a guess from the chip's public figures"
    assert guess.flops_per_second == APPLE_TERAFLOPS["M2 Max"] * TERA * APPLE_UTILISATION


@pytest.mark.parametrize(
    ("backend", "device"),
    [("metal", "Apple M99 Hyper"), ("cuda", "NVIDIA Unheard"), ("cpu", "some CPU"), ("tpu", "v9")],
)
def test_of_an_unknown_chip_no_time_is_told(backend: str, device: str) -> None:
    assert estimate_time(1e15, backend, device) is None


def test_names_of_chips_are_told_apart() -> None:
    rates = [guessed_flops_per_second("metal", f"Apple M4{kind}") or 0.0 for kind in ("", " Pro", " Max")]
    pcie = guessed_flops_per_second("cuda", "NVIDIA H100 PCIe") or 0.0

    assert rates == sorted(set(rates))
    assert pcie < (guessed_flops_per_second("cuda", "NVIDIA H100 80GB HBM3") or 0.0)
    assert guessed_flops_per_second("cpu", "x86_64 CPU, 2 cores") == 3e9
