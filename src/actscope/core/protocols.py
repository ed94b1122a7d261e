"""Every seam of the house, on one screen. One new file adds one plugin; nothing else is edited.

room            attribute     what the file provides
strategies/     STRATEGY      a class whose instances pool tokens          -> Strategy
interventions/  INTERVENTION  a class whose instances change activations   -> Intervention
sources/        SOURCE        a class that reads prompts from somewhere    -> Source
stores/         STORE         a class that opens runs for writing          -> Storage, RunWriter
formats/        FORMAT        an object that writes and reads others' files -> formats.Format
backends/       BACKEND       a class that loads models                    -> ModelBackend
families/       FAMILY        data about one model family                  -> families.Family
studies/        STUDY         a whole experiment: parameters, run, report  -> Study
cli/            COMMAND       a click command; the verb is the file's stem
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ActivationBatch, Batch, TokenRow
from actscope.core.generation import (
    CAPTURE_MODES,
    AnswerCapture,
    Generated,
    GenerationParams,
    Listener,
    Listeners,
)
from actscope.core.sites import Site
from actscope.core.spec import ModelIdentity
from actscope.core.text import Example, Span

if TYPE_CHECKING:
    import torch

__all__ = [
    "AHEAD",
    "CAPTURE_MODES",
    "AnswerCapture",
    "BackendModel",
    "CaptureSession",
    "ExtractionStrategy",
    "Generated",
    "GenerationParams",
    "Intervention",
    "LayerSelector",
    "Listener",
    "Listeners",
    "ModelBackend",
    "RunWriter",
    "Selection",
    "SitePlace",
    "SiteStatus",
    "Source",
    "Started",
    "Storage",
    "Strategy",
    "Study",
    "TokenPlaces",
    "Tracker",
]

LayerSelector = Any
"""A layer: an index (negative ones count from the end), a site key, a module path, or a module."""


@runtime_checkable
class Strategy(Protocol):
    """Reduces the kept tokens of each example to one row, on the model's device."""

    name: ClassVar[str]
    pools: ClassVar[bool]
    """False for the one strategy that keeps every token."""

    @property
    def params(self) -> Mapping[str, Any]:
        """JSON parameters, part of the spec."""
        ...

    def check(self, model: BackendModel) -> None:
        """Raise BadInputError where this model cannot be pooled so."""
        ...

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Reduce the tokens of each example.

        Args:
            hidden: ``[n, pos, d]``, any float dtype.
            mask: ``[n, pos]`` bool, true on the kept tokens; at least one a row.

        Returns:
            ``[n, d]`` float32.
        """
        ...


ExtractionStrategy = Strategy


@dataclass(frozen=True)
class SitePlace:
    """A site that will be changed.

    Attributes:
        site: Which.
        width: The size of its last axis.
        d_head: Width of a head, where its last axis is heads side by side; else None.
    """

    site: Site
    width: int
    d_head: int | None = None


@dataclass(frozen=True)
class TokenPlaces:
    """Where some rows of a forward pass come from: row j is one token of one example.

    Attributes:
        site: The site they were read at.
        ids: The examples of the pass.
        n_prompt: How many prompt tokens each of them has.
        example: ``[k]`` int64, which example a row belongs to, as an index into ``ids``.
        position: ``[k]`` int64, the token's position within its example, in generation too.
    """

    site: Site
    ids: tuple[str, ...]
    n_prompt: tuple[int, ...]
    example: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]


@runtime_checkable
class Intervention(Protocol):
    """Changes activations while the model runs. Immutable: one may be used in many contexts."""

    name: ClassVar[str]

    @property
    def where(self) -> tuple[str | Site, int | tuple[int, ...] | str | None]:
        """Site and layers as for ``capture``."""
        ...

    @property
    def chosen(self) -> Span | tuple[int, ...]:
        """Which tokens: a span, or positions (negative ones count from the prompt's end)."""
        ...

    @property
    def params(self) -> Mapping[str, Any]:
        """JSON parameters, part of the spec of what is captured meanwhile."""
        ...

    def axis(self, width: int) -> npt.NDArray[np.float64] | None:
        """``[width]`` the unit direction along which its effect is measured, or None."""
        ...

    def bind(
        self, places: Sequence[SitePlace], capture: Callable[..., ActivationBatch] | None
    ) -> Intervention:
        """Check that it fits these sites and return it, ready to run.

        Args:
            places: Every site it changes.
            capture: ``model.capture``, for what has to be read from the model first; None to check
                only.

        Raises:
            BadInputError: another width, heads of a site without heads, no source for a site.
        """
        ...

    def edit(self, rows: torch.Tensor, places: TokenPlaces) -> torch.Tensor:
        """The rows that take the place of others.

        Args:
            rows: ``[k, width]`` float32, or float64 in a float64 model.
            places: Which tokens they are.

        Returns:
            ``[k, width]``, a new tensor.
        """
        ...


class Source(Protocol):
    """An indexed dataset of prompts. Constructed from one text: a path or a name."""

    def __len__(self) -> int: ...

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """The examples of a range, in a fixed order; ids do not depend on the range."""
        ...

    def fingerprint(self) -> str:
        """Hex digest of the whole dataset's content, independent of where it lies."""
        ...


class RunWriter(Protocol):
    """Writes one run. A unit that was appended is durable when ``append`` returns.

    A writer that has ``copies_arrays = True`` promises to look at no array it was given once
    ``append`` has returned: their memory is then used again.
    """

    path: Path

    def committed(self) -> set[str]:
        """The ids of the units that are safe on disk."""
        ...

    def append(
        self, batch_id: str, activations: ActivationBatch, metadata: Mapping[str, Any]
    ) -> None:
        """Publish and commit one unit; the same id with the same bytes again does nothing.

        Raises:
            DuplicateUnitError: the id is committed with other bytes.
            NumericRangeError: a value does not fit the storage dtype.
        """
        ...

    def close(self) -> None:
        """Release what is open; committed units stay."""
        ...


class Storage(Protocol):
    """A place that holds runs."""

    keeps_bfloat16: ClassVar[bool]

    def open_run(
        self,
        run_id: str,
        spec: Mapping[str, Any] | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> RunWriter:
        """Create the run, or resume it if it is the same spec and plan.

        Raises:
            RunMismatchError: it exists with another spec.
            OutputFolderError: the folder holds something else or cannot be written.
        """
        ...


@dataclass(frozen=True)
class SiteStatus:
    """Whether a site's tensor was verified on this model, and by what; or why it is unavailable."""

    site: Site
    verified: bool
    reason: str


AHEAD = 2
"""Forward passes that may be begun and not yet taken."""

Started = Callable[[], ActivationBatch]
"""A forward pass that was begun."""


@dataclass(frozen=True)
class Selection:
    """What is kept of a forward pass, decided before it runs."""

    sites: tuple[Site, ...]
    strategy: Strategy
    span: Span = field(default_factory=Span)


class CaptureSession(Protocol):
    """An open selection on a model: its hooks are in place until the context ends."""

    def run(self, batch: Batch) -> ActivationBatch:
        """One forward pass, stopped after the deepest wanted module."""
        ...

    def begin(self, batch: Batch) -> Started:
        """The same without waiting for the copy to the CPU; ``AHEAD`` may be begun at once.

        Returns:
            What waits for it and returns what ``run`` returns, in memory that is used again once
            ``AHEAD`` more have been begun.
        """
        ...


class BackendModel(Protocol):
    """A loaded model."""

    n_layers: int
    d_model: int
    context_length: int | None
    dtype: str

    @property
    def identity(self) -> ModelIdentity:
        """What it is called on record, with everything that is done to it at the moment."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The plain tokenizer of the framework, or None for token ids only."""
        ...

    def sites(self) -> dict[Site, SiteStatus]:
        """Every site of the closed table that this model could have, with its status."""
        ...

    def width(self, site: Site) -> int:
        """How many values a row of a site has, heads side by side; of a pattern, its heads."""
        ...

    def expand(
        self, sites: str | Sequence[str | Site], layers: str | int | Iterable[int] | None = "all"
    ) -> tuple[Site, ...]:
        """Sites of names, keys and module paths; ``layers`` are for the bare names."""
        ...

    def resolve_layers(self, layers: Sequence[LayerSelector]) -> tuple[Site, ...]:
        """Sites of layer selectors; a bare index means ``resid_post``."""
        ...

    def encode(self, example: Example, *, chat: bool = False) -> TokenRow:
        """Tokens of one example; text is never given a second BOS."""
        ...

    def open(self, selection: Selection) -> AbstractContextManager[CaptureSession]:
        """Put the selection's hooks in place; the context removes them, whatever happens."""
        ...

    def prefix_refusal(self, selection: Selection) -> str:
        """Why texts that begin alike cannot share that part (``Batch.shared``); empty if they can.

        They can where the model's values were compared with those of a plain pass.
        """
        ...

    def generate_rows(self, rows: Sequence[TokenRow], params: GenerationParams) -> list[Generated]:
        """Continue each row."""
        ...

    def answer_capture(self, params: GenerationParams, selection: Selection) -> AnswerCapture:
        """How activations of answers are taken: as asked for, or what this model allows.

        Raises:
            BadInputError: ``live`` was asked for and would not give the values of a plain pass.
        """
        ...

    def generate_live(
        self, rows: Sequence[TokenRow], params: GenerationParams, selection: Selection
    ) -> tuple[list[Generated], ActivationBatch]:
        """Continue each row and take the selection's activations on the way.

        Examples whose span holds no token are failures of the batch, whose index is the place of
        the row.
        """
        ...


class ModelBackend(Protocol):
    """Loads models of one framework."""

    def load_model(self, model_name: str, device: str = "auto", **options: Any) -> BackendModel:
        """Load a model by hub id, folder, or the name ``demo``."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Keeps a record of experiments somewhere else, such as MLflow. One object for one run."""

    def started(self, name: str, parameters: Mapping[str, str]) -> None:
        """A run begins or goes on.

        Args:
            name: Its name.
            parameters: What decides its numbers, as ``key.subkey`` -> text.
        """
        ...

    def figures(self, values: Mapping[str, float], step: int = 0) -> None:
        """Figures of the run, by names such as ``examples`` or ``blocks.3.resid_post/norm``."""
        ...

    def finished(self, state: str) -> None:
        """The end: ``complete``, ``interrupted`` or ``failed``."""
        ...


class Study(Protocol):
    """A whole experiment."""

    name: ClassVar[str]

    def run(self, out: Path) -> Path:
        """Do it, resumably, and return the path of its report."""
        ...
