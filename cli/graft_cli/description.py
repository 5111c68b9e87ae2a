"""All that is known of a job, laid out for reading."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graft_cli.amounts import age, duration, perplexity, rate, size
from graft_cli.failures import remedy
from graft_cli.output import out
from graft_cli.progress import figures, position

if TYPE_CHECKING:
    from graft_scheduler.demand import Demand
    from graft_scheduler.jobs import CountJob, TrainJob
    from graft_scheduler.messages import TrainResult
    from graft_scheduler.records import Event, JobRecord
    from graft_scheduler.tags import Tag

REPEATED = frozenset({"phase", "evaluated", "checkpoint"})
TOLD_ELSEWHERE = frozenset({"token", "jobs", "hosts", "facts", "versions"})
"""In an event's data, but on the screen already, or too long for it; `--json` has them."""
EMPTY: tuple[Any, ...] = (None, "", 0, {}, [])
DIGEST_LETTERS = 15


def describe(record: JobRecord, events: Sequence[Event], names: Sequence[Tag] = ()) -> None:
    """Print the job, what of it has a name, its settings, its memory, its outcome and its history."""
    out.pairs(f"Job {record.id}", [*_job(record), ("adapter", _adapter(record)), ("names", _names(names))])
    out.pairs("Settings", _settings(record.spec))
    out.pairs("Memory", _memory(record))
    if record.result:
        out.pairs("Result", _result(record.result))
    if record.failure:
        out.pairs("Failure", _failure(record))
    out.pairs("Checkpoints", checkpoints_of(record))
    out.pairs("History", history(events, record.submitted_at))
    _hint(record)


def checkpoints_of(record: JobRecord) -> list[tuple[str, str]]:
    """Those that can be pulled, with what they are."""
    from graft_scheduler.checkpoints import best_of

    best, last = best_of(record.checkpoints), max((one.step for one in record.checkpoints), default=None)
    rows = []
    for one in record.checkpoints:
        what = [name for name, step in (("best", best and best.step), ("last", last)) if step == one.step]
        loss = "" if one.loss is None else f"loss {one.loss:.4f}"
        rows.append((f"step {one.step}", ", ".join(word for word in (loss, size(one.bytes), *what) if word)))
    return rows


def _job(record: JobRecord) -> list[tuple[str, str]]:
    now = time.time()
    return [
        ("name", record.spec.name or ""),
        ("kind", record.spec.kind),
        ("state", record.state.shown),
        ("host", record.host_name or ""),
        ("progress", _progress(record)),
        ("submitted", f"{age(now - record.submitted_at)} by {record.spec.submitter}"),
        ("took", _took(record)),
        ("attempts", _attempts(record)),
        ("labels", ", ".join(f"{name}={value}" for name, value in record.spec.labels.items())),
    ]


def _adapter(record: JobRecord) -> str:
    if record.removed is None or record.adapter is not None:
        return record.adapter or ""
    return f"removed by {record.removed.by} {age(time.time() - record.removed.at / 1000)}"


def _names(names: Sequence[Tag]) -> str:
    return ", ".join(
        f"{tag.name} ({tag.what if tag.what == 'adapter' else f'checkpoint of step {tag.step}'})"
        for tag in names
    )


def _progress(record: JobRecord) -> str:
    if record.progress is None or record.state.is_terminal:
        return ""
    now = record.progress
    return ", ".join(part for part in (now.phase.value, position(now), *figures(now)) if part)


def _took(record: JobRecord) -> str:
    if record.started_at is None:
        return ""
    waited = f"waited {duration(record.started_at - record.queued_at)}"
    end = record.finished_at or time.time()
    return f"{duration(end - record.started_at)}, {waited}"


def _attempts(record: JobRecord) -> str:
    if not record.token:
        return ""
    counts = [
        *((record.charged, "failed"), (record.lost, "lost with a host")),
        *((record.stalled, "without the store"), (record.memory_failures, "out of memory")),
    ]
    told = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"{record.token} ({told})" if told else str(record.token)


