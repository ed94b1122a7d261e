"""Take activations of chosen layers out of a model, in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from actscope.core.activations import ActivationBatch, Batch, TokenRow
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.protocols import (
    BackendModel,
    CaptureSession,
    LayerSelector,
    Selection,
    Started,
    Strategy,
)
from actscope.core.sites import Site
from actscope.core.text import Span, as_examples
from actscope.strategies import as_strategy

__all__ = ["ActivationExtractor"]


class ActivationExtractor:
    """Chosen layers of one model, pooled by one strategy.

    As a context manager it keeps its hooks in place for many calls; they are gone afterwards,
    whatever happened inside. Outside a context each ``extract`` opens and closes them itself.

    Args:
        model: A loaded model.
        layers: Indices (negative ones count from the end; they mean ``resid_post``), site keys,
            module names, or modules of the model; ``"all"`` for every block.
        strategy: A pooling strategy, its name, or a function; None keeps every token.
        sites: Site names; then ``layers`` are the indices they are taken at.
        span: Which tokens, see ``Span``.

    Raises:
        BadInputError: no such layer, one asked for twice, or a strategy this model cannot have.
        SiteUnavailableError: a site is not verified on this model, with the reason.
    """

    def __init__(
        self,
        model: BackendModel,
        layers: Sequence[LayerSelector] | str = (-1,),
        strategy: str | Strategy | Callable[..., Any] | None = None,
        *,
        sites: str | Sequence[str | Site] | None = None,
        span: str | Span = "all",
    ) -> None:
        self.model = model
        chosen = tuple(sorted(_chosen(model, layers, sites)))
        self.selection = Selection(chosen, as_strategy(strategy), Span.parse(span))
        self.selection.strategy.check(model)
        model.open(self.selection)  # refuses what this model does not have; no hook is set yet
        self._context: AbstractContextManager[CaptureSession] | None = None
        self._session: CaptureSession | None = None

    def __repr__(self) -> str:
        sites = ", ".join(str(site) for site in self.sites)
        return f"ActivationExtractor({self.model!r}, {sites}, {self.strategy.name})"

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is captured, sorted: however it was asked for, the same sites are the same work."""
        return self.selection.sites

    @property
    def strategy(self) -> Strategy:
        """How tokens are pooled."""
        return self.selection.strategy

    def __enter__(self) -> ActivationExtractor:
        if self._context is not None:
            raise BadInputError(
                "this extractor is open already", next_step="use the open one, or make a second"
            )
        context = self.model.open(self.selection)
        self._session = context.__enter__()
        self._context = context
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        context, self._context, self._session = self._context, None, None
        if context is not None:
            context.__exit__(kind, value, trace)

    @contextmanager
    def opened(self) -> Generator[ActivationExtractor]:
        """Open for a block of work; does nothing where the caller has opened it already."""
        if self._context is not None:
            yield self
        else:
            with self:
                yield self

    def extract(self, inputs: object) -> ActivationBatch:
        """One forward pass over some inputs.

        Args:
            inputs: A ``Batch``, or texts, token id lists, dictionaries or ``Example`` objects.

        Returns:
            ``batch["resid_post", 3]``: a list of ``[L_i, d_model]``, or ``[n, d_model]`` pooled.

        Raises:
            ExampleError: an example has no tokens, none in the span, or more than the context.
        """
        batch = inputs if isinstance(inputs, Batch) else Batch(self._rows(inputs))
        self._check_lengths(batch.rows)
        with self.opened():
            session = self._session
            assert session is not None
            found = session.run(batch)
        return _complete(found)

    def begin(self, batch: Batch) -> Started:
        """Begin a forward pass in this open extractor; see ``CaptureSession.begin``.

        What it returns raises ``ExampleError`` where an example has no token in the span.

        Raises:
            ExampleError: an example has more tokens than the context.
            BadInputError: the extractor is not open.
        """
        if self._session is None:
            raise BadInputError("this extractor is closed", next_step="call it inside `with`")
        self._check_lengths(batch.rows)
        started = self._session.begin(batch)
        return lambda: _complete(started())

    def _rows(self, inputs: object) -> tuple[TokenRow, ...]:
        examples = as_examples(inputs)
        if not examples:
            raise BadInputError("there is nothing to extract from: no inputs")
        return tuple(self.model.encode(example) for example in examples)

    def _check_lengths(self, rows: Iterable[TokenRow]) -> None:
        limit = self.model.context_length
        for row in rows:
            if limit is not None and len(row) > limit:
                raise ExampleError(
                    "too_long",
                    f"example {row.id!r} has {len(row)} tokens; the context holds {limit}",
                    next_step="shorten it, or let DatasetRunner truncate it",
                )


def _complete(found: ActivationBatch) -> ActivationBatch:
    if found.failures:
        raise ExampleError(found.failures[0].kind, found.failures[0].message)
    return found


def _chosen(
    model: BackendModel,
    layers: Sequence[LayerSelector] | str,
    sites: str | Sequence[str | Site] | None,
) -> tuple[Site, ...]:
    if sites is not None:
        return model.expand(sites, _indices(layers))
    if layers == "all":
        return model.resolve_layers(range(model.n_layers))
    if isinstance(layers, (str, int)):
        layers = [layers]
    return model.resolve_layers(list(layers))


def _indices(layers: Sequence[LayerSelector] | str) -> str | list[int]:
    if isinstance(layers, str):
        return layers
    if isinstance(layers, int):
        return [layers]
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise BadInputError(
                "with sites, layers are indices",
                got=repr(layer),
                next_step="name modules in layers and leave sites out",
            )
    return list(layers)
