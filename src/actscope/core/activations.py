"""The activations that come out of a batch.

Row i of every array is the activation *at* the position of token i, prompt and response alike: the
model's prediction of token i + 1 is read from row i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actscope.core.arrays import Array, to_float32, to_torch
from actscope.core.errors import BadInputError
from actscope.core.sites import Site, captured_site, resolve_layer
from actscope.core.token_rows import Batch, TokenRow

if TYPE_CHECKING:
    import torch

    from actscope.core.cache import ActivationCache

__all__ = [
    "ActivationBatch",
    "Batch",
    "ExampleFailure",
    "ExampleRecord",
    "TokenRow",
    "empty_rows",
    "one_row_per_example",
]


@dataclass(frozen=True)
class ExampleRecord:
    """What a store keeps about one captured example.

    Attributes:
        id: The example's id.
        index: Its place in the whole dataset.
        n_tokens: Tokens that went through the model.
        n_prompt_tokens: How many of them are prompt.
        text: The prompt as it was tokenised (None where text is not kept).
        response: The generated answer (None without generation).
        thought: The reasoning before it, empty where there is none (None without generation).
        metadata: What came with the example.
        note: What was done to it, such as ``truncated 12 tokens on the left``.
    """

    id: str
    index: int
    n_tokens: int
    n_prompt_tokens: int
    text: str | None = None
    response: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    note: str = ""
    thought: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {**self.__dict__, "metadata": dict(self.metadata)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExampleRecord:
        """Read what ``to_json`` wrote."""
        return cls(**data)


@dataclass(frozen=True)
class ExampleFailure:
    """An example that could not be captured: recorded, counted, never silently dropped."""

    id: str
    index: int
    kind: str
    message: str

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return dict(self.__dict__)


@dataclass(repr=False)
class ActivationBatch:
    """Activations of some examples at some sites.

    ``batch["resid_post", 3]`` is a list of ``[L_i, d_model]`` torch tensors, or one
    ``[n, d_model]`` tensor when a strategy pooled the tokens. ``batch["z", 3]`` has rows of
    ``[head, d_head]``, and ``batch["pattern", 3]`` is a list of ``[head, query, key]`` blocks: the
    queries are the kept tokens of an example, the keys all of its tokens.

    Attributes:
        arrays: Per site ``[sum of rows, d]``, rows of one example together, examples in order; or
            ``[n, d]`` when pooled. Heads lie side by side in a row. A pattern is flat: the blocks
            of the examples one after the other.
        offsets: ``[n + 1]`` int64: example i has rows ``offsets[i]:offsets[i + 1]`` (unpooled).
        positions: ``[sum of rows]`` int32, the token position of each row within its example.
        examples: One record an example.
        token_ids: All tokens of the examples, one after the other, int64.
        token_offsets: ``[n + 1]`` int64 into ``token_ids`` and ``phase``.
        phase: uint8 per token: PROMPT, RESPONSE or THINK.
        pooled: Whether a strategy reduced tokens to one row an example.
        failures: Examples that could not be captured; they have no rows.
        n_layers: How many blocks the model has, 0 where unknown: what a negative layer counts from.
        heads: How many heads lie in each row, of the sites that have heads.
        interventions: What was done to the model meanwhile, as in ``ModelIdentity``.
    """

    arrays: dict[Site, Array]
    offsets: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int32]
    examples: tuple[ExampleRecord, ...]
    token_ids: npt.NDArray[np.int64]
    token_offsets: npt.NDArray[np.int64]
    phase: npt.NDArray[np.uint8]
    pooled: bool = False
    failures: tuple[ExampleFailure, ...] = ()
    n_layers: int = 0
    heads: Mapping[Site, int] = field(default_factory=dict[Site, int])
    interventions: tuple[Mapping[str, Any], ...] = ()

    def __repr__(self) -> str:
        kinds = sorted({site.kind if site.path is None else site.path for site in self.arrays})
        layers = f" x {len(self.layers)} layers" if self.layers else ""
        dtypes = ", ".join(sorted({str(array.dtype) for array in self.arrays.values()}))
        n, failed = len(self), len(self.failures)
        return (
            f"<ActivationBatch {n} example{'s' * (n != 1)}, {len(self.token_ids):,} tokens, "
            f"{', '.join(kinds)}{layers}, {dtypes}{', pooled' * self.pooled}"
            f"{f', {failed} failed' * bool(failed)}"
            f"{', under intervention' * bool(self.interventions)}>"
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The captured sites."""
        return tuple(self.arrays)

    @property
    def layers(self) -> list[int]:
        """The layers that occur among the sites, ascending."""
        return sorted({site.layer for site in self.arrays if site.layer is not None})

    def __len__(self) -> int:
        return len(self.examples)

    def is_pooled(self, site: Site) -> bool:
        """Whether the site has one row an example."""
        return self.pooled or one_row_per_example(site)

    def site(self, name: str, layer: int | None = None) -> Site:
        """The captured site of that name and layer; a negative layer counts from the model's end.

        Raises:
            UnknownNameError: it was not captured.
            BadInputError: the model has no such layer.
        """
        if layer is not None and layer < 0 and self.n_layers:
            layer = resolve_layer(layer, self.n_layers)
        return captured_site(self.arrays, name, layer)

    @property
    def block_offsets(self) -> npt.NDArray[np.int64]:
        """``[n + 1]`` int64: example i has the query-key pairs ``block_offsets[i:i + 2]``.

        A pattern of h heads has example i's block ``[h, query, key]`` at h times these places.
        """
        keys = [record.n_tokens for record in self.examples]
        pairs = np.diff(self.offsets) * np.asarray(keys, dtype=np.int64)
        return np.concatenate([[0], np.cumsum(pairs)]).astype(np.int64)

    def cache(self, example: int | None = None) -> ActivationCache:
        """The activations under TransformerLens' names, read-only.

        Args:
            example: Tensors of this example alone, without a batch axis; None for all examples,
                with one, which takes rows of equal length.

        Raises:
            BadInputError: there is no such example, or the examples have unequal lengths.
        """
        from actscope.core.cache import ActivationCache

        if example is not None and not -len(self) <= example < len(self):
            raise BadInputError("no such example", got=example, expected=f"0 to {len(self) - 1}")

        def read(site: Site) -> torch.Tensor:
            import torch

            tensors = self[site]
            if example is not None:
                return tensors[example]
            if not isinstance(tensors, list):
                return tensors
            if len({tensor.shape for tensor in tensors}) > 1:
                raise BadInputError(
                    f"the examples have unequal lengths: {site} is no single tensor",
                    next_step="batch.cache(i) is the cache of one example",
                )
            return torch.stack(tensors)

        return ActivationCache(self.arrays, read, self.n_layers)

    def array(self, name: str, layer: int | None = None) -> Array:
        """The stored numpy array as it is (bfloat16 as ``ml_dtypes.bfloat16``)."""
        return self.arrays[self.site(name, layer)]

    def numpy(self, name: str, layer: int | None = None) -> npt.NDArray[np.float32]:
        """All rows of a site in float32, ``[sum of rows, d]`` or ``[n, d]``."""
        return to_float32(self.array(name, layer))

    def __getitem__(
        self, key: str | tuple[str, int | None] | Site
    ) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(key, Site):
            site = key
        elif isinstance(key, str):
            site = self.site(key)
        else:
            site = self.site(*key)
        tensor, heads = to_torch(self.arrays[site]), self.heads.get(site, 0)
        if site.layout == "blocks":
            bounds = (self.block_offsets * heads).tolist()
            keys = [record.n_tokens for record in self.examples]
            pieces = [tensor[a:b] for a, b in pairwise(bounds)]
            return [p.reshape(heads, -1, k) for p, k in zip(pieces, keys, strict=True)]
        if heads and tensor.shape[-1] % heads == 0:
            tensor = tensor.reshape(len(tensor), heads, -1)
        if self.is_pooled(site):
            return tensor
        bounds = self.offsets.tolist()
        return [tensor[a:b] for a, b in pairwise(bounds)]

    @classmethod
    def join(cls, parts: Sequence[ActivationBatch], places: Sequence[int]) -> ActivationBatch:
        """Put batches together in another order.

        Args:
            parts: Batches of the same sites, none with failures.
            places: For each example of the parts, one after the other, its place in the result; it
                becomes the record's index.
        """
        order = np.argsort(np.asarray(places, dtype=np.int64), kind="stable")
        first = parts[0]
        rows = _Ragged([part.offsets for part in parts])
        tokens = _Ragged([part.token_offsets for part in parts])
        examples = [record for part in parts for record in part.examples]
        arrays: dict[Site, Array] = {}
        for site in first.arrays:
            pieces = [part.arrays[site] for part in parts]
            if site.layout == "blocks":
                arrays[site] = _join_blocks(parts, site, order)
                continue
            whole = np.arange(len(examples) + 1) if first.is_pooled(site) else None
            arrays[site] = (_Ragged([whole]) if whole is not None else rows).take(pieces, order)
        pooled = first.pooled
        return cls(
            arrays=arrays,
            offsets=rows.offsets(order),
            positions=first.positions
            if pooled
            else rows.take([part.positions for part in parts], order),
            examples=tuple(replace(examples[i], index=int(places[i])) for i in order),
            token_ids=tokens.take([part.token_ids for part in parts], order),
            token_offsets=tokens.offsets(order),
            phase=tokens.take([part.phase for part in parts], order),
            pooled=pooled,
            n_layers=first.n_layers,
            heads=first.heads,
            interventions=first.interventions,
        )

    def tokens(self, index: int) -> npt.NDArray[np.int64]:
        """All token ids of one example, captured rows or not."""
        return self.token_ids[self.token_offsets[index] : self.token_offsets[index + 1]]


