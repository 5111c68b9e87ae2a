"""How a family's models are read, against the models themselves: what is trained of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from graft_scheduler.anatomy_families import KNOWN
from graft_scheduler.basemodels import HEAD_NAMES, BaseModel, WeightFacts, describe
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import Backend, estimate_peak
from graft_worker.engine.adapters import attach
from tests.worker.engine.families import FAMILIES, build_family

CLOSE = 0.01
ROUGHLY = 0.1
"""For families of which we say that they are only guessed."""


def read(model: nn.Module, config: dict[str, Any]) -> BaseModel:
    """What is known of the model from its config and its tensors' names."""
    arrays = dict(tree_flatten(model.parameters()))
    has_head = any(name.removesuffix(".weight").endswith(HEAD_NAMES) for name in arrays)
    numbers = sum(array.size for array in arrays.values())
    weights = WeightFacts(4 * numbers, numbers, "float32", tuple(arrays), has_head)
    return describe(config, weights, set(), False, "a test's model")


@pytest.mark.parametrize("settings", [{"adapter": {"rank": 4}}, {"method": "full"}], ids=["lora", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_read_from_the_config_and_the_names(
    make_job: Callable[..., TrainJob], name: str, settings: dict[str, Any]
) -> None:
    job = make_job(**settings)
    model, config = build_family(name)
    model.freeze()
    base = read(model, config)

    trained = attach(model, job, mx.float32).size

    parts = estimate_peak(base, job, backend=Backend.CPU).parts
    allowed = CLOSE if base.anatomy.doubt is None else ROUGHLY
    assert parts["adapters"] == pytest.approx(4 * trained, rel=allowed)
    assert len(base.anatomy.blocks) == len(model.layers)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_that_is_read_without_doubt_is_a_known_one(name: str) -> None:
    model, config = build_family(name)

    doubt = read(model, config).anatomy.doubt

    assert (doubt is None) == (config["model_type"] in KNOWN)
    assert doubt is None or name in doubt


def test_every_family_that_is_called_known_was_tried() -> None:
    assert set(FAMILIES) >= KNOWN
