"""How a comparison reads: a table, and the variant to take with the rule that chose it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graft_cli.amounts import duration, perplexity, size
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.comparison import Comparison, Row

HEADER = (
    "VARIANT",
    "BEFORE",
    "LOSS",
    "PERPLEXITY",
    "TRAINING",
    "TOKENS/S",
    "PEAK",
    "ADAPTER",
    "TRAINABLE",
    "HOST",
    "JOB",
    "STATE",
)
VARIANT, HOST, STATE = 0, 9, 11
UNKNOWN = "-"


def print_comparison(comparison: Comparison, plot: Path | None, *, as_json: bool) -> None:
    """Print it, and draw it where a file is named."""
    if as_json:
        out.json(comparison.as_json())
    else:
        describe(comparison)
    if plot is not None:
        from graft_cli.comparison_plot import draw

        draw(comparison, plot)
        out.note(f"the picture is in {plot}")


def describe(comparison: Comparison) -> None:
    """The table and the recommendation on stdout, what to know of them on stderr."""
    out.table(HEADER, [cells(row) for row in comparison.rows], shrink=(VARIANT, HOST, STATE))
    out.data("")
    found = comparison.recommendation
    out.pairs(
        "Recommendation",
        [
            ("take", found.variant or ("none" if comparison.is_over else "none yet")),
            ("because", found.reason),
            ("rule", found.rule if found.variant else ""),
        ],
    )
    for caveat in comparison.caveats:
        out.note(caveat)
    _hint(comparison)


def cells(row: Row) -> tuple[str, ...]:
    """The row as texts, in the order of `HEADER`."""
    return (
        row.variant,
        _loss(row.initial_loss),
        _loss(row.validation_loss),
        UNKNOWN if row.validation_loss is None else perplexity(row.validation_loss),
        UNKNOWN if row.training_seconds is None else duration(row.training_seconds),
        UNKNOWN if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        _size(row.peak_memory_bytes),
        _size(row.adapter_bytes),
        share(row.trainable_share),
        row.host or UNKNOWN,
        row.job,
        state(row),
    )


def share(value: float | None) -> str:
    """Of all parameters: `0.43%`, `100%`; small ones with two digits that count."""
    if value is None:
        return UNKNOWN
    percent = 100 * value
    return f"{percent:.2g}%" if percent < 1 else f"{percent:.3g}%"


def state(row: Row) -> str:
    """Where it is, or why it failed."""
    if row.failure:
        return f"{row.state.shown}, {row.failure}"
    if row.state == "running" and row.total_steps:
        return f"running, step {row.steps}/{row.total_steps}"
    return row.state.shown


def _loss(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"


def _size(value: int | None) -> str:
    return UNKNOWN if value is None else size(value)


def _hint(comparison: Comparison) -> None:
    chosen = next((row for row in comparison.rows if row.variant == comparison.recommendation.variant), None)
    if not comparison.is_over:
        out.hint(f"`graft compare --show {comparison.name} --wait` stays until all have ended")
    elif chosen is not None:
        out.hint(f"`graft pull {chosen.job}` brings the adapter of {chosen.variant}")
    elif failed := next((row for row in comparison.rows if row.failure), None):
        out.hint(f"`graft logs {failed.job}` has the log of {failed.variant}")
