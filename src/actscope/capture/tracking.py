"""What a tracker is told of a run: its spec flat, then figures from the commit records.

A tracker stands beside the run and never in its way: once the run has begun, what goes wrong with
the tracker is a notice, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from actscope.core.protocols import Tracker

if TYPE_CHECKING:
    from actscope.stores import RunSummary

__all__ = ["Tracking", "figures_of", "flat"]


class Tracking:
    """Tells a tracker, if there is one.

    Args:
        tracker: Whom, or None.
        notice: Told in a sentence once it fails; it is not asked again.
    """

    def __init__(self, tracker: Tracker | None, notice: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._notice = notice

    def started(self, name: str, spec: Mapping[str, Any], further: Mapping[str, Any]) -> None:
        """The run begins or goes on."""
        parameters = dict(flat({**further, **spec}))
        self._tell(lambda tracker: tracker.started(name, parameters))

    def finished(self, state: str, values: Callable[[], Mapping[str, float]]) -> None:
        """The run's figures, and how it ended."""

        def tell(tracker: Tracker) -> None:
            tracker.figures(values())
            tracker.finished(state)

        self._tell(tell)

    def _tell(self, how: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            how(self._tracker)
        except Exception as error:  # a server that is down raises whatever it likes
            self._tracker = None
            self._notice(f"the tracker failed and is told no more: {error}")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``{"model": {"name": "m"}}`` -> ``("model.name", "m")``; long lists are cut in the middle."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(cast("Mapping[str, Any]", value), f"{name}.")
        elif isinstance(value, (list, tuple)):
            yield name, _listed([str(item) for item in cast("Sequence[Any]", value)])
        else:
            yield name, "" if value is None else str(value)


def _listed(items: Sequence[str]) -> str:
    if len(items) <= 8:
        return ", ".join(items)
    return f"[{len(items)}] {items[0]}, {items[1]}, ..., {items[-1]}"


def figures_of(summary: RunSummary) -> dict[str, float]:
    """Counts, sizes, seconds, and of each site the mean row norm, absmax and non-finite values."""
    found = {
        "examples": summary.n_examples,
        "failures": summary.n_failures,
        "tokens": summary.n_tokens,
        "bytes": summary.bytes,
        "pending_units": summary.n_pending,
        **{f"seconds/{phase}": seconds for phase, seconds in summary.timings.items()},
        **{f"failures/{kind}": count for kind, count in summary.errors.items()},
    }
    for key, site in summary.sites.items():
        found |= {
            f"{key}/norm": site.norms.mean,
            f"{key}/absmax": site.absmax,
            f"{key}/non_finite": site.non_finite,
        }
    return {name: float(value) for name, value in found.items()}
