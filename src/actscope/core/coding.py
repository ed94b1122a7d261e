"""The names of what makes stored activations smaller, and how much smaller that is at least."""

from __future__ import annotations

__all__ = ["CODEC_NAMES", "INT8_BLOCK", "coded_share"]

CODEC_NAMES = ("int8", "zstd")
INT8_BLOCK = 32
"""Values that share an exponent."""


def coded_share(codec: str | None, dtype: str, width: int) -> float:
    """The bytes on disk of a byte of activations, at most.

    Args:
        codec: One of ``CODEC_NAMES``, or None.
        dtype: What the values are stored in otherwise.
        width: Values in a row.
    """
    size = {"float32": 4, "float16": 2, "bfloat16": 2}.get(dtype)
    if codec != "int8" or size is None or not width:
        return 1.0  # how much zstd saves depends on the values
    return (width + -(-width // INT8_BLOCK)) / (width * size)
