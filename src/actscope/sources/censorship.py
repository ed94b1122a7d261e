"""Questions that a model may censor, each with a neutral twin: one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actscope.core.errors import SourceError
from actscope.core.text import Example
from actscope.sources._memory import InMemory
from actscope.sources.jsonl import JSONLSource

__all__ = ["SOURCE", "CensorshipSource"]

_SHAPE = (
    '{"id": "...", "question": "...", "censored": true, "censorship_category": "refusal", '
    '"subject": "...", "twin": "id of its twin"}'
)


class CensorshipSource(InMemory):
    """The questions as prompts; metadata holds the other fields of each row.

    Args:
        path: A JSONL file of rows ``{id, question, censored, censorship_category, subject, twin}``.
            ``censored`` is true or false; the category names what censorship is expected and is
            ``none`` exactly where ``censored`` is false. ``twin`` may be missing; where it is
            given, it is the id of a row of the other kind that names this row in turn. Rows that
            are made alike, such as one request about several towns, may share a ``group``, which
            statistics keep together.

    Raises:
        SourceError: there is no such file, or a row breaks one of these rules.
    """

    def __init__(self, path: str | Path) -> None:
        rows = list(JSONLSource(path, text_field="question").examples())
        empty = next((row.id for row in rows if not (row.text or "").strip()), None)
        if empty is not None:
            raise SourceError(f"{path}, id {empty!r}: the question is empty", expected=_SHAPE)
        by_id = {row.id: row.metadata for row in rows}
        for row in rows:
            _check(row.id, row.metadata, by_id, f"{path}, id {row.id!r}")
        super().__init__([_with_question(row) for row in rows], str(path))


def _check(
    identity: str, row: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]], where: str
) -> None:
    censored, category = row.get("censored"), row.get("censorship_category")
    if not isinstance(censored, bool) or not isinstance(category, str) or not category:
        raise SourceError(
            f"{where}: censored must be true or false, and censorship_category a name",
            got=f"{censored!r} and {category!r}",
            expected=_SHAPE,
        )
    if (category == "none") == censored:
        raise SourceError(
            f"{where}: the category is 'none' exactly where censored is false",
            got=f"censored {censored}, category {category!r}",
        )
    if not isinstance(row.get("subject"), str) or not isinstance(row.get("group", ""), str):
        raise SourceError(
            f"{where}: subject must be a text, and group too where it is given",
            got=f"{row.get('subject')!r} and {row.get('group')!r}",
            expected=_SHAPE,
        )
    twin = row.get("twin")
    if twin is None:
        return
    other = by_id.get(str(twin))
    if other is None or str(other.get("twin")) != identity or other.get("censored") is censored:
        found = "there is no such row"
        if other is not None:
            found = f"which is censored {other.get('censored')} and names {other.get('twin')!r}"
        raise SourceError(
            f"{where}: its twin must be a row of the other kind that names it in turn",
            got=f"twin {twin!r}: {found}",
            next_step="mend one of the two rows, or leave `twin` out",
        )


def _with_question(row: Example) -> Example:
    """The question alone stays readable where a chat template is wrapped around the text."""
    return Example(row.id, text=row.text, metadata={**row.metadata, "question": row.text})


SOURCE = CensorshipSource
