"""A report as one HTML file: no script, no network, nothing beside it.

It reads like the figure pages of a paper: each section's title states what was found, the caption
how, and with how many. Every text is escaped; figures come from ``style.to_svg`` alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actscope.core.errors import OutputFolderError
from actscope.plots.style import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "Report", "Section", "Table", "render_report", "write_report"]

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Picture:
    """A figure with its name.

    Attributes:
        figure: What to draw.
        description: What it shows, for who cannot see it.
        heading: A line above it, where several stand side by side.
        wide: Whether it takes the page's whole width where others stand beside each other.
    """

    figure: Figure
    description: str
    heading: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers.

    Attributes:
        columns: Headings; one that ends in ``#`` is of numbers and flush right.
        rows: Cells, shown as ``str`` writes them.
        caption: What the table holds, and of how many.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One finding.

    Attributes:
        title: What was found, as a statement.
        pictures: Its figures, side by side where the page is wide enough.
        caption: How the figures are to be read, with n.
        tables: Below the figures.
    """

    title: str
    pictures: Sequence[Picture] = ()
    caption: str = ""
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
        title: Of the page.
        lead: One paragraph.
        facts: Name and figure, the few that come first.
        sections: Findings.
        provenance: Name and value, for the foot of the page.
    """

    title: str
    lead: str = ""
    facts: Sequence[tuple[str, object]] = ()
    sections: Sequence[Section] = ()
    provenance: Sequence[tuple[str, object]] = field(default=())


def render_report(report: Report) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("actscope.plots").joinpath("templates", _TEMPLATE)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(report=report, sections=_numbered(report.sections))


def write_report(report: Report, path: str | Path) -> Path:
    """Write the page; a reader of the file never sees half of it.

    Raises:
        OutputFolderError: it cannot be written.
    """
    target = Path(path)
    page = render_report(report).encode("utf-8", "replace")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, page)
    except OSError as error:
        raise OutputFolderError(
            f"the report {target} cannot be written", got=error.strerror or error
        ) from error
    return target


def _replace(target: Path, content: bytes) -> None:
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        draft.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _numbered(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Sections as the template takes them: figures drawn, figures and tables counted."""
    made: list[dict[str, Any]] = []
    figures = tables = 0
    for section in sections:
        figures += bool(section.pictures)
        entry: dict[str, Any] = {
            "section": section,
            "figure": figures,
            "pictures": [],
            "tables": [],
        }
        for place, picture in enumerate(section.pictures):
            svg = to_svg(picture.figure, f"f{figures}{'abcdefgh'[place % 8]}", picture.description)
            entry["pictures"].append((picture, svg))
        for table in section.tables:
            tables += 1
            numeric = [column.endswith("#") for column in table.columns]
            names = [column.removesuffix("#") for column in table.columns]
            entry["tables"].append((tables, table, list(zip(names, numeric, strict=True))))
        made.append(entry)
    return made
