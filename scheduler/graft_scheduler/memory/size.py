"""Bytes as people read them."""

from __future__ import annotations


def format_bytes(number_of_bytes: int) -> str:
    """`13.4 GB`: powers of 1024 under the names that Macs are sold with, as `parse_bytes` reads them."""
    value = float(number_of_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if round(abs(value), 1) < 1024:
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + " TB"
