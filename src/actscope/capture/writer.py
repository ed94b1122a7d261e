"""Write units in the background, so that the model does not wait for the disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from actscope.core.activations import ActivationBatch
from actscope.core.errors import ActscopeError, RunError
from actscope.core.protocols import RunWriter

__all__ = ["BackgroundWriter", "batch_bytes"]


def batch_bytes(batch: ActivationBatch) -> int:
    """The memory a batch holds, text left aside."""
    tables = (batch.offsets, batch.positions, batch.token_ids, batch.token_offsets, batch.phase)
    return sum(a.nbytes for a in (*batch.arrays.values(), *tables))


_Waiting = tuple[str, ActivationBatch, Mapping[str, Any], int, Callable[[], None]]


class BackgroundWriter:
    """A thread that appends units to a run, fed by a queue bounded in bytes.

    A full queue blocks ``submit``; nothing is ever dropped. What goes wrong while writing is
    raised in the calling thread, by the next ``submit`` or by ``finish``.

    Args:
        writer: The open run.
        max_bytes: Largest sum of waiting units, the one being written included. One larger unit
            is taken alone.
    """

    def __init__(self, writer: RunWriter, max_bytes: int) -> None:
        self.writer = writer
        self._max_bytes = max_bytes
        self._queue: deque[_Waiting] = deque()
        self._held = 0
        self._changed = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self.peak_bytes = 0
        self._thread = threading.Thread(target=self._work, name="actscope-writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        unit: str,
        batch: ActivationBatch,
        metadata: Mapping[str, Any],
        written: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand over a unit; waits while the queue is full.

        Args:
            unit: Its id.
            batch: Its content.
            metadata: What goes on record about it.
            written: Called from the writing thread once it is on disk.

        Raises:
            RunError: an earlier unit could not be written.
        """
        size = batch_bytes(batch)
        with self._changed:
            while self._error is None and self._held and self._held + size > self._max_bytes:
                self._changed.wait()
            self._raise_error()
            self._queue.append((unit, batch, metadata, size, written))
            self._held += size
            self.peak_bytes = max(self.peak_bytes, self._held)
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            RunError: a unit could not be written.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            self._raise_error()

    def abandon(self) -> None:
        """Let go of what waits; the unit in hand is finished or dies with the process."""
        with self._changed:
            self._queue.clear()
            self._closing = True
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is None:
            return
        if isinstance(self._error, ActscopeError):
            raise self._error
        raise RunError(
            "a unit could not be written; what was committed before is safe",
            got=f"{type(self._error).__name__}: {self._error}",
            next_step="mend the disk and run the same command again: it resumes",
        ) from self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                unit, batch, metadata, size, written = self._queue.popleft()
            error = self._append(unit, batch, metadata)
            del batch  # its memory counts as held until here
            if error is None:
                written()
            del written
            with self._changed:
                self._held -= size
                if error is not None:
                    self._error = error
                    self._queue.clear()
                    self._closing = True
                self._changed.notify_all()
                if error is not None:
                    return

    def _append(
        self, unit: str, batch: ActivationBatch, metadata: Mapping[str, Any]
    ) -> BaseException | None:
        try:
            self.writer.append(unit, batch, metadata)
        except BaseException as error:  # whatever it is, the main thread must see it
            return error
        return None
