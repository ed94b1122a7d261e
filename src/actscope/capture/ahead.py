"""Forward passes of a unit: while one is copied to its places, the next may run already."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from actscope.capture.assembly import Assembly
from actscope.capture.batches import PlannedBatch
from actscope.capture.oom import LimitsByKind, run_halving
from actscope.core.activations import Batch, TokenRow
from actscope.core.protocols import AHEAD, Started

__all__ = ["PassesAhead"]


class PassesAhead:
    """Begins passes and puts what they bring where it belongs.

    Args:
        rows: Of the unit.
        whole: Gets the activations.
        begin: Begins a pass; see ``CaptureSession.begin``.
        limits: What memory was found to hold in this run.
        halved: Gets the size of every batch that did not fit, or was cut beforehand.
        advanced: Told examples and tokens after each pass.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        whole: Assembly,
        begin: Callable[[Batch], Started],
        limits: LimitsByKind,
        halved: list[int],
        advanced: Callable[[int, int], None],
    ) -> None:
        self._rows = rows
        self._whole = whole
        self._begin = begin
        self._limits = limits
        self._halved = halved
        self._advanced = advanced
        self._waiting: deque[tuple[Sequence[int], Started]] = deque()

    def run(self, planned: PlannedBatch) -> list[int]:
        """Begin a batch, in parts where memory does not hold it.

        Returns:
            Places of the rows that do not fit even alone, with nothing begun beside them.
        """

        def begin(places: Sequence[int]) -> bool:
            if len(self._waiting) == AHEAD:
                self._take()
            batch = planned.batch(self._rows, places)
            self._waiting.append((places, self._begin(batch)))
            return True

        done = run_halving(
            planned.places,
            begin,
            self._halved.append,
            tokens=lambda place: self._rows[place].longest,
            limits=self._limits["shared" if planned.beginnings else "plain"],
            relieve=self.take_all,
        )
        return [place for places, begun in done if begun is None for place in places]

    def take_all(self) -> bool:
        """Wait for every pass that was begun; whether there was any."""
        if not self._waiting:
            return False
        while self._waiting:
            self._take()
        return True

    def _take(self) -> None:
        places, started = self._waiting[0]
        self._whole.put(started(), places)
        self._waiting.popleft()
        self._advanced(len(places), sum(len(self._rows[i]) for i in places))
