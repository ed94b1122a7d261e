"""Ctrl-C and SIGTERM: the first stops cleanly between two batches, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

__all__ = ["CaptureInterrupted", "GracefulStop", "StopRequested"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(BaseException):
    """Leave the unit in hand; nothing of it was written."""


class CaptureInterrupted(KeyboardInterrupt):
    """A run was stopped on request. Everything committed is safe; running again goes on from there.

    Attributes:
        path: The run's folder.
        done: Examples on disk, failures included.
        total: Examples of the range.
    """

    def __init__(self, path: Path, done: int, total: int) -> None:
        self.path = path
        self.done = done
        self.total = total
        super().__init__(f"stopped with {done} of {total} examples in {path}")


class GracefulStop:
    """Turns the first signal into a request, for the time of a ``with`` block.

    Handlers can be set in the main thread only; elsewhere this does nothing, and whoever owns the
    main thread decides.

    Args:
        announce: Called once, when the request arrives.
    """

    def __init__(self, announce: Callable[[str], None] = lambda text: None) -> None:
        self._announce = announce
        self._before: dict[int, Any] = {}
        self.requested = False

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._announce("stopping after this batch; press Ctrl-C again to stop at once")

    def check(self) -> None:
        """Raise where a stop was requested.

        Raises:
            StopRequested: it was.
        """
        if self.requested:
            raise StopRequested
