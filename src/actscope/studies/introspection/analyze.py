"""All five analyses of a collection, and their report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actscope.plots.style import require_matplotlib
from actscope.studies.introspection.analysis_inputs import inputs_of
from actscope.studies.introspection.cautions import cautions
from actscope.studies.introspection.comparison import Comparison, compare
from actscope.studies.introspection.data import Collection
from actscope.studies.introspection.directions import confidence_directions
from actscope.studies.introspection.emergence import probe_emergence
from actscope.studies.introspection.finding import Finding
from actscope.studies.introspection.params import AnalysisParams
from actscope.studies.introspection.patching import causal_patching
from actscope.studies.introspection.replay import Replay
from actscope.studies.introspection.report import write_findings, write_page
from actscope.studies.introspection.self_other import self_versus_other
from actscope.studies.introspection.surface_internal import surface_versus_internal

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel

__all__ = ["Analysed", "analyze"]


@dataclass(frozen=True)
class Analysed:
    """What was found.

    Attributes:
        findings: One an analysis.
        comparison: With another collection, where one was given.
        report: The page.
        files: JSON files and figures.
        warned: Why figures are coarse; empty where there are questions and refits enough.
    """

    findings: tuple[Finding, ...]
    comparison: Comparison | None
    report: Path
    files: tuple[Path, ...]
    warned: tuple[str, ...] = ()


def analyze(
    collection: Collection,
    model: HFModel,
    out: Path,
    params: AnalysisParams | None = None,
    *,
    other: Collection | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Analysed:
    """Do all analyses and write their page, ``out/report.html``.

    Args:
        collection: All three passes of at least forty questions.
        model: The model that it was made with.
        out: Folder of the report, the JSON files and the figures.
        params: How.
        other: A collection of the same questions to compare with, such as the finetuned model's.
        step: Told what is being done.

    Raises:
        BadInputError: a pass is missing, too few questions, confidence that does not vary, or
            matplotlib is not installed.
        RunMismatchError: another model.
    """
    require_matplotlib()
    chosen = params or AnalysisParams()
    inputs = inputs_of(collection)
    replay = Replay(model, collection)
    comparison = compare(collection, other) if other is not None else None
    findings = (
        probe_emergence(inputs, chosen, step),
        surface_versus_internal(inputs, chosen, step),
        confidence_directions(inputs, replay, chosen, step),
        self_versus_other(inputs, chosen, step),
        causal_patching(inputs, replay, chosen, step),
    )
    step("the report")
    warned = cautions(len(inputs), chosen.shuffles)
    report = write_page(collection, findings, out / "report.html", comparison, warned)
    files = write_findings(findings, out)
    return Analysed(findings, comparison, report, tuple(files), warned)
