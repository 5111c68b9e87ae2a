"""How a plan reads: the job, one step of it, its memory as a picture, the hosts, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft_cli.amounts import duration, size
from graft_cli.bars import amounts_with_bars
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.basemodels import BaseModel
    from graft_scheduler.host_verdicts import HostVerdict
    from graft_scheduler.job_plan import JobPlan
    from graft_scheduler.memory import Backend
    from graft_scheduler.planning import CutPlan
    from graft_scheduler.remedies import Remedy
    from graft_scheduler.time_estimate import TimeEstimate

MOST_REMEDIES = 4
MOMENTS = {
    "loading": "while the base is loaded",
    "check": "while the kernels of the loss are compared",
    "gradient": "in the backward pass",
    "evaluation": "in an evaluation",
    "update": "while the optimizer updates",
}
"""When the peak is reached, in words."""
HOST, FITS = 0, 4


def describe_plan(plan: JobPlan) -> None:
    """Print the plan: what is known on stdout, what to do about it on stderr."""
    out.pairs("Job", _job(plan))
    _describe_best(plan)
    _describe_backends(plan)
    _describe_hosts(plan)
    _advise(plan)


def words_of_cut(plan: JobPlan, backend: Backend, cut: CutPlan) -> str:
    """`8 rows at once, 4 micro-batches a step, no gradient checkpointing`; of rows as long as the longest."""
    from graft_scheduler.job_plan import longest_rows_at_once

    rows = longest_rows_at_once(plan, backend, cut.cut)
    batches = -(-plan.job.batch_rows // rows)
    parts = [
        f"{rows} {'row' if rows == 1 else 'rows'} at once",
        f"{batches} micro-batches a step" if batches > 1 else "one micro-batch a step",
        "gradient checkpointing" if cut.cut.gradient_checkpointing else "no gradient checkpointing",
    ]
    return ", ".join(parts)


def _job(plan: JobPlan) -> list[tuple[str, str]]:
    from graft_cli.description import method_of
    from graft_scheduler.time_estimate import steps

    job, total = plan.job, steps(plan.job, plan.lengths.rows)
    return [
        ("model", job.model.source),
        ("known of it", _model(plan.model)),
        ("data", _data(plan)),
        ("method", method_of(job)),
        ("length", f"{total} {'step' if total == 1 else 'steps'} of {job.batch_rows} rows"),
    ]


def _model(model: BaseModel | None) -> str:
    if model is None:
        return "nothing: the hub does not tell, and it is no folder here; the job takes a whole host"
    kind = [model.model_type, f"{_count(model.parameters)} parameters"]
    kind.append(f"{model.quantization.bits} bits" if model.quantization else model.dtype)
    if model.num_experts > 1:
        kind.append(f"{model.experts_per_token} of {model.num_experts} experts a token")
    return ", ".join(kind)


def _count(number: int) -> str:
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.1f}{letter}"
    return str(number)


def _data(plan: JobPlan) -> str:
    lengths, likely = plan.lengths, plan.likely_lengths
    if lengths.is_counted:
        return f"{lengths.rows:,} rows of {lengths.mean:,.0f} tokens, the longest of {lengths.longest:,}"
    return (
        f"{lengths.rows:,} rows of about {likely.mean:,.0f} tokens, none of more than {lengths.longest:,} "
        "(from their bytes)"
    )


def _describe_best(plan: JobPlan) -> None:
    """The step and its memory: on the host that would start first, or on the first backend."""
    best = plan.best
    if best is not None and best.cut is not None:
        backend, cut, time = best.host.backend, best.cut, best.time
        place = f"{best.host.name} ({backend.value})"
    elif plan.backends:
        backend = plan.nearest.host.backend if plan.nearest else plan.backends[0].backend
        chosen = next(one for one in plan.backends if one.backend is backend)
        place, cut, time = f"{backend.value}, with the memory it would like", chosen.fastest, None
    else:
        return
    out.pairs(
        f"On {place}",
        [
            ("step", words_of_cut(plan, backend, cut)),
            ("peak", _peak(cut)),
            ("time", _time(time) if time or plan.hosts else ""),
        ],
    )
    parts = [(name.replace("_", " "), value) for name, value in cut.estimate.parts.items() if value]
    out.pairs("Memory at the peak", amounts_with_bars([*parts, ("together", cut.estimate.total_bytes)]))


def _peak(cut: CutPlan) -> str:
    estimate = cut.estimate
    told = MOMENTS.get(estimate.moment, f"at the {estimate.moment}")
    if estimate.doubt is not None:
        told += f"; {estimate.doubt}, so this is wider"
    if cut.peak_bytes == estimate.total_bytes:
        return f"{size(cut.peak_bytes)} ({told})"
    return f"{size(cut.peak_bytes)}: {size(estimate.total_bytes)} corrected by what was measured ({told})"


def _time(time: TimeEstimate | None) -> str:
    if time is None:
        return "unknown: no job like it was measured there, and the chip is not a known one"
    return f"about {duration(time.seconds)}, {time.basis}"


def _describe_backends(plan: JobPlan) -> None:
    """What it takes at least, and the most that would make it faster."""
    if not plan.backends:
        return
    rows = [
        (
            one.backend.value,
            size(one.smallest.peak_bytes),
            _short_words(plan, one.backend, one.smallest),
            size(one.fastest.peak_bytes),
            _short_words(plan, one.backend, one.fastest),
        )
        for one in plan.backends
    ]
    out.data("")
    out.table(("BACKEND", "AT LEAST", "COMPUTES AT ONCE", "AT MOST", "COMPUTES AT ONCE"), rows)


def _describe_hosts(plan: JobPlan) -> None:
    if not plan.hosts:
        return
    out.data("")
    rows = [_host(plan, one) for one in plan.hosts]
    out.table(("HOST", "PEAK", "TIME", "COMPUTES AT ONCE", "FITS"), rows, shrink=(HOST, FITS))
    times = [one.time for one in plan.hosts if one.time is not None]
    if any(not one.is_measured for one in times) and any(one.is_measured for one in times):
        out.note("times that are not marked as measured are guesses from the chips' public figures")


def _host(plan: JobPlan, verdict: HostVerdict) -> tuple[str, ...]:
    cut, time = verdict.cut, verdict.time
    measured = " measured" if time is not None and time.is_measured else ""
    return (
        verdict.host.name,
        "-" if cut is None else size(cut.peak_bytes),
        "-" if time is None else duration(time.seconds) + measured,
        "-" if cut is None else _short_words(plan, verdict.host.backend, cut),
        verdict.reason,
    )


def _short_words(plan: JobPlan, backend: Backend, cut: CutPlan) -> str:
    """`8 rows`, or `1 row, recomputed` with gradient checkpointing."""
    from graft_scheduler.job_plan import longest_rows_at_once

    rows = longest_rows_at_once(plan, backend, cut.cut)
    again = ", recomputed" if cut.cut.gradient_checkpointing else ""
    return f"{rows} {'row' if rows == 1 else 'rows'}{again}"


def _advise(plan: JobPlan) -> None:
    from graft_scheduler.host_verdicts import Fit

    if plan.asked_fleet and not plan.hosts:
        out.note("no host has registered yet")
        out.hint("`graft worker` on a machine makes it a host; `graft up` starts everything on this one")
    if plan.waiting and plan.fit is not Fit.NEVER:
        jobs = "1 job waits" if plan.waiting == 1 else f"{plan.waiting} jobs wait"
        out.note(f"{jobs} in the queue already; what fits of that goes first")
    if plan.fit is Fit.NEVER:
        _advise_remedies(plan)
    elif plan.fit is not None:
        out.hint("`graft train` with the same options submits it")


def _advise_remedies(plan: JobPlan) -> None:
    nearest = plan.nearest
    if nearest is None:
        out.note("no host takes such a job, whatever its size")
        return
    if plan.job.limits.memory_bytes is not None:
        out.hint("leave out `limits.memory_bytes`: it stands in the place of the estimate")
        return
    if not nearest.remedies:
        out.note("no single change was found that makes it fit; a larger host is needed, or a smaller model")
        return
    for remedy in nearest.remedies[:MOST_REMEDIES]:
        out.hint(words_of_remedy(remedy, nearest.host.name))


def words_of_remedy(remedy: Remedy, host: str) -> str:
    """`to fit on mini, adapt a quantised base (...): --method qlora; then 3.1 GB at the least`."""
    return (
        f"to fit on {host}: {remedy.words}; `{' '.join(remedy.flags)}` "
        f"(then {size(remedy.peak_bytes)} at least)"
    )
