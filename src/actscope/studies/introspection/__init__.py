"""Introspection: what a model answers, how sure it says it is, and what lies behind it.

from actscope.studies.introspection import STUDY
STUDY.run(Path("introspection"))  # the path of the report
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from actscope.studies.introspection.params import (
    AnalysisParams,
    CollectParams,
    IntrospectionParams,
)

__all__ = ["STUDY", "AnalysisParams", "CollectParams", "Introspection", "IntrospectionParams"]


class Introspection:
    """The whole chain as a study; ``run.run_introspection`` takes parameters and a progress too."""

    name: ClassVar[str] = "introspection"

    def run(self, out: Path) -> Path:
        """A first look at the bundled model and its adapter, resumably; the path of its report."""
        from actscope.backends.hf import load_model
        from actscope.studies.introspection.run import run_introspection

        params = IntrospectionParams(out)
        return run_introspection(load_model(params.model), params).report


STUDY = Introspection()
