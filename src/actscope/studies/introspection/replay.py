"""Ask a collection's questions again, as they were asked, while something is done to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from actscope.analysis.choices import expected_value, read_letters
from actscope.capture.budget import usual_budget
from actscope.capture.options import CaptureOptions
from actscope.core.errors import BadInputError, DamagedRunError, RunMismatchError
from actscope.core.protocols import Selection
from actscope.core.spec import spec_differences
from actscope.core.text import Example, Span
from actscope.strategies import as_strategy
from actscope.studies.introspection.data import Collection
from actscope.studies.introspection.params import ADAPTER
from actscope.studies.introspection.passes import MIDPOINTS, PASSES, letter_tokens
from actscope.studies.introspection.prompts import Templates

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel
    from actscope.core.activations import ActivationBatch, TokenRow

__all__ = ["ModelSource", "Replay", "renamed", "source_of_model"]

Float64 = npt.NDArray[np.float64]

_AGREE = 0.5
"""Percentage points by which a figure may differ from the stored one: batches round differently."""


@dataclass(frozen=True)
class ModelSource:
    """What loads a collection's model again.

    Attributes:
        model: Hub id, folder or ``demo``.
        adapter: Of a finetuned model.
        revision: Commit of the hub; None for what has none.
        dtype: Compute dtype.
    """

    model: str
    adapter: str | None
    revision: str | None
    dtype: str


def source_of_model(collection: Collection) -> ModelSource:
    """Where a collection's model was loaded from, and how."""
    config, identity = collection.config, collection.config["spec"]["model"]
    bundled = str(config["lora_checkpoint"] or "").startswith(f"{ADAPTER}@")
    return ModelSource(
        model=config["model_source"],
        adapter=ADAPTER if bundled else config["lora_source"],
        revision=None if identity["revision"].startswith("values:") else identity["revision"],
        dtype=identity["dtype"],
    )


@dataclass(frozen=True)
class Replay:
    """A model and the questions that it was asked.

    Attributes:
        model: The same model.
        collection: What it was asked.

    Raises:
        RunMismatchError: it is another model.
    """

    model: HFModel
    collection: Collection

    def __post_init__(self) -> None:
        now = asdict(self.model.identity)
        del now["interventions"]
        differences = spec_differences(self.collection.config["spec"]["model"], now, "model.")
        if differences:
            raise RunMismatchError(
                str(self.collection.path),
                differences,
                next_step="give the model and adapter that it was collected with",
            )

    def rows(self, name: str, places: Sequence[int]) -> list[TokenRow]:
        """The prompts of some questions in one pass, tokenised as they were.

        Raises:
            DamagedRunError: they have other lengths than those on record.
        """
        config, collected = self.collection.config, self.collection[name]
        templates = Templates("stored", config["templates"])
        found: list[TokenRow] = []
        for place in places:
            row = collected.rows[place]
            text = templates.prompt(row["question_text"], row["options"], collected.which)
            example = Example(str(row["question_id"]), text=text)
            tokens = self.model.encode(example, chat=bool(config["spec"]["chat"]))
            if len(tokens) != row["prompt_tokens"]:
                raise DamagedRunError(
                    f"question {row['question_id']} is not the prompt that was asked",
                    got=f"{len(tokens)} tokens",
                    expected=f"{row['prompt_tokens']}",
                )
            found.append(tokens)
        return found

    @property
    def _budget(self) -> int:
        return usual_budget(self.model, CaptureOptions())

    def stated(self, name: str, rows: Sequence[TokenRow]) -> Float64:
        """``[n]`` expected confidence in percent, with whatever is done to the model now."""
        return expected_value(self.probabilities(name, rows), MIDPOINTS)

    def probabilities(self, name: str, rows: Sequence[TokenRow]) -> Float64:
        """``[n, letters]`` of the pass's letters."""
        which = next(p for p in PASSES if p.name == name)
        selection = Selection(self.model.expand("logits"), as_strategy("last"))
        batch = self.model.capture_rows(rows, selection, self._budget)
        tokens = letter_tokens(self.model.tokenizer, which.letters)
        return read_letters(batch.numpy("logits"), tokens).probs

    def ends(self, rows: Sequence[TokenRow], layers: Sequence[int]) -> ActivationBatch:
        """The last token's activation of some prompts after some blocks, by their ids."""
        sites = self.model.expand("resid_post", list(layers))
        selection = Selection(sites, as_strategy(None), Span.parse("last:1"))
        return self.model.capture_rows(rows, selection, self._budget)

    def check(self, name: str, places: Sequence[int]) -> Float64:
        """``[n]`` stated confidence asked again; it must be what is on record.

        Raises:
            DamagedRunError: it is not.
        """
        found = self.stated(name, self.rows(name, places))
        stored = self.collection[name].numbers(name)[list(places)]
        off = float(np.abs(found - stored).max(initial=0.0))
        if off > _AGREE:
            raise DamagedRunError(
                "asked again, the model states another confidence than the one on record",
                got=f"{off:.3g} percentage points away",
                expected=f"at most {_AGREE}",
            )
        return found


def renamed(rows: Sequence[TokenRow], names: Sequence[str]) -> list[TokenRow]:
    """Rows under the ids of others, so that a patch finds its source by the target's id.

    Raises:
        BadInputError: another number of names.
    """
    if len(rows) != len(names):
        raise BadInputError("one name a row", got=f"{len(rows)} rows, {len(names)} names")
    return [replace(row, id=name) for row, name in zip(rows, names, strict=True)]
