"""What every intervention shares: where it acts, on which tokens, on which columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ActivationBatch
from actscope.core.errors import BadInputError
from actscope.core.protocols import SitePlace, TokenPlaces
from actscope.core.sites import SITE_KINDS, Site, split_sites
from actscope.core.text import Span

if TYPE_CHECKING:
    import torch

__all__ = ["Float64", "SiteIntervention", "Tokens", "indices", "tokens_in_words"]

Float64 = npt.NDArray[np.float64]
Tokens = str | Span | int | Iterable[int]


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteIntervention:
    """Where an intervention acts.

    Attributes:
        layer: An index, several, or ``"all"``; negative ones count from the end. None for a site
            that names its layer (``"blocks.3.mlp_out"``), one without layers, or a module path.
        site: A site name or key, or a module path.
        tokens: ``"all"``, ``"prompt"``, ``"response"`` (the new tokens of a generation),
            ``"last:K"`` or ``"START:END"`` of the prompt, or positions; negative ones count from
            the end of the prompt, so that they mean one token while the answer grows.
        heads: Only these heads, where the last axis is heads of ``d_head`` columns side by side.
        neurons: Only these columns of the last axis.
        d_head: Width of a head; the model says it where it knows.
    """

    name: ClassVar[str]

    layer: int | Sequence[int] | str | None = None
    site: str | Site = "resid_post"
    tokens: Tokens = "all"
    heads: int | Sequence[int] | None = None
    neurons: int | Sequence[int] | None = None
    d_head: int | None = None

    def __post_init__(self) -> None:
        self._set("tokens", _tokens(self.tokens))
        self._set("layer", _layer(self.site, self.layer))
        for what in ("heads", "neurons"):
            self._set(what, indices(what, getattr(self, what)))
        if self.heads is not None and self.neurons is not None:
            raise BadInputError(
                "an intervention changes heads or neurons, not both",
                next_step="use two interventions",
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        where = f"{self.site}" if self.layer is None else f"{self.site}, layer {self.layer}"
        return f"{type(self).__name__}({where}, tokens {tokens_in_words(self.chosen)})"

    @property
    def where(self) -> tuple[str | Site, int | tuple[int, ...] | str | None]:
        """Site and layers."""
        return self.site, cast("int | tuple[int, ...] | str | None", self.layer)

    @property
    def chosen(self) -> Span | tuple[int, ...]:
        """Which tokens."""
        return cast("Span | tuple[int, ...]", self.tokens)

    @property
    def params(self) -> Mapping[str, Any]:
        """What an intervention adds to this, and the chosen columns."""
        found: dict[str, Any] = {}
        for what in ("heads", "neurons"):
            if getattr(self, what) is not None:
                found[what] = list(getattr(self, what))
        if self.heads is not None:
            found["d_head"] = self.d_head
        return found

    @property
    def unit(self) -> Float64 | None:
        """The unit direction in the chosen columns, for an intervention that has one."""
        return None

    def axis(self, width: int) -> Float64 | None:
        """The unit direction in all columns of a site of that width."""
        columns = self.columns(width)
        if self.unit is None or columns is None:
            return self.unit
        found = np.zeros(width)
        found[columns] = self.unit
        return found

    def bind(
        self, places: Sequence[SitePlace], capture: Callable[..., ActivationBatch] | None
    ) -> Self:
        """Check that it fits; a head's width comes from the model where it was not given."""
        ready = self
        known = {place.d_head for place in places}
        if self.heads is not None and self.d_head is None:
            width = known.pop() if len(known) == 1 else None
            if width is None:
                raise BadInputError(
                    f"{places[0].site} has no heads that the model tells apart",
                    next_step="say how wide a head is with d_head=, or choose columns with "
                    "neurons=",
                )
            ready = replace(self, d_head=width)
        elif self.heads is not None and not known <= {None, self.d_head}:
            raise BadInputError(
                f"heads of {places[0].site} are not as wide as d_head= says",
                got=self.d_head,
                expected=", ".join(str(width) for width in known),
                next_step="leave d_head= away",
            )
        for place in places:
            columns = ready.columns(place.width)
            ready.fits(place, place.width if columns is None else len(columns))
        return ready

    def fits(self, place: SitePlace, width: int) -> None:
        """Refuse a site that it does not fit; ``width`` counts the chosen columns alone."""

    def columns(self, width: int) -> npt.NDArray[np.int64] | None:
        """The chosen columns of a last axis of that size, or None for all.

        Raises:
            BadInputError: a head or neuron that is not there.
        """
        if self.neurons is not None:
            return _checked("neuron", np.asarray(self.neurons, dtype=np.int64), width)
        if self.heads is None:
            return None
        size = int(self.d_head or 0)
        if size < 1 or width % size:
            raise BadInputError(
                f"the last axis has {width} columns, which is no whole number of heads",
                got=f"d_head {size}",
            )
        heads = _checked("head", np.asarray(self.heads, dtype=np.int64), width // size)
        return (heads[:, None] * size + np.arange(size)).reshape(-1)

    def edit(self, rows: torch.Tensor, places: TokenPlaces) -> torch.Tensor:
        """``[k, width]`` -> ``[k, width]``: the chosen columns changed, the others as they were."""
        columns = self.columns(rows.shape[-1])
        if columns is None:
            return self.change(rows, places, None)
        index = columns.tolist()
        changed = rows.clone()
        changed[:, index] = self.change(rows[:, index], places, columns)
        return changed

    def change(
        self, rows: torch.Tensor, places: TokenPlaces, columns: npt.NDArray[np.int64] | None
    ) -> torch.Tensor:
        """The chosen columns of the rows, changed.

        Args:
            rows: ``[k, columns]`` float32 or float64.
            places: Which tokens they are.
            columns: Which columns of the site these are; None for all.
        """
        raise NotImplementedError


def tokens_in_words(tokens: Span | tuple[int, ...]) -> str:
    """One text for a record or a message."""
    return str(tokens) if isinstance(tokens, Span) else ",".join(str(t) for t in tokens)


def _tokens(value: Tokens) -> Span | tuple[int, ...]:
    if isinstance(value, (str, Span)):
        span = Span.parse(value)
        if span.kind == "think":
            raise BadInputError(
                "an intervention cannot choose tokens by 'think'",
                got="a token goes in before anybody knows that it is reasoning",
                next_step="use tokens='response', which holds the reasoning too",
            )
        return span
    positions = indices("tokens", value, negative=True)
    assert positions is not None
    return positions


def _layer(site: str | Site, layer: Any) -> int | tuple[int, ...] | str | None:
    names = split_sites(site) if isinstance(site, str) else []
    per_layer = any(name in SITE_KINDS and SITE_KINDS[name].per_layer for name in names)
    if per_layer and layer is None:
        raise BadInputError(
            f"the site {site!r} exists once per layer",
            next_step='say layer=12, layer=[3, 4] or layer="all"',
        )
    if layer is not None and not per_layer:
        raise BadInputError(
            f"the site {site!s} takes no layer: it names its own or has none",
            got=f"layer {layer!r}",
            next_step="leave layer away",
        )
    if layer is None or (isinstance(layer, str) and layer == "all"):
        return layer
    found = indices("layer", layer, negative=True)
    assert found is not None
    return found[0] if len(found) == 1 else found


def indices(what: str, value: Any, *, negative: bool = False) -> tuple[int, ...] | None:
    """One whole number or several, each once."""
    if value is None:
        return None
    try:
        items = [value] if np.ndim(value) == 0 else list(value)
        found = tuple(int(item) for item in items)
        pairs = zip(found, items, strict=True)
        whole = all(i == item and not isinstance(item, bool) for i, item in pairs)
    except (TypeError, ValueError, OverflowError):
        found, whole = (), False
    if not found or not whole or isinstance(value, str):
        raise BadInputError(f"{what} takes one or more whole numbers", got=repr(value))
    if len(set(found)) != len(found):
        raise BadInputError(f"{what} names one twice", got=repr(value))
    if not negative and min(found) < 0:
        raise BadInputError(f"{what} are counted from 0", got=repr(value))
    return found


def _checked(what: str, indices: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    if int(indices.max()) >= count:
        raise BadInputError(
            f"there is no {what} {int(indices.max())}", expected=f"0 to {count - 1}"
        )
    return indices
