"""What a run holds, from its commit records alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from actscope.core.stats import Moments
from actscope.stores._records import TensorEntry

if TYPE_CHECKING:
    from actscope.stores._reader import Run

__all__ = ["RunSummary", "SiteSummary", "summarise"]


@dataclass(frozen=True)
class CodedSummary:
    """What a codec did to one site; a unit in which it could do nothing counts as plain.

    Attributes:
        codec: Its name.
        bytes: What the site takes on disk.
        ratio: Bytes of its values over that.
        lowest_ratio: The same of the unit where it is lowest.
        max_error: Largest absolute difference between a value and what is read back.
        rms_error: Root mean square of the relative errors of the units, each weighed by its values.
        highest_rms_error: The relative error of the unit where it is highest.
    """

    codec: str
    bytes: int
    ratio: float
    lowest_ratio: float
    max_error: float
    rms_error: float
    highest_rms_error: float


@dataclass(frozen=True)
class SiteSummary:
    """Statistics of one site over the whole run.

    Attributes:
        rows: Stored rows.
        width: Values in a row.
        dtype: dtype on disk.
        bytes: Size of its values.
        norms: Moments of the row norms; rows that are not finite are left out.
        absmax: Largest finite magnitude.
        non_finite: How many values are NaN or infinite.
        coded: What a codec did to it, or None.
    """

    rows: int
    width: int
    dtype: str
    bytes: int
    norms: Moments
    absmax: float
    non_finite: int
    coded: CodedSummary | None = None


@dataclass(frozen=True)
class RunSummary:
    """What a run holds.

    Attributes:
        n_units: Committed units.
        n_pending: Planned units that are not committed.
        n_examples: Captured examples.
        n_failures: Examples that could not be captured.
        n_tokens: Tokens of the captured examples.
        n_prompt_tokens: How many of them are prompt.
        n_rows: Rows stored per site with a token axis.
        bytes: Size of the data files.
        sites: Statistics by site key.
        errors: Number of failures by kind.
        timings: Seconds by phase, all units together.
    """

    n_units: int
    n_pending: int
    n_examples: int
    n_failures: int
    n_tokens: int
    n_prompt_tokens: int
    n_rows: int
    bytes: int
    sites: Mapping[str, SiteSummary]
    errors: Mapping[str, int]
    timings: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)


def summarise(run: Run) -> RunSummary:
    """Merge what the commit records of a run say."""
    commits = [unit.commit for unit in run.stored_units]
    counts: Counter[str] = Counter()
    timings: dict[str, float] = {}
    errors: Counter[str] = Counter()
    for commit in commits:
        counts.update(commit.counts)
        for phase, seconds in commit.timings.items():
            timings[phase] = timings.get(phase, 0.0) + seconds
        errors.update(failure.kind for failure in commit.errors)
    keys = dict.fromkeys(str(entry.site) for commit in commits for entry in commit.sites)
    return RunSummary(
        n_units=len(commits),
        n_pending=len(run.pending),
        n_examples=counts["examples"],
        n_failures=errors.total(),
        n_tokens=counts["tokens"],
        n_prompt_tokens=counts["prompt_tokens"],
        n_rows=counts["rows"],
        bytes=sum(commit.bytes for commit in commits),
        sites={key: _summarise_site(run, key) for key in keys},
        errors=dict(sorted(errors.items())),
        timings=dict(sorted(timings.items())),
    )


def _summarise_site(run: Run, key: str) -> SiteSummary:
    found = [unit.commit.tensors.get(key) for unit in run.stored_units]
    entries = [entry for entry in found if entry is not None]
    norms = Moments()
    for entry in entries:
        norms = norms.merge(entry.norms or Moments())
    widths = [math.prod(entry.shape[1:]) for entry in entries]
    return SiteSummary(
        rows=sum(entry.shape[0] for entry in entries),
        width=max(widths, default=0),
        dtype=", ".join(sorted({entry.dtype for entry in entries})),
        bytes=sum(entry.nbytes for entry in entries),
        norms=norms,
        absmax=max((entry.absmax for entry in entries), default=0.0),
        non_finite=sum(entry.non_finite for entry in entries),
        coded=_summarise_coding(entries),
    )


def _summarise_coding(entries: Sequence[TensorEntry]) -> CodedSummary | None:
    codings = [entry.coding for entry in entries if entry.coding is not None]
    if not codings:
        return None
    size = sum(entry.nbytes for entry in entries)
    stored = sum(entry.stored_bytes for entry in entries)
    squares = sum(e.coding.rms_error**2 * e.nbytes for e in entries if e.coding is not None)
    return CodedSummary(
        codec=codings[0].codec,
        bytes=stored,
        ratio=size / stored,
        lowest_ratio=min(entry.nbytes / entry.stored_bytes for entry in entries if entry.nbytes),
        max_error=max(coding.max_error for coding in codings),
        rms_error=math.sqrt(squares / size),
        highest_rms_error=max(coding.rms_error for coding in codings),
    )
