"""Errors as people read them, and the exit code of each."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from actscope.cli._console import complain
from actscope.core.errors import ActscopeError

__all__ = ["explain", "safe_if_stopped"]


@contextmanager
def safe_if_stopped(folder: Path) -> Generator[None]:
    """What is committed to a folder meanwhile survives Ctrl-C, and the message says so.

    Args:
        folder: Where it is written. As long as it is not there, there is nothing to be safe.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        with suppress(ActscopeError, OSError):  # a server that does not answer changes no message
            if folder.exists():
                stopped.add_note(f"what was committed to {folder} is safe")
        raise


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
        complain("; ".join(["stopped at once", *_notes(error)]), colour="yellow")
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


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))
