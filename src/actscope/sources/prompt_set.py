"""Prompt sets: a JSON file with a name, a description and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from actscope.core.errors import SourceError
from actscope.core.text import Example
from actscope.sources._fields import Fields
from actscope.sources._files import existing_file, parse_json, read_text
from actscope.sources._memory import InMemory

__all__ = ["SOURCE", "PromptSetSource", "read_prompt_set"]

_SHAPE = '{"name": "...", "description": "...", "prompts": [{"id": 1, "text": "...", "note": ""}]}'


class PromptSetSource(InMemory):
    """The prompts of one set; metadata holds the ``prompt_set``'s name and each prompt's ``note``.

    Args:
        path: A JSON file ``{name, description, prompts: [{id, text, note}]}``.

    Raises:
        SourceError: there is no such file, or it has another shape.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def __init__(self, path: str | Path) -> None:
        super().__init__(read_prompt_set(path)[1], str(path))


def read_prompt_set(path: str | Path) -> tuple[str, list[Example]]:
    """The name and the prompts of a set; ids are as in the file, as text.

    Raises:
        SourceError: there is no such file, or it has another shape.
    """
    file = existing_file(path)
    text = read_text(file)
    if not text.strip():
        return file.stem, []
    value: Any = parse_json(text, str(file))
    data = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
    prompts = data.get("prompts")
    if not isinstance(prompts, list):
        raise SourceError(
            f"{file} is not a prompt set",
            got=f"fields {', '.join(data)}" if data else type(value).__name__,
            expected=_SHAPE,
            next_step="for plain rows write one JSON object a line into a .jsonl file",
        )
    name = str(data.get("name") or file.stem)
    return name, [
        _prompt(index, prompt, name, f"{file}, prompt {index}")
        for index, prompt in enumerate(cast("list[Any]", prompts))
    ]


def _prompt(index: int, prompt: Any, name: str, where: str) -> Example:
    if not isinstance(prompt, Mapping):
        raise SourceError(f"{where} is not an object", got=f"{prompt!r:.60}", expected=_SHAPE)
    row = {"prompt_set": name, "note": "", **cast("Mapping[str, Any]", prompt)}
    return Fields().example(index, row, where)


SOURCE = PromptSetSource
