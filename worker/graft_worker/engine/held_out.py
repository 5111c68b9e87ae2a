"""Texts on which a fused model is compared with the adapted one: rows held out, or written by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler

from graft_scheduler.data.rows import Row
from graft_scheduler.data.sources import Split
from graft_scheduler.errors import InvalidInput
from graft_scheduler.exports import HeldOutData
from graft_scheduler.jobs import DataFormat
from graft_scheduler.states import FailureClass
from graft_worker.engine.dataset import held_out, read_splits
from graft_worker.engine.loading import Base
from graft_worker.engine.rows import Reading, TokenRow, tokenise
from graft_worker.link import JobError

OWN_TEXTS = 8
OWN_LENGTH = 48
"""Tokens of a text that the model writes itself."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What models are compared on."""

    rows: Sequence[TokenRow]
    origin: str
    """Where they are from, in words."""
    is_generated: bool = False


def read_held_out(data: HeldOutData, base: Base) -> HeldOut:
    """The rows of `data` as `base` reads them.

    Raises:
        JobError: none can be used; class `data`.
    """
    path = Path(data.path).expanduser()
    try:
        found, origin, data_format = _find_rows(data, path)
    except InvalidInput as error:
        raise JobError(FailureClass.DATA, str(error)) from error
    done = tokenise(found, base.tokenizer, Reading(data_format, data.mask_prompt, data.max_length))
    if not done.rows:
        why = done.first_problem or f"nothing is learned in their first {data.max_length} tokens"
        raise JobError(FailureClass.DATA, f"no row of {path} can be used: {why}")
    return HeldOut(done.rows, origin)


def write_own(base: Base) -> HeldOut:
    """Texts that the model of `base` writes by itself, from its own beginning of a text."""
    tokenizer = base.tokenizer
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    start = next(token for token in starts if token is not None)
    rows = []
    for seed in range(OWN_TEXTS):
        mx.random.seed(seed)
        steps = generate_step(
            mx.array([start]), base.model, max_tokens=OWN_LENGTH, sampler=make_sampler(temp=1.0)
        )
        tokens = np.asarray([start, *(int(token) for token, _ in steps)], dtype=np.int32)
        rows.append(TokenRow(tokens, np.arange(len(tokens)) > 0))
    return HeldOut(rows, f"{OWN_TEXTS} texts that the adapted model wrote itself", is_generated=True)


def _find_rows(data: HeldOutData, path: Path) -> tuple[list[Row], str, DataFormat]:
    found, rows = read_splits(path, data.format)
    data_format, name = found.trained_format, data.name or path.name
    if rows[Split.VALID]:
        return rows[Split.VALID], f"the validation rows of {name}", data_format
    train = rows[Split.TRAIN]
    if path.is_file() and not data.is_whole:
        return train, f"the rows of {name}", data_format
    _, kept = held_out(found, train, data.valid_fraction, data.seed)
    return kept, f"the rows held out of {name}", data_format
