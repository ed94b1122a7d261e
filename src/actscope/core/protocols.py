"""Every seam of the house, on one screen. One new file adds one plugin; nothing else is edited.

room         attribute  what the file provides
strategies/  STRATEGY   a class whose instances pool tokens          -> Strategy
sources/     SOURCE     a class that reads prompts from somewhere    -> Source
stores/      STORE      a class that opens runs for writing          -> Storage, RunWriter
backends/    BACKEND    a class that loads models                    -> ModelBackend, BackendModel
families/    FAMILY     data about one model family                  -> families.Family
studies/     STUDY      a whole experiment: parameters, run, report  -> Study
cli/         COMMAND    a click command; the verb is the file's stem
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, runtime_checkable

from actscope.core.activations import ActivationBatch, Batch, TokenRow
from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.sites import Site
from actscope.core.spec import ModelIdentity
from actscope.core.text import Example, Span

if TYPE_CHECKING:
    import torch

__all__ = [
    "CAPTURE_MODES",
    "AnswerCapture",
    "BackendModel",
    "CaptureSession",
    "ExtractionStrategy",
    "Generated",
    "GenerationParams",
    "LayerSelector",
    "Listener",
    "Listeners",
    "ModelBackend",
    "RunWriter",
    "Selection",
    "SiteStatus",
    "Source",
    "Storage",
    "Strategy",
    "Study",
]

CAPTURE_MODES = ("auto", "live", "replay")

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
    """Writes one run. A unit that was appended is durable when ``append`` returns."""

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


@dataclass(frozen=True)
class Selection:
    """What is kept of a forward pass, decided before it runs."""

    sites: tuple[Site, ...]
    strategy: Strategy
    span: Span = field(default_factory=Span)


@dataclass(frozen=True)
class GenerationParams:
    """How to continue a prompt, and how the activations of the answer are taken.

    Attributes:
        max_new_tokens: Longest answer.
        temperature: 0 is greedy. Sampling is seeded per example.
        top_p: The smallest set of tokens with so much probability; 1 takes all.
        top_k: So many most probable tokens; 0 takes all.
        seed: Seeds every example, together with its id.
        stop: Texts that end an answer. They are found across the borders of tokens; the text ends
            before the stop string, the rows with the token that completed it.
        n: Answers to each prompt, each sampled by itself. With more than one they are called
            ``ID#0``, ``ID#1``, ...; the first is the answer that there would be alone.
        capture: ``live`` takes activations while the answer is decoded, ``replay`` in one pass over
            prompt and answer afterwards, ``auto`` is live where the model's cache allows it.

    Raises:
        BadInputError: a parameter means nothing, by name.
    """

    max_new_tokens: int = 50
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    n: int = 1
    capture: str = "auto"

    def __post_init__(self) -> None:
        given = cast("str | Iterable[str]", self.stop)
        stop = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "stop", stop)
        for name in ("max_new_tokens", "top_k", "seed", "n"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise BadInputError(f"{name} must be a whole number", got=repr(value))
            object.__setattr__(self, name, int(value))
        if self.max_new_tokens < 1:
            raise BadInputError("max_new_tokens must be at least 1", got=self.max_new_tokens)
        if self.temperature < 0:
            raise BadInputError(
                "temperature must not be negative", got=self.temperature, expected="0 for greedy"
            )
        if not math.isfinite(self.temperature):
            raise BadInputError("temperature must be a finite number", got=self.temperature)
        if not 0 < self.top_p <= 1:
            raise BadInputError("top_p must lie in (0, 1]", got=self.top_p)
        if self.top_k < 0:
            raise BadInputError(
                "top_k must not be negative", got=self.top_k, expected="0 for every token"
            )
        if not all(isinstance(cast("object", s), str) and s for s in stop):
            raise BadInputError("a stop string must be a text that is not empty", got=list(stop))
        if self.n < 1:
            raise BadInputError("n must be at least 1", got=self.n)
        if self.n > 1 and self.temperature == 0:
            raise BadInputError(
                f"greedy answers are all the same: {self.n} of them are one",
                next_step="sample with a temperature above 0, or ask for n=1 (--samples 1)",
            )
        if self.capture not in CAPTURE_MODES:
            raise UnknownNameError("way to capture answers", self.capture, CAPTURE_MODES)


@dataclass(frozen=True)
class AnswerCapture:
    """How the activations of answers are taken, and why so.

    Attributes:
        mode: ``live`` or ``replay``.
        reason: What decided it.
    """

    mode: str
    reason: str


@dataclass(frozen=True)
class Generated:
    """Prompt and continuation of one example: ``row.phase`` tells them apart.

    Attributes:
        row: Prompt, reasoning and answer.
        text: The answer.
        thought: The reasoning, between ``<think>`` and ``</think>``; empty where there is none.
    """

    row: TokenRow
    text: str
    thought: str = ""


Listener = Callable[[str, int, str], None]
"""Told example id, token id and the text that the token made certain, token by token."""


@dataclass(frozen=True)
class Listeners:
    """Who is told what is generated while it is.

    Attributes:
        token: Told every new token; the pieces of an example join to its answer.
        thought: Told the tokens that make reasoning certain; the pieces join to the reasoning.
    """

    token: Listener | None = None
    thought: Listener | None = None


class CaptureSession(Protocol):
    """An open selection on a model: its hooks are in place until the context ends."""

    def run(self, batch: Batch) -> ActivationBatch:
        """One forward pass, stopped after the deepest wanted module."""
        ...


class BackendModel(Protocol):
    """A loaded model."""

    identity: ModelIdentity
    n_layers: int
    d_model: int
    context_length: int | None
    dtype: str

    @property
    def tokenizer(self) -> Any:
        """The plain tokenizer of the framework, or None for token ids only."""
        ...

    def sites(self) -> dict[Site, SiteStatus]:
        """Every site of the closed table that this model could have, with its status."""
        ...

    def width(self, site: Site) -> int:
        """The size of the last axis of a site."""
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


class Study(Protocol):
    """A whole experiment."""

    name: ClassVar[str]

    def run(self, out: Path) -> Path:
        """Do it, resumably, and return the path of its report."""
        ...
