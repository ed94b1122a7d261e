"""The texts and prompt sets that come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from actscope.core.errors import UnknownNameError
from actscope.core.protocols import Source
from actscope.core.text import Example
from actscope.sources._memory import InMemory
from actscope.sources.folder import FolderSource
from actscope.sources.prompt_set import PromptSetSource, read_prompt_set

__all__ = ["SOURCE", "DemoSource"]


class DemoSource:
    """Packaged data by name.

    Args:
        name: ``texts``, ``texts/long``, ``texts/short``; ``prompts`` for every prompt set (ids are
            ``SET/ID``), or ``prompts/SET`` for one, such as ``prompts/single_trait``.

    Raises:
        UnknownNameError: none of these.
    """

    def __init__(self, name: str = "texts") -> None:
        self._source = _open(name.strip("/"))

    def __len__(self) -> int:
        return len(self._source)

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """The examples of a range, in order."""
        return self._source.examples(start, stop)

    def fingerprint(self) -> str:
        """Hex digest of every id, prompt and its metadata, in order."""
        return self._source.fingerprint()


def _open(name: str) -> Source:
    root = Path(str(files("actscope"))) / "demo"
    texts = {"texts": root / "texts"}
    texts |= {f"texts/{p.name}": p for p in sorted((root / "texts").iterdir()) if p.is_dir()}
    sets = {f"prompts/{p.stem}": p for p in sorted((root / "prompt_sets").glob("*.json"))}
    if name in texts:
        return FolderSource(texts[name])
    if name in sets:
        return PromptSetSource(sets[name])
    if name == "prompts":
        return InMemory([example for path in sets.values() for example in _of_set(path)])
    raise UnknownNameError("demo data", name, [*texts, "prompts", *sets])


def _of_set(path: Path) -> list[Example]:
    name, prompts = read_prompt_set(path)
    return [replace(prompt, id=f"{name}/{prompt.id}") for prompt in prompts]


SOURCE = DemoSource
