"""A part of a run: some of its examples, and of each the rows of some tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ExampleRecord
from actscope.core.arrays import DTYPES, Array, to_float32, to_torch
from actscope.core.errors import BadInputError
from actscope.core.sites import Site
from actscope.core.text import PROMPT, RESPONSE, THINK, Span
from actscope.stores._examples import place_of
from actscope.stores._where import Where

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from actscope.stores._reader import Run
    from actscope.stores._training import RowDataset, ShuffledRows

__all__ = ["RunSlice", "Sliceable", "rows_in_span", "shuffled_rows"]

_PHASES = {"prompt": PROMPT, "response": RESPONSE, "think": THINK}
_Places = npt.NDArray[np.int64]
_EVERYTHING = Span()


class Sliceable:
    """What a run and a part of it have in common: choose examples, tokens, and read them."""

    def whole(self) -> RunSlice:
        """All of it, as a part."""
        raise NotImplementedError

    def where(self, condition: str) -> RunSlice:
        """The examples that meet a condition such as ``category == 'refusal' and n_tokens > 8``.

        Names are fields of the example's record or of its metadata; the condition is parsed, never
        run as code.

        Raises:
            BadInputError: it is no condition, or compares what has no order.
            UnknownNameError: no example has such a field.
        """
        return self.whole().chosen(Where.parse(condition))

    def take(self, examples: Sequence[int | str]) -> RunSlice:
        """Examples by their ids or places, in the order given; negative ones from the end."""
        return self.whole().at(examples)

    def span(self, span: str | Span) -> RunSlice:
        """The rows of some tokens.

        Args:
            span: ``prompt``, ``response``, ``think``, ``answer``, ``last:K`` or ``START:END``.

        Raises:
            BadInputError: the tokens were pooled, the span needs what the tokens spell, or it is
                the answers' and no example of the run has one.
        """
        return self.whole().cut(Span.parse(span))

    def frame(self) -> pd.DataFrame:
        """Metadata as a data frame, one row an example, in order; needs pandas.

        Columns are the record's fields, then the metadata's (``metadata.NAME`` where a record's
        field has that name).
        """
        from actscope.stores._frame import frame_of

        return frame_of(self.whole().examples)

    def dataset(self, name: str | Site, layer: int | None = None) -> RowDataset:
        """The rows of a site as a torch dataset, for any ``DataLoader``.

        Raises:
            UnknownNameError: the site was not captured.
            BadInputError: a pattern, which has no rows.
        """
        from actscope.stores._training import RowDataset

        part = self.whole()
        return RowDataset(part, part.run.site(name, layer))


@dataclass(frozen=True)
class RunSlice(Sliceable):
    """Some examples of a run, and of each the rows of some tokens. It reads what it is asked for.

    Attributes:
        run: The run.
        places: The examples' places in the run, in order.
        kept: Which rows of each example.
    """

    run: Run
    places: tuple[int, ...]
    kept: Span = _EVERYTHING

    def __repr__(self) -> str:
        kept = "" if self.kept == _EVERYTHING else f", {self.kept}"
        return f"<{len(self)} of {len(self.run)} examples{kept} of {str(self.run.path)!r}>"

    def __len__(self) -> int:
        return len(self.places)

    @property
    def sites(self) -> tuple[Site, ...]:
        """What was captured."""
        return self.run.sites

    @property
    def examples(self) -> ChosenExamples:
        """Records of the examples."""
        return ChosenExamples(self.run, self.places)

    def get(
        self, name: str | Site, layer: int | None = None, *, example: int | str
    ) -> torch.Tensor:
        """As ``Run.get``: the chosen rows of one example, by its id or its place in this part."""
        return to_torch(self.array(name, layer, example=example).copy())

    def array(self, name: str | Site, layer: int | None = None, *, example: int | str) -> Array:
        """As ``Run.array``: numpy, read-only where nothing had to be gathered."""
        site = self.run.site(name, layer)
        whole = self.run.array(site, example=self._place(example))
        rows = self._rows(self._place(example))
        if rows is None or len(whole) == 0:
            return whole
        return whole[:, rows] if site.layout == "blocks" else whole[rows]

    def positions(self, example: int | str) -> torch.Tensor:
        """Token positions of the chosen rows of one example."""
        place = self._place(example)
        positions, rows = self.run.positions(place), self._rows(place)
        return positions if rows is None else positions[to_torch(rows)]

    def tokens(self, example: int | str) -> torch.Tensor:
        """All token ids of one example."""
        return self.run.tokens(self._place(example))

    def phase(self, example: int | str) -> torch.Tensor:
        """The phase of all tokens of one example."""
        return self.run.phase(self._place(example))

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """``[n + 1]``: example i has the rows ``offsets[i]:offsets[i + 1]`` of ``stack``."""
        counts = [0, *(self._count(place) for place in self.places)]
        return np.cumsum(np.array(counts, dtype=np.int64))

    def stack(self, name: str | Site, layer: int | None = None) -> torch.Tensor:
        """The chosen rows of all chosen examples, ``[rows, d]``; ``[n, d]`` where pooled."""
        return to_torch(self._stacked(self.run.site(name, layer)))

    def numpy(self, name: str | Site, layer: int | None = None) -> npt.NDArray[np.float32]:
        """The same as numpy in float32."""
        return to_float32(self._stacked(self.run.site(name, layer)))

    def chosen(self, where: Where) -> RunSlice:
        """The examples that meet a condition; see ``where``."""
        where.check(self.examples)
        pairs = zip(self.places, self.examples, strict=True)
        return replace(self, places=tuple(p for p, record in pairs if where.matches(record)))

    def at(self, examples: Sequence[int | str]) -> RunSlice:
        """Examples by their ids or places in this part; see ``take``."""
        return replace(self, places=tuple(self._place(example) for example in examples))

    def cut(self, span: Span) -> RunSlice:
        """The rows of some tokens; see ``span``."""
        if span.needs_text or span.exclude_special:
            raise BadInputError(
                f"a run does not know which tokens the span {span} means",
                expected="prompt, response, think, answer, last:K or START:END",
                next_step="capture with that span: --span",
            )
        if self.kept != _EVERYTHING:
            raise BadInputError(
                "these rows were cut by a span already", got=f"{self.kept}, then {span}"
            )
        pooled = any(self.run.is_pooled(site) for site in self.sites)
        if span != _EVERYTHING and pooled:
            raise BadInputError(
                "a pooled run has one row for each example: there is nothing to cut", got=span
            )
        if span.kind in ("response", "think") and len(self.run) and not self.run.has_answers:
            raise BadInputError(
                "no example of this run has an answer",
                got=f"the span {span}",
                next_step="capture with answers: --generate N (CaptureOptions(generation=...))",
            )
        return replace(self, kept=span)

    def flat(self, site: Site, example: int) -> Array:
        """The chosen rows of one example as ``[rows, d]``, heads side by side."""
        array = self.array(site, example=example)
        return array.reshape(1 if self.run.is_pooled(site) else len(array), self.run.width(site))

    def whole(self) -> RunSlice:
        """All of it."""
        return self

    def _place(self, example: int | str) -> int:
        return self.places[place_of(example, len(self.places), lambda: self._by_id)]

    @cached_property
    def _by_id(self) -> dict[str, int]:
        """Place in this part of each id."""
        here = {place: at for at, place in enumerate(self.places)}
        found = self.run.examples.by_id.items()
        return {name: here[place] for name, place in found if place in here}

    def _rows(self, place: int) -> _Places | None:
        if self.kept == _EVERYTHING:
            return None
        positions = self.run.positions(place).numpy()
        return rows_in_span(self.run.phase(place).numpy(), positions, self.kept)

    def _count(self, place: int) -> int:
        rows = self._rows(place)
        if rows is not None:
            return len(rows)
        return int(self.run.offsets[place + 1] - self.run.offsets[place])

    def _stacked(self, site: Site) -> Array:
        if site.layout == "blocks":
            raise BadInputError(
                f"{site} has a block of its own shape for every example",
                next_step="read one at a time: get(name, layer, example=i)",
            )
        parts = [self.flat(site, i) for i in range(len(self))]
        if not parts:
            return np.empty((0, self.run.width(site)), np.float32)
        total = sum(len(part) for part in parts)
        dtypes = {part.dtype for part in parts}
        dtype = dtypes.pop() if len(dtypes) == 1 else DTYPES["float32"]
        result: Array = np.empty((total, *parts[0].shape[1:]), dtype)
        return np.concatenate(parts, out=result)


def shuffled_rows(
    runs: Sequence[Sliceable], name: str | Site, layer: int | None = None, **options: Any
) -> ShuffledRows:
    """Rows of one site of several runs as shuffled batches, a torch ``IterableDataset``.

    Args:
        runs: Runs or parts of runs.
        name: A site's name or key.
        layer: The layer of a name.
        options: ``batch_size``, ``buffer_rows``, ``seed``, ``drop_last``; see ``ShuffledRows``.

    Raises:
        UnknownNameError: a run has no such site.
        BadInputError: rows of different widths or pooled differently, no runs, or a buffer smaller
            than a batch.
    """
    from actscope.stores._training import ShuffledRows

    return ShuffledRows([run.whole() for run in runs], name, layer, **options)


class ChosenExamples(Sequence[ExampleRecord]):
    """Records of some examples of a run, read when asked for."""

    def __init__(self, run: Run, places: tuple[int, ...]) -> None:
        self._run = run
        self._places = places

    def __repr__(self) -> str:
        return f"<{len(self)} examples: index them, iterate over them>"

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[ExampleRecord]:
        return (self._run.examples[place] for place in self._places)

    def __getitem__(self, index: Any) -> Any:
        """One record, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self._run.examples[place] for place in self._places[index]]
        return self._run.examples[self._places[index]]


def rows_in_span(phase: Array, positions: Array, span: Span) -> _Places:
    """Which stored rows of an example a span keeps.

    Args:
        phase: ``[n_tokens]``, of every token.
        positions: ``[L]``, the token of each stored row.
        span: One that needs no text.
    """
    n = len(phase)
    if span.kind == "all":
        keep = np.ones(len(positions), dtype=np.bool_)
    elif span.kind in _PHASES:
        keep = phase[positions] == _PHASES[span.kind]
    elif span.kind == "answer":
        prompt = np.flatnonzero(phase == PROMPT)
        keep = positions == (prompt[-1] if len(prompt) else -1)
    else:
        wanted = np.arange(n)[slice(-int(span.start or 1), None)]
        if span.kind == "range":
            wanted = np.arange(n)[slice(span.start, span.end)]
        keep = np.isin(positions, wanted)
    return np.flatnonzero(keep)