def _settings(spec: TrainJob | CountJob) -> list[tuple[str, str]]:
    if spec.kind == "count":
        return [("steps", str(spec.steps)), ("step seconds", f"{spec.step_seconds:g}")]
    length = f"{spec.steps} steps" if spec.steps else f"{spec.epochs or 1:g} epochs"
    optimizer, schedule = spec.optimizer.name.value, spec.schedule.name.value
    return [
        ("model", spec.model.source),
        ("revision", spec.model.revision or ""),
        ("data", spec.data.version or spec.data.source),
        ("method", method_of(spec)),
        ("learning rate", f"{spec.learning_rate:g} ({optimizer}, {schedule})"),
        ("length", f"{length}, batches of {spec.batch_size}, rows of at most {spec.max_length} tokens"),
        ("seed", str(spec.seed)),
        ("priority", str(spec.priority)),
    ]


def method_of(spec: TrainJob) -> str:
    """How the base is adapted, in a few words."""
    adapter = spec.adapter
    layers = f"the last {adapter.layers} layers" if adapter.layers else "all layers"
    if spec.method == "full":
        return f"full, {layers}"
    return f"{spec.method.value}, rank {adapter.rank}, scale {adapter.multiplier:g}, {layers}"


def _memory(record: JobRecord) -> list[tuple[str, str]]:
    measured = record.result.peak_memory_bytes if record.result else None
    if measured is None and record.progress:
        measured = record.progress.peak_bytes
    return [
        (
            "estimated",
            ", ".join(f"{_span(demand)} on {kind}" for kind, demand in (record.demands or {}).items()),
        ),
        ("reserved", size(record.reserved_bytes) if record.reserved_bytes else ""),
        ("measured", f"{size(measured)} at the peak" if measured else ""),
    ]


def _span(demand: Demand) -> str:
    least, most = size(demand.minimum_bytes), size(demand.preferred_bytes)
    return most if least == most else f"{least} to {most}"


def _result(result: TrainResult) -> list[tuple[str, str]]:
    return [
        ("steps", str(result.steps)),
        ("loss before", _loss(result.initial_loss)),
        ("loss after", _loss(result.final_loss)),
        (
            "best loss",
            f"{result.best_loss:.4f} at step {result.best_step}" if result.best_loss is not None else "",
        ),
        ("stopped early", "the validation loss no longer improved" if result.stopped_early else ""),
        ("saved state", f"that of step {result.saved_step}" if result.saved_step else ""),
        ("rank", f"{result.facts['rank']}, cut from what was trained" if "rank" in result.facts else ""),
        ("skipped", f"{result.skipped_steps} steps that were no numbers" if result.skipped_steps else ""),
        ("training", duration(result.training_seconds)),
        ("speed", rate(result.tokens_per_second) if result.tokens_per_second else ""),
        ("padding", f"{result.padding_share:.1%}" if result.padding_share is not None else ""),
    ]


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f} (validation; perplexity {perplexity(loss)})"


def _failure(record: JobRecord) -> list[tuple[str, str]]:
    assert record.failure is not None
    return [
        ("class", record.failure.failure.value),
        ("what", record.failure.text),
        ("where", record.failure.host_name or ""),
        ("remedy", remedy(record) if record.state == "failed" else ""),
    ]


def history(events: Sequence[Event], start: float) -> list[tuple[str, str]]:
    """When what happened; of what repeats, only the last of each attempt is told, with its number."""
    counts = Counter((event.name, event.token) for event in events)
    seen: Counter[tuple[str, int | None]] = Counter()
    told = []
    for event in events:
        what = (event.name, event.token)
        seen[what] += 1
        if event.name in REPEATED and seen[what] < counts[what]:
            continue
        times = f"{counts[what]} times, last: " if event.name in REPEATED and counts[what] > 1 else ""
        told.append((f"+{duration(event.at - start)}", _event(event, times)))
    return told


def _event(event: Event, times: str) -> str:
    attempt = f"(attempt {event.token})" if event.token else ""
    known = {name: value for name, value in event.data.items() if name not in TOLD_ELSEWHERE}
    data = " ".join(f"{name}={_short(value)}" for name, value in known.items() if value not in EMPTY)
    return " ".join(part for part in (event.name, attempt, times + data) if part)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text[:DIGEST_LETTERS] + "…" if text.startswith("sha256:") else text


def _hint(record: JobRecord) -> None:
    match record.state.value:
        case "completed" if record.adapter:
            out.hint(f"`graft pull {record.id}` brings the adapter")
        case "queued":
            out.hint(f"`graft why {record.id}` says what it waits for")
        case "running":
            out.hint(f"`graft logs -f {record.id}` follows it")
        case _:
            out.hint(f"`graft logs {record.id}` has its log")
