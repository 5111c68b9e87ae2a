"""The rows a job learns from and those it is measured on, as tokens, with what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graft_scheduler.data.inspection import Inspection
from graft_scheduler.data.layouts import trained_format
from graft_scheduler.data.opening import inspect_stored
from graft_scheduler.data.rows import Row
from graft_scheduler.data.sources import SourceFile, Split
from graft_scheduler.data.splitting import split
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import DataFormat, TrainJob
from graft_scheduler.rendering import end_ids
from graft_scheduler.states import FailureClass
from graft_worker.engine.loading import Base
from graft_worker.engine.reports import Reporter
from graft_worker.engine.rows import Reading, TokenRows, tokenise
from graft_worker.link import JobError


@dataclass(frozen=True, slots=True)
class Dataset:
    """Two sets of usable rows; neither is empty."""

    format: DataFormat
    train: TokenRows
    valid: TokenRows
    train_bytes: Sequence[int]
    """Of every line of the training file, those that are held out included."""

    def counts(self) -> dict[str, dict[str, int]]:
        """What became of the rows."""
        return {
            name: {
                "used": len(rows.rows),
                "cut": rows.cut,
                "dropped": rows.dropped,
                "unrendered": rows.unrendered,
            }
            for name, rows in (("train", self.train), ("valid", self.valid))
        }


def load_dataset(spec: TrainJob, path: Path, base: Base, reporter: Reporter) -> Dataset:
    """Read, check and tokenise the data set at `path`, and tell what will not be used as it is.

    Raises:
        JobError: bad rows, or none that can be learned from (class `data`); chats without a
            template, or a tokenizer that is not the model's (class `config`).
        Stopped: the link asked for it.
    """
    dataset = tokenised(spec, path, base, reporter)
    check_and_tell(dataset, spec, base, reporter)
    return dataset


def tokenised(spec: TrainJob, path: Path, base: Base, reporter: Reporter) -> Dataset:
    """The data set at `path` as `base` reads it; nothing is known yet of whether that is of use.

    Raises:
        JobError, Stopped: as `load_dataset`.
    """
    try:
        found, train, valid = _read(spec, path)
    except InvalidInput as error:
        raise JobError(FailureClass.DATA, str(error)) from error
    reading = Reading(found.trained_format, spec.data.mask_prompt, spec.max_length)
    return Dataset(
        found.trained_format,
        tokenise(train, base.tokenizer, reading, reporter.check_stop),
        tokenise(valid, base.tokenizer, reading, reporter.check_stop),
        found.facts(Split.TRAIN).sizes,
    )


def check_and_tell(dataset: Dataset, spec: TrainJob, base: Base, reporter: Reporter) -> None:
    """Refuse a data set of no use, and tell what of it will not be used as it is.

    Raises:
        JobError: as `load_dataset`.
    """
    for name, rows in (("training", dataset.train), ("validation", dataset.valid)):
        _tell(name, rows, spec.max_length, reporter)
        _check_usable(name, rows, spec.max_length)
        _check_vocabulary(rows, base)
    _tell_ends(dataset.train, base, reporter)


def read_splits(path: Path, data_format: DataFormat | None) -> tuple[Inspection, dict[Split, list[Row]]]:
    """What is in the data set at `path`, and its training and validation rows as they are trained.

    Raises:
        InvalidInput: it cannot be used; says where.
    """
    rows: dict[Split, list[Row]] = {Split.TRAIN: [], Split.VALID: []}
    wanted = None if data_format is None else trained_format(data_format)

    def take(_: Inspection, file: SourceFile, row: Row, fields: Mapping[str, Any]) -> None:
        rows[file.split].append(Row(row.line, fields))

    return inspect_stored(path, wanted, take), rows


def held_out(
    found: Inspection, rows: Sequence[Row], fraction: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """The training rows parted in those that are trained on and those held out, where there is no file."""
    return split(rows, fraction, seed, found.facts(Split.TRAIN).keys)


def _read(spec: TrainJob, path: Path) -> tuple[Inspection, list[Row], list[Row]]:
    """What is there, and the rows to learn from and to measure on."""
    found, rows = read_splits(path, spec.data.format)
    train, valid = rows[Split.TRAIN], rows[Split.VALID]
    if not valid:
        train, valid = held_out(found, train, spec.data.valid_fraction, spec.seed)
    return found, train, valid


def _tell(name: str, rows: TokenRows, max_length: int, reporter: Reporter) -> None:
    """A line for each kind of row that is not used as it is."""
    if rows.cut:
        reporter.log(f"{rows.cut} {name} rows are longer than {max_length} tokens and were cut", "warning")
    if rows.dropped:
        text = (
            f"{rows.dropped} {name} rows were left out: nothing to learn in their first {max_length} tokens"
        )
        reporter.log(text, "warning")
    if rows.unrendered:
        text = f"{rows.unrendered} {name} rows were left out: their assistant turns cannot be told apart"
        reporter.log(f"{text} ({rows.first_problem})", "warning")


def _tell_ends(rows: TokenRows, base: Base, reporter: Reporter) -> None:
    """A line when nothing teaches the model where to stop."""
    ends = sorted(end_ids(base.tokenizer))
    if not ends:
        why = "its tokenizer has no end token"
    elif not any(np.isin(row.tokens[row.learned], ends).any() for row in rows.rows):
        names = ", ".join(str(base.tokenizer.decode([end])) for end in ends)
        why = f"what is learned of the training rows never holds {names}"
    else:
        return
    reporter.log(f"the model will not learn where to stop: {why}", "warning")


def _check_usable(name: str, rows: TokenRows, max_length: int) -> None:
    if rows.rows:
        return
    reasons = []
    if rows.dropped:
        reasons.append(
            f"{rows.dropped} have nothing to learn in their first {max_length} tokens (`max_length`)"
        )
    if rows.unrendered:
        reasons.append(f"{rows.unrendered} cannot be rendered ({rows.first_problem})")
    raise JobError(FailureClass.DATA, f"no {name} row can be used: {' and '.join(reasons)}")


def _check_vocabulary(rows: TokenRows, base: Base) -> None:
    """MLX reads whatever lies in memory for a token beyond the embedding, and says nothing."""
    largest = max(int(row.tokens.max()) for row in rows.rows)
    if base.vocabulary is not None and largest >= base.vocabulary:
        text = f"the tokenizer makes token {largest}, but the model knows only {base.vocabulary} tokens"
        raise JobError(FailureClass.CONFIG, text)