class _Ragged:
    """Offsets of several ragged arrays that lie one after the other."""

    def __init__(self, offsets: Sequence[Array]) -> None:
        self._counts = np.concatenate([np.diff(o) for o in offsets]).astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)

    def offsets(self, order: Array) -> npt.NDArray[np.int64]:
        """Offsets of the same items in another order."""
        return np.concatenate([[0], np.cumsum(self._counts[order])]).astype(np.int64)

    def take(self, pieces: Sequence[Array], order: Array) -> Array:
        """The rows of the pieces, items in another order; one copy."""
        whole = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        if np.array_equal(order, np.arange(len(order))):
            return whole
        starts, counts = self._starts[order], self._counts[order]
        index = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        return whole[index]


def _join_blocks(parts: Sequence[ActivationBatch], site: Site, order: Array) -> Array:
    """Blocks of several batches in another order, copied block by block: they may be large."""
    blocks: list[Array] = []
    for part in parts:
        bounds = (part.block_offsets * part.heads[site]).tolist()
        blocks += [part.arrays[site][a:b] for a, b in pairwise(bounds)]
    return np.concatenate([blocks[i] for i in order]) if blocks else parts[0].arrays[site]


def empty_rows(site: Site, width: int, dtype: np.dtype[Any]) -> Array:
    """The array of a site of which nothing was captured."""
    return np.zeros(0 if site.layout == "blocks" else (0, width), dtype=dtype)


def one_row_per_example(site: Site) -> bool:
    """Whether a site has no token axis, such as ``pooler``."""
    return site.layout == "example"
