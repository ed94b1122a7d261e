"""Put activations of another prompt or another run in the place of the model's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ActivationBatch
from actscope.core.errors import BadInputError
from actscope.core.protocols import SitePlace, TokenPlaces
from actscope.core.text import Example, Span
from actscope.interventions._base import SiteIntervention, Tokens, indices, tokens_in_words
from actscope.interventions._sources import RowSource, source_of
from actscope.interventions._vectors import check_width, like

if TYPE_CHECKING:
    import torch

__all__ = ["INTERVENTION", "Patch"]


@dataclass(frozen=True, eq=False, repr=False)
class Patch(SiteIntervention):
    """Replace activations by those of another prompt: activation patching.

    Also called causal tracing or interchange intervention (Vig et al., 2020; Geiger et al., 2021;
    Meng et al., 2022).

    Attributes:
        source: A prompt (text or ``Example``), which is run when the context opens; an
            ``ActivationBatch`` or an opened run, both with every token kept; or an array
            ``[L, width]``. A source of one example serves every prompt; of several, the one with
            the prompt's id.
        tokens: Which tokens are replaced; by default the whole prompt, which must be as long as the
            source's.
        source_tokens: Where each comes from, as many as ``tokens``; by default the same positions,
            negative ones from the end of the source's prompt.

    Raises:
        BadInputError: a source that holds no rows of tokens, or a value that is not finite.
    """

    name: ClassVar[str] = "patch"

    source: Any
    tokens: Tokens = field(default="prompt", kw_only=True)
    source_tokens: int | Sequence[int] | None = field(default=None, kw_only=True)
    _rows: RowSource | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("source_tokens", indices("source_tokens", self.source_tokens, negative=True))
        if self.source_tokens is not None:
            wanted = None if isinstance(self.chosen, Span) else len(self.chosen)
            given = len(cast("tuple[int, ...]", self.source_tokens))
            if wanted != given:
                raise BadInputError(
                    "source_tokens names one position for each of tokens",
                    got=f"tokens {tokens_in_words(self.chosen)}, {given} source_tokens",
                    expected="as many positions in tokens=[...]",
                )
        if not isinstance(self.source, (str, Example)):
            self._set("_rows", source_of(self.source))

    @property
    def params(self) -> Mapping[str, Any]:
        """A digest of the source, and where in it the rows come from."""
        found = {**super().params, "source": self._rows.digest if self._rows else "prompt"}
        if self.source_tokens is not None:
            found["source_tokens"] = list(cast("tuple[int, ...]", self.source_tokens))
        return found

    def bind(
        self, places: Sequence[SitePlace], capture: Callable[..., ActivationBatch] | None
    ) -> Self:
        """Check that the source has rows for every site; run a prompt."""
        ready = super().bind(places, capture)
        if self._rows is None and capture is not None:
            batch = capture([self.source], sites=[place.site for place in places])
            ready = replace(ready, source=batch)
        if ready._rows is not None:
            for place in places:
                check_width(ready._rows.some(place.site), "source", place, place.width)
        return ready

    def change(
        self, rows: torch.Tensor, places: TokenPlaces, columns: npt.NDArray[np.int64] | None
    ) -> torch.Tensor:
        """The source's rows."""
        taken = self._taken(places)
        return like(rows, taken if columns is None else taken[:, columns])

    def _taken(self, places: TokenPlaces) -> npt.NDArray[Any]:
        """``[k, width]`` the source's row for each row that is replaced."""
        assert self._rows is not None
        parts: list[npt.NDArray[Any]] = []
        for index in dict.fromkeys(places.example.tolist()):
            name, n_prompt = places.ids[index], places.n_prompt[index]
            positions = places.position[places.example == index]
            if isinstance(self.chosen, Span):
                self._check_length(name, n_prompt)
            else:
                positions = self._from_where(name, positions, n_prompt)
            parts.append(self._rows.rows(places.site, name, positions))
        return np.concatenate(parts)

    def _check_length(self, name: str, n_prompt: int) -> None:
        """Position by position needs prompts of one length: else tokens would be mixed up."""
        assert self._rows is not None
        length = self._rows.length(name)
        if length != n_prompt:
            raise BadInputError(
                f"example {name!r} and the source of its patch differ in length",
                got=f"{n_prompt} prompt tokens and {length}",
                next_step="name positions: tokens=[...], and source_tokens=[...] where they differ",
            )

    def _from_where(
        self, name: str, positions: npt.NDArray[np.int64], n_prompt: int
    ) -> npt.NDArray[np.int64]:
        assert self._rows is not None
        length = self._rows.length(name)
        chosen = cast("tuple[int, ...]", self.chosen)
        sources = cast("tuple[int, ...]", self.source_tokens) if self.source_tokens else chosen
        table = {
            (t + n_prompt if t < 0 else t): (s + length if s < 0 else s)
            for t, s in zip(chosen, sources, strict=True)
        }
        return np.array([table[int(p)] for p in positions], dtype=np.int64)


INTERVENTION = Patch
