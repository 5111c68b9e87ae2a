"""All that can be said of a data set before anything is trained on it, as plain values."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from graft_scheduler.data.faults import ALLOWABLE, Fault, Kind
from graft_scheduler.data.inspection import Inspection, SplitFacts
from graft_scheduler.data.opening import Source, inspect_source
from graft_scheduler.data.sources import Split
from graft_scheduler.data.splitting import split
from graft_scheduler.data.tokens import TokenFacts, TokenWatch
from graft_scheduler.errors import GraftError

if TYPE_CHECKING:
    from graft_scheduler.rendering import ChatTokenizer

BINS = 20
"""Of a histogram, at most."""
_WIDTHS = (1, 2, 5)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class FaultReport(_Value):
    """One thing that is wrong."""

    file: str
    line: int | None
    kind: str
    text: str
    refuses: bool
    """Whether the data set is not accepted for it."""


class Histogram(_Value):
    """How many rows have how many tokens (or bytes)."""

    edges: tuple[int, ...]
    """Where bins begin; the last one has no end."""
    counts: tuple[int, ...]


class LengthReport(_Value):
    """How long rows are."""

    unit: str
    """`tokens`, or `bytes` where the model's tokenizer could not be had."""
    counted_rows: int
    shortest: int
    median: int
    mean: float
    percentile_95: int
    longest: int
    histogram: Histogram


class SplitReport(_Value):
    """One split."""

    name: str
    files: tuple[str, ...]
    rows: int
    """Those that can be trained on."""
    bad_rows: int
    bytes: int
    turns: int | None
    """Messages, where rows are chats."""
    lengths: LengthReport | None
    """Absent where it has no rows."""
    truncated_share: float | None = None
    """Of the rows, longer than what is trained of them; absent where tokens were not counted."""
    learned_share: float | None = None
    """Of the tokens that are trained on, those that are learned, in the first rows."""


class SampleReport(_Value):
    """A row as it is trained on."""

    file: str
    line: int
    tokens: int
    pieces: tuple[tuple[str, bool], ...]
    """Text, and whether it is learned."""


class DataReport(_Value):
    """What is in a data set, and what is wrong with it."""

    source: str
    accepted: bool
    format: str | None
    """Of its rows; absent where none has any."""
    trained_as: str | None
    """The format that they are turned into."""
    model: str | None
    max_length: int
    tokens_note: str | None
    """Why tokens were not counted."""
    splits: tuple[SplitReport, ...]
    held_out: int | None
    """Rows of the training file that validation takes, where there is no file for that."""
    counts: dict[str, int]
    """Faults by kind, all of them."""
    faults: tuple[FaultReport, ...]
    """The first thousand of each kind."""
    allowable: tuple[str, ...]
    """Kinds among those that refuse it which somebody may have on purpose."""
    samples: tuple[SampleReport, ...]


def make_report(
    source: Source,
    *,
    max_length: int,
    seed: int = 0,
    model: str | None = None,
    tokenizer: ChatTokenizer | GraftError | None = None,
) -> tuple[DataReport, Inspection]:
    """Look at all of `source`; tokens are counted if there is a tokenizer, or else it is said why not."""
    data = source.located
    watch = None
    if tokenizer is not None and not isinstance(tokenizer, GraftError):
        watch = TokenWatch(tokenizer, max_length, mask_prompt=data.mask_prompt)
    found = inspect_source(source, watch)
    if watch is not None:
        watch.finish()
        _refuse_lost(found, watch)
    faults = found.faults
    report = DataReport(
        source=data.source,
        accepted=found.refusal is None,
        format=found.format,
        trained_as=found.trained_format if found.format else None,
        model=model,
        max_length=max_length,
        tokens_note=_tokens_note(tokenizer),
        splits=tuple(_split_report(found, one, watch) for one in found.splits),
        held_out=_held_out(found, data.valid_fraction, seed),
        counts={kind.value: faults.counts[kind] for kind in Kind if faults.counts[kind]},
        faults=tuple(_fault_report(found, one) for one in faults.kept),
        allowable=tuple(kind for kind in ALLOWABLE if faults.counts[kind] and faults.refuses(kind)),
        samples=_samples(watch),
    )
    return report, found


def _refuse_lost(found: Inspection, watch: TokenWatch) -> None:
    """A split of which nothing at all can be learned is of no use."""
    for name_of_split, facts in watch.facts.items():
        if facts.counted and facts.lost + facts.refused == facts.counted:
            name = next(one.name for one in found.files if one.split is name_of_split)
            text = "has no row with anything to learn in the part that is trained on"
            found.faults.add(Fault(Kind.FILE, name, None, text))


def _tokens_note(tokenizer: ChatTokenizer | GraftError | None) -> str | None:
    if tokenizer is None:
        return "no model was named"
    return str(tokenizer) if isinstance(tokenizer, GraftError) else None


def _split_report(found: Inspection, name: Split, watch: TokenWatch | None) -> SplitReport:
    facts = found.splits[name]
    counted = watch.facts.get(name) if watch else None
    return SplitReport(
        name=name,
        files=tuple(Path(one.name).name for one in found.files if one.split is name),
        rows=facts.rows,
        bad_rows=facts.bad_rows,
        bytes=sum(facts.sizes),
        turns=facts.turns or None,
        lengths=_lengths(facts, counted),
        truncated_share=counted.truncated_share if counted else None,
        learned_share=_learned_share(counted),
    )


def _learned_share(counted: TokenFacts | None) -> float | None:
    if counted is None or not counted.sampled_tokens:
        return None
    return counted.learned_tokens / counted.sampled_tokens


def _lengths(facts: SplitFacts, counted: TokenFacts | None) -> LengthReport | None:
    values = sorted(counted.lengths if counted and counted.lengths else facts.sizes)
    if not values:
        return None
    return LengthReport(
        unit="tokens" if counted and counted.lengths else "bytes",
        counted_rows=len(values),
        shortest=values[0],
        median=values[len(values) // 2],
        mean=round(sum(values) / len(values), 1),
        percentile_95=values[min(len(values) - 1, int(len(values) * 0.95))],
        longest=values[-1],
        histogram=histogram(values),
    )


def histogram(values: Sequence[int]) -> Histogram:
    """Of sorted values: bins of one round width; a few that are far out share the last one."""
    top = max(1, values[min(len(values) - 1, int(len(values) * 0.99))])
    scale = 1
    while not any(top // (scale * one) < BINS for one in _WIDTHS):
        scale *= 10
    width = next(scale * one for one in _WIDTHS if top // (scale * one) < BINS)
    edges = tuple(range(min(values[0] // width, top // width) * width, top + 1, width))
    places = [0, *(bisect_right(values, edge - 1) for edge in edges[1:]), len(values)]
    return Histogram(edges=edges, counts=tuple(end - start for start, end in pairwise(places)))


def _held_out(found: Inspection, fraction: float, seed: int) -> int | None:
    train = found.facts(Split.TRAIN)
    if Split.VALID in found.splits or not train.rows:
        return None
    return len(split(range(train.rows), fraction, seed, train.keys)[1])


def _fault_report(found: Inspection, one: Fault) -> FaultReport:
    refuses = found.faults.refuses(one.kind)
    return FaultReport(file=one.file, line=one.line, kind=one.kind, text=one.text, refuses=refuses)


def _samples(watch: TokenWatch | None) -> tuple[SampleReport, ...]:
    shown = watch.shown if watch else []
    return tuple(
        SampleReport(file=one.file, line=one.line, tokens=one.tokens, pieces=one.pieces) for one in shown
    )
