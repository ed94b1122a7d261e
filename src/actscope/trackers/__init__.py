"""Where figures of runs are logged, besides the run itself. One file here adds a tracker.

``tracker("mlflow:http://host:5000#my-experiment")`` and ``tracker("jsonl:runs.jsonl")`` make one;
any object with the three methods of ``core.protocols.Tracker`` serves as well.
"""

from __future__ import annotations

from collections.abc import Callable

from actscope.core.errors import BadInputError
from actscope.core.protocols import Tracker
from actscope.core.registry import Registry

__all__ = ["TRACKERS", "tracker"]

TRACKERS: Registry[Callable[[str], Tracker]] = Registry("actscope.trackers", "TRACKER", "tracker")


def tracker(address: str) -> Tracker:
    """A tracker by its address, ``KIND:WHERE``.

    Raises:
        UnknownNameError: no such kind.
        BadInputError: no address, or what the kind needs is not installed.
    """
    kind, colon, where = address.partition(":")
    if not colon or not where:
        raise BadInputError(
            "a tracker's address is KIND:WHERE",
            got=address,
            expected="for example mlflow:file:///data/mlruns#my-experiment or jsonl:runs.jsonl",
        )
    return TRACKERS.get(kind)(where)
