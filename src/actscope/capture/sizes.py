"""Byte counts as people read them."""

from __future__ import annotations

__all__ = ["readable_bytes"]


def readable_bytes(count: float) -> str:
    """A byte count for people: ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
