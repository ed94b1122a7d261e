"""What the whole chain did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actscope.studies.introspection.analyze import Analysed
from actscope.studies.introspection.collect import Collected

__all__ = ["IntrospectionResult"]


@dataclass(frozen=True)
class IntrospectionResult:
    """What the whole chain did.

    Attributes:
        collected: By name, ``base`` and ``finetuned``.
        analysed: What was found.
        seconds: Wall clock by step.
    """

    collected: dict[str, Collected]
    analysed: Analysed
    seconds: dict[str, float]

    @property
    def report(self) -> Path:
        """The page."""
        return self.analysed.report
