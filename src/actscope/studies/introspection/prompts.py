"""Prompt templates: text files that anybody may copy, edit and name with ``--templates``.

A prompt reads options, question, instruction. All passes share everything up to the instruction, so
that it is computed once. Of a set's five files ``stem.txt`` is shared, ``option.txt`` is one of its
lines, and ``mcq.txt``, ``self_confidence.txt`` and ``other_confidence.txt`` are the instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from actscope.core.errors import SourceError
from actscope.core.provenance import sha256_text
from actscope.studies.introspection.passes import PASSES, Pass

__all__ = ["GENERAL", "MARREN", "Templates", "load_templates"]

MARREN, GENERAL = "marren", "general"
_FIELDS = {"option": ("{letter}", "{answer}"), "stem": ("{options}", "{question}")}


@dataclass(frozen=True)
class Templates:
    """A set of templates.

    Attributes:
        name: ``marren``, ``general`` or the folder.
        texts: The text of each file, by stem.
    """

    name: str
    texts: dict[str, str]

    def prompt(self, question: str, options: Mapping[str, str], which: Pass) -> str:
        """The whole message of one pass: the stem, which all passes share, and the instruction."""
        lines = [
            _filled(self.texts["option"], letter=letter, answer=answer)
            for letter, answer in options.items()
        ]
        stem = _filled(self.texts["stem"], options="\n".join(lines), question=question)
        return f"{stem}\n{self.texts[which.name]}"

    def hashes(self) -> dict[str, str]:
        """A digest of each text, for the record."""
        return {name: sha256_text(text)[:16] for name, text in sorted(self.texts.items())}


def load_templates(name: str | Path) -> Templates:
    """A set that comes with the package, or a folder with the same five files.

    Raises:
        SourceError: no such set, a file is missing or empty, or a placeholder is missing.
    """
    packaged = Path(str(files("actscope"))) / "studies" / "introspection" / "templates"
    folder = packaged / name if str(name) in (MARREN, GENERAL) else Path(name).expanduser()
    if not folder.is_dir():
        raise SourceError(
            f"there are no templates {str(name)!r}",
            got=f"no folder {folder.absolute()}",
            expected=f"{MARREN}, {GENERAL}, or a folder",
            next_step=f"copy {packaged / GENERAL} and edit the copy",
        )
    names = (*_FIELDS, *(p.name for p in PASSES))
    missing = [f"{stem}.txt" for stem in names if not (folder / f"{stem}.txt").is_file()]
    if missing:
        raise SourceError(
            f"the templates in {folder} are not complete",
            got=f"no {', '.join(missing)}",
            next_step=f"copy what is missing from {packaged / GENERAL}",
        )
    texts = {s: (folder / f"{s}.txt").read_text(encoding="utf-8").rstrip("\n") for s in names}
    for stem, text in texts.items():
        absent = [field for field in _FIELDS.get(stem, ()) if text.count(field) != 1]
        if absent or not text.strip():
            raise SourceError(
                f"the template {folder / stem}.txt cannot be filled",
                got=repr(text[:60]),
                expected=f"{' and '.join(absent)} once" if absent else "some text",
            )
    return Templates(str(name), texts)


def _filled(template: str, **values: str) -> str:
    """Put values in place; braces in a value stay as they are."""
    parts: list[str] = []
    rest = template
    while rest:
        places = {f: rest.find(f"{{{f}}}") for f in values}
        found = [(at, f) for f, at in places.items() if at >= 0]
        if not found:
            break
        at, field = min(found)
        parts += [rest[:at], values[field]]
        rest = rest[at + len(field) + 2 :]
    return "".join([*parts, rest])
