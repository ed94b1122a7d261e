"""The data that comes with the package: texts, prompt sets, questions and trait sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.protocols import Source
from actscope.core.text import Example
from actscope.sources._memory import InMemory
from actscope.sources.censorship import CensorshipSource
from actscope.sources.folder import FolderSource
from actscope.sources.mcq import MCQSource
from actscope.sources.prompt_set import PromptSetSource
from actscope.sources.trait_set import TraitSetSource

__all__ = ["SOURCE", "DemoSource", "demo_folder"]


class DemoSource:
    """Packaged data by name.

    Args:
        name: ``texts``, ``texts/long``, ``texts/short``; ``prompts/SET`` for a prompt set, such as
            ``prompts/single_trait``; ``mcq/marren`` and ``mcq/general`` for multiple-choice
            questions; ``censorship/marren`` and ``censorship/world`` for questions with neutral
            twins; ``traits/CATEGORY/TRAIT`` for a trait's scenarios, such as
            ``traits/behavioral/refusal``. ``prompts``, ``mcq``, ``censorship`` and ``traits`` alone
            are all of their kind; ids of prompts and scenarios are ``SET/ID`` then.

        seed: For ``mcq``: decides the order of the options, together with each question's id.
        instruction: For ``mcq``: last line of every prompt.

    Raises:
        UnknownNameError: none of these.
        BadInputError: a seed or an instruction for data without options.
    """

    def __init__(
        self, name: str = "texts", *, seed: int | None = None, instruction: str | None = None
    ) -> None:
        given = {"seed": seed, "instruction": instruction}
        options = {key: value for key, value in given.items() if value is not None}
        self._source = _open(name.strip("/"), options)

    def __len__(self) -> int:
        return len(self._source)

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """The examples of a range, in order."""
        return self._source.examples(start, stop)

    def fingerprint(self) -> str:
        """Hex digest of every id, prompt and its metadata, in order."""
        return self._source.fingerprint()


def _open(name: str, options: dict[str, Any]) -> Source:
    root = demo_folder()
    texts = {"texts": root / "texts"}
    texts |= {f"texts/{p.name}": p for p in sorted((root / "texts").iterdir()) if p.is_dir()}
    if options and name.partition("/")[0] != "mcq":
        raise BadInputError(
            f"demo:{name} takes no {' and no '.join(options)}",
            next_step="only demo:mcq/... has options to order and an instruction",
        )
    if name in texts:
        return FolderSource(texts[name])
    kinds: dict[str, tuple[Callable[..., Source], list[Path]]] = {
        "prompts": (PromptSetSource, sorted((root / "prompt_sets").glob("*.json"))),
        "mcq": (MCQSource, sorted((root / "mcq").glob("*.jsonl"))),
        "censorship": (CensorshipSource, sorted((root / "censorship").glob("*.jsonl"))),
        "traits": (
            TraitSetSource,
            sorted(p.parent for p in (root / "traits").glob("*/*/positive.txt")),
        ),
    }
    kind, _, one = name.partition("/")
    reader, paths = kinds.get(kind, (PromptSetSource, []))
    places = {_place(path): path for path in paths}
    if one in places:
        return reader(places[one], **options)
    if paths and not one:
        found = [
            (place, e) for place, path in places.items() for e in reader(path, **options).examples()
        ]
        return InMemory([_named(kind, place, example) for place, example in found])
    known = [
        f"{kind}/{place}" for kind, (_, paths) in kinds.items() for place in map(_place, paths)
    ]
    raise UnknownNameError("demo data", name, [*texts, *kinds, *known])


def demo_folder() -> Path:
    """The folder of everything bundled."""
    return Path(str(files("actscope"))) / "demo"


def _place(path: Path) -> str:
    """``CATEGORY/TRAIT`` of a trait's folder, else the file's stem."""
    return path.stem if path.suffix else f"{path.parent.name}/{path.name}"


def _named(kind: str, place: str, example: Example) -> Example:
    """Questions have ids of their own; prompts and scenarios are counted from 1 in every file."""
    if kind in ("mcq", "censorship"):
        return example
    return replace(example, id=f"{place}/{example.id}")


SOURCE = DemoSource
