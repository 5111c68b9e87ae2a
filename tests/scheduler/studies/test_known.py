"""What a study keeps of its base and data, and what it asks of hosts for its trials."""

from __future__ import annotations

from typing import Any

import pytest

from graft_scheduler.errors import InvalidInput
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import of_rows
from graft_scheduler.studies.known import MOST_LENGTHS, Known
from graft_scheduler.submission import Resolved
from tests.scheduler.models import make_model


def job(**settings: Any) -> TrainJob:
    return build_train_job({"model": "base", "data": "rows.jsonl", "steps": 9, "batch_size": 4, **settings})


def known(rows: int = 100, **model: Any) -> Known:
    lengths = of_rows([64] * rows, 2048)
    return Known.of(Resolved(job(), make_model(**model), lengths, lengths, 10), "store")


@pytest.mark.parametrize("model", [{}, {"num_experts": 4, "num_experts_per_tok": 2, "model_type": "mixtral"}])
def test_what_is_known_is_read_as_it_was_written(model: dict[str, Any]) -> None:
    one = known(**model)
    assert Known.parse(one.dump()) == one


def test_something_else_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Known.parse("{}")


def test_of_many_lengths_the_longest_is_kept() -> None:
    lengths = of_rows([*range(1, 10_000), 20_000], 30_000)
    one = Known.of(Resolved(job(), None, lengths, lengths, 10), "store")
    assert len(one.lengths.tokens) == MOST_LENGTHS
    assert one.lengths.longest == 20_000
    assert one.lengths.rows == 10_000


def test_a_trial_of_the_last_blocks_asks_for_room_for_the_outputs_of_the_others() -> None:
    one = known()
    every, last = one.submission(job()), one.submission(job(layers=2))
    alone = one.submission(job(layers=7))
    assert last.demands is not None
    assert every.demands is not None
    assert alone.demands is not None
    kept = 64 * 110 * 256 * 4
    grown = last.demands["cpu"].preferred_bytes - last.demands["cpu"].minimum_bytes
    assert grown >= kept
    assert last.demands["cpu"].minimum_bytes < every.demands["cpu"].minimum_bytes
    assert alone.demands["cpu"].preferred_bytes <= every.demands["cpu"].preferred_bytes


def test_a_size_that_a_person_named_stays() -> None:
    named = job(layers=2, **{"limits.memory_bytes": 1 << 30})
    found = known().submission(named)
    assert found.demands is not None
    assert found.demands["cpu"].preferred_bytes == 1 << 30
