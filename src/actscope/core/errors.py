"""Every error actscope raises on purpose.

    ActscopeError
    ├── BadInputError              what was asked for cannot be done (exit code 2)
    │   ├── UnknownNameError       no such plugin, layer, site or option: "did you mean"
    │   ├── SiteUnavailableError   the model has no verified tensor of that meaning
    │   ├── SourceError            the dataset cannot be read, or lacks a field
    │   ├── ModelLoadError         the model or tokenizer cannot be loaded
    │   ├── ExampleError           one example cannot be captured (recorded, never fatal)
    │   ├── RunMismatchError       the folder holds a run of another spec
    │   ├── OutputFolderError      the output folder holds something else or cannot be written
    │   └── NotEnoughDiskError     the run cannot fit on the disk
    └── RunError                   it failed while running (exit code 1)
        ├── DamagedRunError        stored bytes are not the bytes that were committed
        ├── DiskFullError          the disk filled up while running
        ├── StorageError           a remote folder cannot be reached, or refuses
        ├── DuplicateUnitError     one unit was written twice with different content
        └── NumericRangeError      a value does not fit the storage dtype asked for

A message says what happened, what was got, what was expected, and the next step.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "ActscopeError",
    "BadInputError",
    "DamagedRunError",
    "DiskFullError",
    "DuplicateUnitError",
    "ExampleError",
    "ModelLoadError",
    "NotEnoughDiskError",
    "NumericRangeError",
    "OutputFolderError",
    "RunError",
    "RunMismatchError",
    "SiteUnavailableError",
    "SourceError",
    "StorageError",
    "UnknownNameError",
]


class ActscopeError(Exception):
    """The root of the tree.

    Args:
        what: What happened, as one sentence without a full stop.
        got: What was found, if that helps.
        expected: What would have been right.
        next_step: What the user can do now.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, got: object = None, expected: object = None, next_step: str = ""
    ) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.next_step = next_step
        parts = [what]
        if got is not None:
            parts.append(f"got: {got}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        if next_step:
            parts.append(f"next: {next_step}")
        super().__init__("\n  ".join(parts))


class BadInputError(ActscopeError, ValueError):
    """What was asked for cannot be done."""

    exit_code = 2


class UnknownNameError(BadInputError):
    """A name that is not in its list; the message lists the known names and the closest one."""

    def __init__(self, kind: str, name: object, known: Iterable[str], next_step: str = "") -> None:
        self.known = sorted(known)
        close = difflib.get_close_matches(str(name), self.known, n=1, cutoff=0.5)
        # Another layer is no typo: a hint that only changes a number would mislead.
        close = [c for c in close if re.sub(r"\d", "", c) != re.sub(r"\d", "", str(name))]
        hint = f"did you mean {close[0]!r}?" if close else ""
        super().__init__(
            f"unknown {kind} {name!r}",
            expected=_listed(str(name), self.known),
            next_step=" ".join(part for part in (hint, next_step) if part),
        )


def _listed(name: str, known: list[str]) -> str:
    """All known names where they are few, else the closest ones."""
    if not known:
        return "nothing: none exist"
    if len(known) <= 24:
        return "one of " + ", ".join(known)
    close = difflib.get_close_matches(name, known, n=6, cutoff=0.3) or known[:6]
    return f"one of {len(known)}, such as {', '.join(close)}"


class SiteUnavailableError(BadInputError):
    """The model has no verified tensor of that meaning."""


class SourceError(BadInputError):
    """The dataset cannot be read, or lacks a field."""


class ModelLoadError(BadInputError):
    """The model or its tokenizer cannot be loaded."""


class ExampleError(BadInputError):
    """One example cannot be captured. It is recorded in the run and the rest goes on.

    Attributes:
        kind: A short stable word to count by, such as ``too_long`` or ``empty_span``.
    """

    def __init__(self, kind: str, what: str, *, next_step: str = "") -> None:
        self.kind = kind
        super().__init__(what, next_step=next_step)


class RunMismatchError(BadInputError):
    """The folder holds a run of another spec.

    Attributes:
        differences: Rows of (field, stored value, value asked for).
    """

    def __init__(
        self, where: str, differences: Iterable[tuple[str, object, object]], next_step: str = ""
    ) -> None:
        self.differences = list(differences)
        rows = "".join(f"\n    {f}: stored {a!r}, asked for {b!r}" for f, a, b in self.differences)
        super().__init__(
            f"{where} holds a run of another spec; what differs:{rows}",
            next_step=next_step or "choose another output folder, or ask for the stored spec",
        )


class OutputFolderError(BadInputError):
    """The output folder holds something else or cannot be written."""


class NotEnoughDiskError(BadInputError):
    """The run cannot fit on the disk."""


class RunError(ActscopeError, RuntimeError):
    """It failed while running."""


class DamagedRunError(RunError):
    """Stored bytes are not the bytes that were committed."""


class DiskFullError(RunError):
    """The disk filled up while running; what was committed is safe."""


class StorageError(RunError):
    """A remote folder cannot be reached, or refuses; what was committed is safe."""


class DuplicateUnitError(RunError):
    """One unit was written twice with different content."""


class NumericRangeError(RunError):
    """A value does not fit the storage dtype asked for."""
