"""Trait sets: a folder with scenarios that show a trait, others that do not, and a definition."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from actscope.core.errors import SourceError
from actscope.core.text import Example
from actscope.sources._files import read_text
from actscope.sources._memory import InMemory
from actscope.sources.prompt_set import read_prompt_set

__all__ = ["SOURCE", "TraitSet", "TraitSetSource", "read_trait_set"]

FILES = ("positive.txt", "negative.txt", "definition.txt", "steering.json")


@dataclass(frozen=True)
class TraitSet:
    """The scenarios of one trait.

    Attributes:
        name: ``category/trait``, the last two parts of the folder's path.
        definition: What the trait is, for a reader or a judge.
        positive: Scenarios that show it; metadata holds ``trait``, ``polarity`` and ``scenario``.
        negative: Scenarios that do not. Line i of both files is one scenario, so that a split by
            ``scenario`` keeps the two together.
        steering: Neutral prompts, to be answered with and without steering.
    """

    name: str
    definition: str
    positive: tuple[Example, ...]
    negative: tuple[Example, ...]
    steering: tuple[Example, ...]


class TraitSetSource(InMemory):
    """The positive scenarios of a trait, then the negative ones, as prompts.

    Ids are ``positive/LINE`` and ``negative/LINE``.

    Args:
        folder: Holds ``positive.txt`` and ``negative.txt`` (one scenario a line),
            ``definition.txt`` and ``steering.json`` (a prompt set).

    Raises:
        SourceError: a file is missing, empty or of another shape.
    """

    def __init__(self, folder: str | Path) -> None:
        trait = read_trait_set(folder)
        super().__init__([*trait.positive, *trait.negative], str(folder))


def read_trait_set(folder: str | Path) -> TraitSet:
    """Everything about one trait.

    Raises:
        SourceError: a file is missing, empty or of another shape, or a scenario is there twice.
    """
    root = Path(folder).expanduser()
    missing = [name for name in FILES if not (root / name).is_file()]
    if missing:
        raise SourceError(
            f"{root} is not a trait set",
            got=f"no {' and no '.join(missing)}",
            expected=f"a folder with {', '.join(FILES)}",
            next_step="see docs/sources.md for the format of each file",
        )
    name = "/".join(root.resolve().parts[-2:])
    positive = _scenarios(root / "positive.txt", name, "positive")
    negative = _scenarios(root / "negative.txt", name, "negative")
    counts = Counter(e.text for e in (*positive, *negative))
    twice = next((text for text, count in counts.items() if count > 1), None)
    if twice is not None:
        raise SourceError(
            f"{root}: a scenario is there twice, in one file or in both",
            got=f"{twice!r:.80}",
            next_step="remove it once",
        )
    definition = read_text(root / "definition.txt").strip()
    if not definition:
        raise SourceError(f"{root / 'definition.txt'} is empty")
    steering = tuple(read_prompt_set(root / "steering.json")[1])
    return TraitSet(name, definition, positive, negative, steering)


def _scenarios(file: Path, trait: str, polarity: str) -> tuple[Example, ...]:
    """One example a line; blank lines at the end are none."""
    text = read_text(file).rstrip("\n")
    if not text.strip():
        raise SourceError(f"{file} is empty", expected="one scenario a line")
    lines = text.split("\n")
    blank = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if blank is not None:
        raise SourceError(
            f"{file}, line {blank} is blank",
            next_step="remove it: line i of both files is one scenario",
        )
    return tuple(
        Example(
            f"{polarity}/{number:02d}",
            text=line,
            metadata={"trait": trait, "polarity": polarity, "scenario": number},
        )
        for number, line in enumerate(lines, start=1)
    )


SOURCE = TraitSetSource
