"""A data set's report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from graft_scheduler.data.report import DataReport, FaultReport, LengthReport, SampleReport, SplitReport
from graft_scheduler.memory.size import format_bytes

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser lets the page do, should a row get past the escapes."""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 190, 46, 24, 8


def as_html(report: DataReport) -> str:
    """The whole page; all that comes from the data set is escaped."""
    style = (files("graft_scheduler.data") / "page" / "style.css").read_text("utf-8")
    title = escape(report.source)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Data {title}</title>\n<style>{style}</style>\n</head>\n<body>",
        f"<h1>{title}</h1>",
        _summary(report),
        _lengths(report),
        _faults("Why it is refused", [one for one in report.faults if one.refuses], report),
        _faults("What is good to know", [one for one in report.faults if not one.refuses], report),
        _samples(report.samples),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _summary(report: DataReport) -> str:
    verdict = "<p>Every row can be trained on.</p>"
    if not report.accepted:
        verdict = '<p class="refused">Not accepted: see below, each fault with its file and line.</p>'
    data_format = report.format or "none that is known"
    if report.trained_as not in {None, report.format}:
        data_format += f", trained as {report.trained_as}"
    facts = [("format", data_format), *((one.name, _rows(one)) for one in report.splits)]
    if report.held_out is not None:
        facts.append(("valid", f"{report.held_out:,} of the train rows, the same ones for a seed"))
    facts.append(("model", report.model or "none was named"))
    facts.append(("longest row", f"{report.max_length:,} tokens are trained on"))
    if report.tokens_note is not None:
        facts.append(("tokens", f"not counted: {report.tokens_note}"))
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<section>{verdict}<dl>{terms}</dl></section>"


def _rows(split: SplitReport) -> str:
    bad = f", {split.bad_rows:,} with faults" if split.bad_rows else ""
    learned = f", {split.learned_share:.0%} of the tokens learned" if split.learned_share is not None else ""
    cut = f", {split.truncated_share:.1%} cut" if split.truncated_share else ""
    return f"{split.rows:,} rows{bad}, {format_bytes(split.bytes)}{learned}{cut} ({', '.join(split.files)})"


def _lengths(report: DataReport) -> str:
    charts = [_chart(one, one.lengths, report.max_length) for one in report.splits if one.lengths]
    if not charts:
        return ""
    return f'<section><h2>How long rows are</h2><div class="charts">{"".join(charts)}</div></section>'


def _chart(split: SplitReport, lengths: LengthReport, max_length: int) -> str:
    counts, edges = lengths.histogram.counts, lengths.histogram.edges
    most, step = max(counts), (WIDTH - LEFT) / len(counts)
    height = HEIGHT - BOTTOM - TOP
    bars = []
    for place, (edge, count) in enumerate(zip(edges, counts, strict=True)):
        tall = height * count / most
        x, y = LEFT + place * step, TOP + height - tall
        told = f"<title>from {edge:,} {lengths.unit}: {count:,} rows</title>"
        bars.append(
            f'<rect x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{tall:.1f}">{told}</rect>'
        )
    every = max(1, len(edges) // 6)
    marks = [
        f'<text x="{LEFT + place * step:.1f}" y="{HEIGHT - 8}">{edges[place]:,}</text>'
        for place in range(0, len(edges), every)
    ]
    width = edges[1] - edges[0] if len(edges) > 1 else 1
    limit = LEFT + (max_length - edges[0]) / width * step
    if lengths.unit == "tokens" and LEFT < limit < WIDTH:
        line = f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="{TOP}" y2="{TOP + height}"/>'
        bars.append(line)
    axis = f'<line x1="{LEFT}" x2="{WIDTH}" y1="{TOP + height}" y2="{TOP + height}"/>'
    top = f'<text x="{LEFT - 6}" y="{TOP + 10}" text-anchor="end">{most:,}</text>'
    label = f"{split.name}: rows by {lengths.unit}"
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    counted = (
        f" of {lengths.counted_rows:,} rows that were counted" if lengths.counted_rows < split.rows else ""
    )
    text = (
        f"<p>{split.name}: median {lengths.median:,}, 95% up to {lengths.percentile_95:,}, "
        f"longest {lengths.longest:,} {lengths.unit}{counted}</p>"
    )
    return f"<div>{text}{picture}{axis}{top}{''.join(bars)}{''.join(marks)}</svg></div>"


def _faults(title: str, faults: Sequence[FaultReport], report: DataReport) -> str:
    if not faults:
        return ""
    kinds = dict.fromkeys(one.kind for one in faults)
    counts = ", ".join(f"{report.counts[kind]:,} {kind}" for kind in kinds)
    kept = len(faults)
    total = sum(report.counts[kind] for kind in kinds)
    more = f"<p>The first {kept:,} of {total:,}.</p>" if total > kept else ""
    rows = "".join(
        f'<tr><td class="place">{escape(_place(one))}</td><td>{escape(one.kind)}</td>'
        f"<td>{escape(one.text)}</td></tr>"
        for one in faults
    )
    head = "<tr><th>Place</th><th>Kind</th><th>What is wrong</th></tr>"
    return (
        f'<section><h2>{title}</h2><p>{escape(counts)}</p>{more}<div class="wide"><table>{head}{rows}</table>'
        "</div></section>"
    )


def _place(fault: FaultReport) -> str:
    return fault.file if fault.line is None else f"{fault.file}:{fault.line}"


def _samples(samples: Sequence[SampleReport]) -> str:
    if not samples:
        return ""
    shown = "".join(_sample(one) for one in samples)
    told = "<p>What is marked is learned; the rest is only read.</p>"
    return f"<section><h2>Rows as they are trained on</h2>{told}{shown}</section>"


def _sample(sample: SampleReport) -> str:
    text = "".join(
        f"<mark>{escape(piece)}</mark>" if is_learned else escape(piece)
        for piece, is_learned in sample.pieces
    )
    return f"<p>{escape(sample.file)}:{sample.line}, {sample.tokens:,} tokens</p><pre>{text}</pre>"
