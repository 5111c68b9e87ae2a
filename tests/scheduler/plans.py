"""Jobs, models and hosts for tests of plans: plain values, no files."""

from __future__ import annotations

from typing import Any

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.host_verdicts import HostView
from graft_scheduler.job_settings import build_train_job
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import Lengths, of_rows
from graft_scheduler.memory import Backend
from graft_scheduler.states import HostId
from graft_scheduler.submission import Resolved
from tests.scheduler.models import make_model

SHAPE: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128_256,
}
SMALL = make_model("bfloat16", **SHAPE)
"""The shape of Llama 3.2 1B."""
SMALL_4BIT = make_model("bfloat16", **SHAPE, quantization={"bits": 4, "group_size": 64})
LENGTHS = of_rows([100, 200, 300, 400, 500, 600, 700, 800, 900, 2000] * 20, 2048)
GIB = 1 << 30


def job(**settings: Any) -> TrainJob:
    return build_train_job({"model": "m", "data": "d", "batch_size": 8, "epochs": 1, **settings})


def resolved(
    model: BaseModel | None = SMALL, lengths: Lengths = LENGTHS, valid_rows: int = 20, **settings: Any
) -> Resolved:
    spec = job(**settings)
    known = lengths.cut(spec.max_length)
    return Resolved(spec, model, known, known, valid_rows)


def host(name: str = "mini", gib: float = 64, **facts: Any) -> HostView:
    largest = int(gib * GIB)
    defaults: dict[str, Any] = {
        "backend": Backend.METAL,
        "device": "Apple M2 Max",
        "largest_bytes": largest,
        "free_bytes": largest,
        "slots": 1,
    }
    return HostView(id=HostId(name), name=name, **{**defaults, **facts})
