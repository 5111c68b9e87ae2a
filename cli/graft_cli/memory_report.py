"""`graft show --memory`: what was predicted of a job's memory, how it was cut, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft_cli.amounts import size
from graft_cli.memory_timeline import as_plain, print_timeline
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.records import Event, JobRecord


def report_memory(record: JobRecord, events: Sequence[Event], png: Path | None, *, as_json: bool) -> None:
    """Print the report, and draw it where a file is named."""
    if png is not None:
        _draw(record, png)
    if as_json:
        out.json(_facts(record, events))
    else:
        _describe(record, events)
    if png is not None:
        out.note(f"the picture is in {png}")


def measured_bytes(record: JobRecord) -> int | None:
    """The peak that MLX reported: of the result, or so far."""
    if record.result and record.result.peak_memory_bytes is not None:
        return record.result.peak_memory_bytes
    return record.progress.peak_bytes if record.progress else None


def cut_that_ran(record: JobRecord, events: Sequence[Event]) -> dict[str, Any] | None:
    """How the engine cut its steps: as the result says, or as it planned them last."""
    told = [record.result.facts] if record.result else []
    told += [event.data.get("facts") or {} for event in reversed(events) if event.name == "planned"]
    return next((facts["cut"] for facts in told if isinstance(facts.get("cut"), dict)), None)


def _facts(record: JobRecord, events: Sequence[Event]) -> dict[str, Any]:
    return {
        "job": record.id,
        "host": record.host_name,
        "reserved_bytes": record.reserved_bytes,
        "predicted_peak_bytes": record.result.predicted_peak_bytes if record.result else None,
        "measured_peak_bytes": measured_bytes(record),
        "cut": cut_that_ran(record, events),
        "timeline": as_plain(record.memory),
    }


def _describe(record: JobRecord, events: Sequence[Event]) -> None:
    predicted = record.result.predicted_peak_bytes if record.result else None
    measured, samples = measured_bytes(record), record.memory
    held = max((one.footprint_bytes for one in samples), default=0)
    cut = cut_that_ran(record, events)
    out.pairs(
        f"Memory of job {record.id}",
        [
            ("host", record.host_name or ""),
            ("reserved", size(record.reserved_bytes) if record.reserved_bytes else ""),
            ("step", words_of_cut(cut) if cut else ""),
            ("predicted", f"{size(predicted)} at the peak, in MLX's arrays" if predicted else ""),
            ("measured", _compared(measured, predicted)),
            ("process", f"{size(held)} at most" if held else ""),
        ],
    )
    print_timeline(samples)
    if not samples:
        out.note("no memory over time is in its record; it is written when an attempt ends")


def words_of_cut(cut: dict[str, Any]) -> str:
    """`at most 2,048 tokens at once: 8 rows of 256, no gradient checkpointing`."""
    parts = [f"at most {cut['micro_batch_tokens']:,} tokens at once"] if "micro_batch_tokens" in cut else []
    if "rows" in cut and "width" in cut:
        parts.append(f"{cut['rows']} rows of {cut['width']:,} in the largest micro-batch")
    if "gradient_checkpointing" in cut:
        parts.append(("" if cut["gradient_checkpointing"] else "no ") + "gradient checkpointing")
    return ", ".join(parts)


def _compared(measured: int | None, predicted: int | None) -> str:
    if measured is None:
        return ""
    return size(measured) + (f" ({measured / predicted:.0%} of that)" if predicted else "")


def _draw(record: JobRecord, png: Path) -> None:
    from graft_cli.memory_plot import draw

    predicted = record.result.predicted_peak_bytes if record.result else None
    title = f"job {record.id}" + (f" on {record.host_name}" if record.host_name else "")
    draw(record.memory, png, title, predicted, measured_bytes(record))
