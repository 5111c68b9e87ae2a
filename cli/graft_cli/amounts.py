"""How times, counts and losses read on a screen."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60, 3600, 86400


def age(seconds: float) -> str:
    """How long ago: `5s ago`, `3m ago`, `2h ago`, `4d ago`."""
    seconds = max(0.0, seconds)
    for size, letter in ((DAY, "d"), (HOUR, "h"), (MINUTE, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{letter} ago"
    return f"{int(seconds)}s ago"


def duration(seconds: float) -> str:
    """How long: `8s`, `1m20s`, `2h05m`, `3d04h`."""
    whole = max(0, round(seconds))
    if whole >= DAY:
        return f"{whole // DAY}d{whole % DAY // HOUR:02}h"
    if whole >= HOUR:
        return f"{whole // HOUR}h{whole % HOUR // MINUTE:02}m"
    if whole >= MINUTE:
        return f"{whole // MINUTE}m{whole % MINUTE:02}s"
    return f"{whole}s"


def rate(tokens_per_second: float) -> str:
    """Tokens a second: `840 tokens/s`, `12.3k tokens/s`."""
    if tokens_per_second >= 10_000:
        return f"{tokens_per_second / 1000:.1f}k tokens/s"
    return f"{tokens_per_second:,.0f} tokens/s"


def size(number_of_bytes: int) -> str:
    """Memory or disk, in the units of the rest of Graft."""
    from graft_scheduler.memory import format_bytes

    return format_bytes(number_of_bytes)


def perplexity(loss: float) -> str:
    """The perplexity of a loss in nats, short."""
    import math

    value = math.exp(min(loss, 50.0))
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"
