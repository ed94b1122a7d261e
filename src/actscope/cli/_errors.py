"""Errors as people read them, and the exit code of each."""

from __future__ import annotations

from actscope.cli._console import complain
from actscope.core.errors import ActscopeError

__all__ = ["explain"]


def explain(error: BaseException) -> int:
    """Print an error in red, without a traceback.

    Returns:
        The exit code of the process.
    """
    from actscope.capture.interrupt import CaptureInterrupted

    if isinstance(error, CaptureInterrupted):
        complain(
            f"stopped: {error.done} of {error.total} examples are safe in {error.path}",
            "run the same command again to go on from there",
            colour="yellow",
        )
        return 130
    if isinstance(error, KeyboardInterrupt):
        complain("stopped at once; what was committed is safe", colour="yellow")
        return 130
    if isinstance(error, ActscopeError):
        head, *rest = str(error).splitlines()
        complain(f"error: {head}", *rest)
        return error.exit_code
    if isinstance(error, OSError):
        complain(f"error: {error}")
        return 1
    complain(
        f"unexpected {type(error).__name__}: {error}",
        "run it again with --debug for the traceback, and please report it",
    )
    return 1
