"""Which failures a retry can help with, and how long to wait before it.

Waiting follows "full jitter" (Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture
Blog): a uniform draw from zero to an exponentially growing bound, so that clients that failed
together do not return together.
"""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["HALTING_STATUSES", "RETRIED_STATUSES", "backoff", "retry_after"]

RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""The same request may succeed later. Any other status says that it will not."""

HALTING_STATUSES = frozenset({401, 402, 404, 405})
"""What is wrong with the key, the account, the address or the model is wrong for every prompt. 403
is not among them: gateways use it for a single prompt that they moderate."""


def backoff(attempt: int, base: float, longest: float, rng: random.Random) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (from 0)."""
    return rng.uniform(0.0, min(longest, base * 2.0 ** min(attempt, 60)))


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks to wait, or None where it says nothing.

    Args:
        value: Seconds or an HTTP date (RFC 9110, section 10.2.3); a date in the past is no wait.
        now: The current time, for tests.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _until(value, now or datetime.now(UTC))
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _until(date: str, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:  # "-0000": UTC without saying so
        moment = moment.replace(tzinfo=UTC)
    return max((moment - now).total_seconds(), 0.0)
