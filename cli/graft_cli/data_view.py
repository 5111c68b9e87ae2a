"""A data set's report, and the difference of two, as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graft_cli.amounts import size
from graft_cli.bars import bar, bar_width
from graft_cli.output import cut, has_color, out, paint

if TYPE_CHECKING:
    from graft_scheduler.data.fleet import Difference
    from graft_scheduler.data.report import DataReport, FaultReport, LengthReport, SplitReport

MOST_TOLD = 20
"""Faults that are told one by one; `--json` and the page have more."""
MOST_SAMPLE = 1200
"""Letters of a row that are shown."""
MARKS = ("«", "»")
"""Around what is learned, where nothing can be colored."""


def tell_report(report: DataReport) -> None:
    """The whole report on stdout."""
    _tell_contents(report)
    for split in report.splits:
        if split.lengths is not None:
            _tell_lengths(split, split.lengths)
    _tell_samples(report)
    _tell_faults([one for one in report.faults if not one.refuses], "to know", report)
    _tell_faults([one for one in report.faults if one.refuses], "refused", report)


def _tell_contents(report: DataReport) -> None:
    data_format = report.format or "none that is known"
    if report.trained_as not in {None, report.format}:
        data_format += f", trained as {report.trained_as}"
    pairs = [("format", data_format)]
    for split in report.splits:
        bad = f", {split.bad_rows:,} with faults" if split.bad_rows else ""
        turns = f", {split.turns / split.rows:.1f} turns each" if split.turns and split.rows else ""
        files = ", ".join(split.files[:3]) + (
            f" and {len(split.files) - 3} more" if len(split.files) > 3 else ""
        )
        pairs.append((split.name, f"{split.rows:,} rows{bad}, {size(split.bytes)}{turns} ({files})"))
    if report.held_out is not None:
        text = f"{report.held_out:,} of the train rows are held out, the same ones for a seed"
        pairs.append(("valid", text))
    if report.tokens_note is not None:
        pairs.append(("tokens", f"not counted: {report.tokens_note}"))
    out.pairs(report.source, pairs)


def _tell_lengths(split: SplitReport, lengths: LengthReport) -> None:
    unit = lengths.unit
    pairs = [
        ("median", f"{lengths.median:,} {unit}"),
        ("95% up to", f"{lengths.percentile_95:,} {unit}"),
        ("longest", f"{lengths.longest:,} {unit}"),
    ]
    if lengths.counted_rows < split.rows:
        pairs.append(("counted", f"{lengths.counted_rows:,} rows of {split.rows:,}"))
    if split.learned_share is not None:
        pairs.append(("learned", f"{split.learned_share:.0%} of the tokens"))
    if split.truncated_share:
        pairs.append(("cut", f"{split.truncated_share:.1%} of the rows are longer than what is trained on"))
    out.pairs(f"lengths of {split.name}", pairs + _bars(lengths))


def _bars(lengths: LengthReport) -> list[tuple[str, str]]:
    edges, counts = lengths.histogram.edges, lengths.histogram.counts
    figures, most = max(len(f"{count:,}") for count in counts), max(counts)
    names = [f"from {edge:,}" for edge in edges]
    width = bar_width(max(map(len, names)) + figures + len("      "))
    return [
        (name, f"{count:>{figures},}  {bar(count, most, width)}".rstrip())
        for name, count in zip(names, counts, strict=True)
    ]


def _tell_faults(faults: Sequence[FaultReport], title: str, report: DataReport) -> None:
    if not faults:
        return
    kinds = dict.fromkeys(one.kind for one in faults)
    counts = ", ".join(f"{report.counts[kind]:,} {kind}" for kind in kinds)
    out.data(paint(f"{title}: {counts}", sys.stdout, bold=True))
    most = MOST_TOLD if sys.stdout.isatty() else len(faults)  # a file has room for all
    for one in faults[:most]:
        place = one.file if one.line is None else f"{one.file}:{one.line}"
        out.data(f"  {place}: {one.text}")
    rest = sum(report.counts[kind] for kind in kinds) - min(len(faults), most)
    if rest:
        out.data(f"  and {rest:,} more; `--json` and `--html FILE` have the first thousand of each kind")


def _tell_samples(report: DataReport) -> None:
    for sample in report.samples:
        title = f"{sample.file}:{sample.line} as it is trained on, {sample.tokens:,} tokens"
        out.data(paint(f"{title}, what is learned {_marked_how()}", sys.stdout, bold=True))
        for line in _marked(sample.pieces).splitlines():
            out.data(f"  {line}")


def _marked_how() -> str:
    return "in green" if has_color(sys.stdout) else f"in {''.join(MARKS)}"


def _marked(pieces: Sequence[tuple[str, bool]]) -> str:
    parts, left = [], MOST_SAMPLE
    for text, is_learned in pieces:
        shown = cut(_visible(text), max(1, left))
        left -= len(shown)
        if not is_learned:
            parts.append(shown)
        elif has_color(sys.stdout):
            parts.append("\n".join(paint(line, sys.stdout, fg="green") for line in shown.split("\n")))
        else:
            parts.append(f"{MARKS[0]}{shown}{MARKS[1]}")
        if left <= 0:
            break
    return "".join(parts)


def _visible(text: str) -> str:
    """Without what would move a terminal's cursor or color it."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def tell_difference(found: Difference) -> None:
    """What changed from one version to the other."""
    out.table(
        ("SPLIT", "KEPT", "ADDED", "REMOVED"),
        [(one.split, f"{one.kept:,}", f"{one.added:,}", f"{one.removed:,}") for one in found.splits],
    )
    for one in found.splits:
        for sign, rows, count in (("+", one.added_rows, one.added), ("-", one.removed_rows, one.removed)):
            for row in rows:
                out.data(f"{sign} {one.split}: {cut(_visible(_line(row)), 160)}")
            if count > len(rows):
                out.data(f"{sign} {one.split}: and {count - len(rows):,} more")
    if found.is_empty:
        out.note(f"{found.first} and {found.second} have the same rows")


def difference_json(found: Difference) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "first": found.first.as_json(),
        "second": found.second.as_json(),
        "splits": [
            {
                "split": one.split,
                "kept": one.kept,
                "added": one.added,
                "removed": one.removed,
                "added_rows": list(one.added_rows),
                "removed_rows": list(one.removed_rows),
            }
            for one in found.splits
        ],
    }


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
