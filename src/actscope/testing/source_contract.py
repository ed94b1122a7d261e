"""What every source of prompts promises, as a test suite for those of this package and of others.

class TestMySource(SourceContract):
    @pytest.fixture
    def write(self, tmp_path):
        def write(examples, place="a"):
            ...  # put them where the source reads, under tmp_path / place
            return MySource(...)
        return write
"""

# ruff: noqa: D102 - the name of a test says what it promises
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from actscope.core.errors import SourceError
from actscope.core.protocols import Source
from actscope.core.provenance import canonical_json
from actscope.core.text import Example

__all__ = ["SourceContract"]

TEXTS = (
    "The cat sat on the mat.",
    'a "quoted", comma, and\ttab',
    "emoji \U0001f600 and \u05e9\u05dc\u05d5\u05dd",
    "a line separator \u2028 and a form feed \x0c inside",
    "  white space around  ",
    "0",
    "a NUL \0 inside",
)
EXAMPLES = tuple(Example(f"id-{i}", text=text) for i, text in enumerate(TEXTS))


class SourceContract:
    """Subclass it and give it a ``write`` fixture.

    Attributes:
        keeps_ids: False where the format has no ids: they are the positions then.
    """

    keeps_ids = True

    @pytest.fixture
    def write(self) -> Callable[..., Source]:
        """A function that writes examples and opens them; override this."""
        raise NotImplementedError("a source's test overrides the fixture `write`")

    def expected(self, examples: Sequence[Example]) -> list[tuple[str, str | None]]:
        """(id, text) as the source gives them."""
        return [
            (example.id if self.keeps_ids else str(i), example.text)
            for i, example in enumerate(examples)
        ]

    def test_what_was_written_is_read(self, write: Callable[..., Source]) -> None:
        source = write(EXAMPLES)
        assert len(source) == len(EXAMPLES)
        assert [(e.id, e.text) for e in source.examples()] == self.expected(EXAMPLES)

    def test_metadata_is_json(self, write: Callable[..., Source]) -> None:
        for example in write(EXAMPLES).examples():
            assert canonical_json(dict(example.metadata))

    def test_any_range_is_a_slice_of_the_whole(self, write: Callable[..., Source]) -> None:
        source = write(EXAMPLES)
        whole = list(source.examples())
        for start in range(len(whole) + 2):
            assert list(source.examples(start)) == whole[start:]
            for stop in range(start, len(whole) + 2):
                assert list(source.examples(start, stop)) == whole[start:stop]

    def test_ranges_can_be_read_in_any_order_and_at_once(
        self, write: Callable[..., Source]
    ) -> None:
        source = write(EXAMPLES)
        whole = list(source.examples())
        late, early = source.examples(3, 6), source.examples(0, 3)
        interleaved = [next(late), next(early), next(late), next(early), next(late), next(early)]
        assert interleaved[::2] == whole[3:6] and interleaved[1::2] == whole[:3]
        del early
        assert list(source.examples(2, 4)) == whole[2:4]
        assert list(source.examples(4, 6)) == whole[4:6]

    def test_the_fingerprint_is_the_contents(self, write: Callable[..., Source]) -> None:
        source = write(EXAMPLES)
        print_of_all = source.fingerprint()
        assert re.fullmatch("[0-9a-f]{64}", print_of_all)
        list(source.examples(1, 3))
        assert source.fingerprint() == print_of_all
        assert write(EXAMPLES, "elsewhere").fingerprint() == print_of_all

    def test_any_change_changes_the_fingerprint(self, write: Callable[..., Source]) -> None:
        swapped = (EXAMPLES[1], EXAMPLES[0], *EXAMPLES[2:])
        versions = {
            "whole": EXAMPLES,
            "one less": EXAMPLES[:-1],
            "one character": (replace(EXAMPLES[0], text="The bat sat on the mat."), *EXAMPLES[1:]),
            "order": tuple(replace(e, id=EXAMPLES[i].id) for i, e in enumerate(swapped)),
            "one text cut in two": (
                Example("id-0", text="The cat"),
                Example("id-1", text="sat on the mat."),
                *EXAMPLES[2:],
            ),
            "none": (),
        }
        prints = {name: write(rows, name).fingerprint() for name, rows in versions.items()}
        assert len(set(prints.values())) == len(prints), prints

    def test_an_empty_dataset_is_no_error(self, write: Callable[..., Source]) -> None:
        source = write(())
        assert len(source) == 0 and list(source.examples()) == []

    def test_an_id_that_occurs_twice_is_refused(self, write: Callable[..., Source]) -> None:
        if not self.keeps_ids:
            pytest.skip("ids are positions")
        twice = (*EXAMPLES, replace(EXAMPLES[2], text="another"))
        with pytest.raises(SourceError, match=r"rows 2 and 7 have the same id"):
            write(twice)
