"""The analyses of a collection on one page, with a JSON file and figures for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actscope.core.errors import OutputFolderError
from actscope.plots.report import Picture, Report, Section, Table, write_report
from actscope.studies.introspection.figures import comparison_figures, save_png
from actscope.studies.introspection.finding import Finding

if TYPE_CHECKING:
    from actscope.studies.introspection.comparison import Comparison
    from actscope.studies.introspection.data import Collection

__all__ = ["comparison_section", "write_findings", "write_page"]

_FEW = "Take intervals and controls with care"


def write_findings(findings: Sequence[Finding], folder: Path) -> list[Path]:
    """A JSON file and PNG figures of each analysis.

    Raises:
        OutputFolderError: they cannot be written.
    """
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for finding in findings:
            said = {"title": finding.title, "paragraph": finding.paragraph}
            text = json.dumps({**said, **finding.numbers}, indent=1, ensure_ascii=False) + "\n"
            path = folder / f"{finding.name}.json"
            path.write_text(text, encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise OutputFolderError(f"{folder} cannot be written", got=error.strerror) from error
    for finding in findings:
        for place, picture in enumerate(finding.pictures):
            name = f"{finding.name}_{'abcdefgh'[place]}.png"
            written.append(save_png(picture.figure, folder / name))
    return written


def write_page(
    collection: Collection,
    findings: Sequence[Finding],
    path: Path,
    comparison: Comparison | None = None,
    warned: Sequence[str] = (),
) -> Path:
    """The report.

    Args:
        collection: What was analysed.
        findings: Of it.
        path: Of the page.
        comparison: With another collection; it comes before the findings.
        warned: Sentences that come before everything else.

    Raises:
        OutputFolderError: it cannot be written.
    """
    sections = [Section(_FEW, caption=" ".join(warned))] if warned else []
    sections += [comparison_section(comparison)] if comparison is not None else []
    sections += [
        Section(f.title, f.pictures, f.paragraph, f.tables) for f in findings
    ]  # fmt: skip
    config = collection.config
    report = Report(
        title=f"What stands behind the stated confidence of “{collection.name}”",
        lead=(
            f"{_models(collection, comparison)} "
            f"{len(collection['mcq']):,} questions of {config['dataset_path']}{_rest(collection)}, "
            "each asked three ways: for its answer, for the model’s own confidence, and for "
            "others’ confidence. Letters are read from the logits; activations are the residual "
            f"stream after {_blocks(collection)} at the answer position. Intervals hold 95 % and "
            "come from redrawing questions."
        ),
        facts=_facts(collection),
        sections=sections,
        provenance=_provenance(collection),
    )
    return write_report(report, path)


def _models(collection: Collection, comparison: Comparison | None) -> str:
    """Who was asked, with its adapter."""
    if comparison is None:
        return f"The model is {collection.model}."
    one, other = comparison.models
    return f"The model is {one}; it is compared with {other}."


def _rest(collection: Collection) -> str:
    if not collection.missing:
        return ""
    return f" ({collection.missing:,} more of its range are not collected yet)"


def _blocks(collection: Collection) -> str:
    if len(collection.layers) == collection.config["spec"]["model"]["n_layers"]:
        return "every block"
    return f"block {', '.join(map(str, collection.layers))}"


def comparison_section(found: Comparison) -> Section:
    """Two collections side by side."""
    one, other = found.names
    rows = [(m.name, str(m.one), str(m.other), str(m.difference)) for m in found.measures]
    caption = f"n = {found.n} questions in both; the difference is paired by question."
    pictures = [Picture(fig, f"{name} of {one} and {other}.", name.capitalize())
                for name, fig in comparison_figures(found).items()]  # fmt: skip
    table = Table(["figure", one, other, f"{other} minus {one}"], rows, caption)
    said = " ".join([_likeness(found), *(f"{one}." for one in found.caveats)])
    return Section(_compared(found), pictures, said, [table])


def _compared(found: Comparison) -> str:
    by_name = {m.name: m for m in found.measures}
    if "ECE" not in by_name:
        return f"{found.names[0]} and {found.names[1]} on {found.n} questions"
    ece = by_name["ECE"]
    figures = f"{ece.other.value:.3f} against {ece.one.value:.3f}"
    if not ece.difference.excludes_zero:
        return (
            f"The calibration errors of {found.names[1]} and {found.names[0]} cannot be told "
            f"apart: {figures}"
        )
    way = "lower" if ece.difference.high < 0 else "higher"
    return f"{found.names[1]} has {way} calibration error than {found.names[0]}: {figures}"


def _likeness(found: Comparison) -> str:
    if not found.likeness:
        return "The two models have other widths: their activations are not compared."
    parts = [
        f"{one.folder}: cosine {min(one.cosine):.3f} to {max(one.cosine):.3f}, debiased CKA "
        f"{min(one.cka):.3f} to {max(one.cka):.3f} over blocks"
        for one in found.likeness
    ]
    return "Activations of the two models at the answer position, " + "; ".join(parts) + "."


def _facts(collection: Collection) -> list[tuple[str, object]]:
    mcq = collection["mcq"]
    return [
        ("questions", f"{len(mcq):,}"),
        ("right answers", f"{mcq.numbers('is_correct').mean():.1%}"),
        (
            "mean self-confidence",
            f"{collection['self_confidence'].numbers('self_confidence').mean():.0f} %",
        ),
        (
            "mean other-confidence",
            f"{collection['other_confidence'].numbers('other_confidence').mean():.0f} %",
        ),
        ("blocks", len(collection.layers)),
    ]


def _provenance(collection: Collection) -> list[tuple[str, object]]:
    config = collection.config
    model = config["spec"]["model"]
    return [
        ("model", f"{model['name']} ({model['model_type']}, {model['dtype']})"),
        ("revision", model["revision"]),
        ("adapter", model["adapter"] or "none"),
        ("tokenizer", model["tokenizer"]),
        ("questions", config["spec"]["questions"]),
        ("templates", ", ".join(f"{k} {v}" for k, v in config["spec"]["templates"].items())),
        ("spec", config["fingerprint"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in config["environment"].items())),
        ("collected", config["created"]),
        ("made with", "actscope introspect analyze"),
    ]
