"""One check for whole numbers that a user gives."""

from __future__ import annotations

from numbers import Integral

from actscope.core.errors import BadInputError

__all__ = ["whole_number"]


def whole_number(name: str, value: object, least: int, *, instead: str = "") -> int:
    """A whole number of Python or numpy, as a plain ``int``.

    A truth value is none, nor is 2.0: whoever gives one meant something else.

    Args:
        name: What it is called where it is given.
        value: What was given.
        least: The smallest that makes sense.
        instead: What may be given in its place, in words.

    Raises:
        BadInputError: it is no whole number, or smaller.
    """
    truth = isinstance(value, bool)
    number = int(value) if isinstance(value, Integral) else None
    if truth or number is None or number < least:
        raise BadInputError(
            f"{name} must be a whole number of at least {least}",
            got=repr(value),
            expected=f"{least}, {least + 1}, ..." + (f", or {instead}" if instead else ""),
            next_step=f"pass {name} as an int that is not smaller",
        )
    return number
