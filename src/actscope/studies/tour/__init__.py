"""The tour: capture, answers, verification and a report, on the bundled model, offline.

from actscope.studies.tour import STUDY
STUDY.run(Path("demo-run"))  # the path of the report
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from actscope.studies.tour.params import TourParams

__all__ = ["STUDY", "Tour", "TourParams"]


class Tour:
    """The tour as a study; ``run.run_tour`` takes a model and a progress display as well."""

    name: ClassVar[str] = "tour"

    def run(self, out: Path) -> Path:
        """Do it, resumably; the report lies beside the runs, in ``out``."""
        from actscope.backends.hf import load_model
        from actscope.studies.tour.run import run_tour

        params = TourParams(out=out, report=out / "demo-report.html")
        return run_tour(load_model(params.model), params).report


STUDY = Tour()
