"""What is collected and analysed, decided before it begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from actscope.capture.options import SHARE_PREFIX
from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.protocols import GenerationParams
from actscope.core.whole_numbers import whole_number
from actscope.studies.introspection.passes import PASSES, Pass

__all__ = ["ADAPTER", "DTYPES", "AnalysisParams", "CollectParams", "IntrospectionParams"]

DTYPES = ("float16", "float32")
ADAPTER = "demo-lora"


@dataclass(frozen=True)
class CollectParams:
    """What to collect.

    Attributes:
        output_dir: Where.
        dataset: Questions: a file, ``demo:mcq/NAME``, or ``hf:OWNER/NAME:CONFIG:SPLIT``.
        num_questions: How many; None takes the rest.
        offset: The first.
        seed: Decides the order of the options, with each question's id.
        passes: Which ways to ask.
        layers: Blocks whose output is stored, ``all`` or indices.
        dtype: Of the stored activations: ``float16`` or ``float32``.
        templates: A packaged set or a folder; None takes ``marren`` for the bundled model and
            ``general`` for others.
        batch_size: Prompts in one forward pass; None fills ``batch_tokens``.
        batch_tokens: Padded tokens in one forward pass; None takes what is usual for the device.
        share_prefix: ``auto`` computes what the passes of a question have in common once, where the
            model was found to give the values of plain passes; ``off`` computes it for each.
        unit_size: Questions in a unit of work; None chooses by size.
        generate: Sample ``output_text`` with these; None takes the most probable letter.
    """

    output_dir: Path
    dataset: str = "demo:mcq/marren"
    num_questions: int | None = None
    offset: int = 0
    seed: int = 0
    passes: tuple[Pass, ...] = PASSES
    layers: str | tuple[int, ...] = "all"
    dtype: str = "float16"
    templates: str | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    share_prefix: str = "auto"
    unit_size: int | None = None
    generate: GenerationParams | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UnknownNameError("dtype of activations", self.dtype, DTYPES)
        if self.share_prefix not in SHARE_PREFIX:
            raise UnknownNameError("share_prefix", self.share_prefix, SHARE_PREFIX)
        if self.batch_size is not None and self.batch_tokens is not None:
            raise BadInputError("give a batch size or a token budget, not both")
        object.__setattr__(self, "offset", whole_number("offset", self.offset, 0))
        for name in ("num_questions", "batch_size", "batch_tokens", "unit_size"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value, 1, instead="None"))


@dataclass(frozen=True)
class AnalysisParams:
    """How the analyses are done.

    Attributes:
        shuffles: Refits with shuffled targets, per layer.
        pairs: Pairs of questions for causal patching.
        steered: Questions that are steered.
        folds: Of cross-validation.
        seed: Of folds, shuffles, pairs and resamples.
    """

    shuffles: int = 200
    pairs: int = 100
    steered: int = 120
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shuffles", "pairs", "steered"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} must be at least 1", got=getattr(self, name))
        if self.folds < 2:
            raise BadInputError("cross-validation needs at least 2 folds", got=self.folds)


@dataclass(frozen=True)
class IntrospectionParams:
    """The whole chain: a base model and its adapter asked, compared and analysed.

    The defaults are a first look, done in about a minute.

    Attributes:
        out: Folder of ``base``, ``finetuned`` and ``analysis``.
        model: A hub id, a folder, or ``demo``.
        adapter: A LoRA adapter of it; None leaves the comparison out.
        dataset: Questions.
        num_questions: How many; None takes all.
        offset: The first.
        analysis: How the analyses are done.
    """

    out: Path = Path("introspection")
    model: str = "demo"
    adapter: str | None = ADAPTER
    dataset: str = "demo:mcq/marren"
    num_questions: int | None = 48
    offset: int = 0
    analysis: AnalysisParams = field(
        default_factory=lambda: AnalysisParams(shuffles=20, pairs=12, steered=12)
    )
