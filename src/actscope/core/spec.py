"""What a run is: its spec, the spec's fingerprint, and the plan of its work units.

Two runs with one fingerprint hold the same kind of numbers about the same dataset, whatever range
of it each covers: they may be merged. How the work was cut (units, batches, threads) is the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from actscope.core.errors import BadInputError
from actscope.core.provenance import canonical_json, sha256_json
from actscope.core.whole_numbers import whole_number

__all__ = ["CaptureSpec", "ModelIdentity", "UnitPlan", "spec_differences", "unit_id"]


@dataclass(frozen=True)
class ModelIdentity:
    """Which model computed, and in what.

    Attributes:
        name: Hub id, ``demo``, or the folder's name.
        revision: Commit of the hub, or a digest of samples of every weight.
        config: Digest of the configuration and the stop tokens.
        adapter: The LoRA adapter's identity, or None.
        model_type: The configuration's type, such as ``llama``.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        dtype: Compute dtype.
        tokenizer: Hash of the tokenizer, empty where there is none.
        chat_template: Hash of the chat template, empty where there is none.
        interventions: What is done to the running model, in order; empty for the plain model.
    """

    name: str
    revision: str
    adapter: str | None
    model_type: str
    n_layers: int
    d_model: int
    dtype: str
    config: str = ""
    tokenizer: str = ""
    chat_template: str = ""
    interventions: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class CaptureSpec:
    """Everything that decides which numbers a run holds, except the dataset range.

    Attributes:
        model: The model's identity.
        dataset: Fingerprint of the whole dataset.
        sites: Site keys.
        span: Which tokens, as ``str(Span)``.
        strategy: ``{"name": ..., "params": {...}}``; name ``none`` keeps every token.
        storage_dtype: dtype on disk.
        on_too_long: ``error``, ``skip``, ``truncate-left`` or ``truncate-right``.
        max_length: Longest prompt in tokens, or None where the model sets no limit.
        chat: Whether plain texts are wrapped as one user turn of the chat template.
        generation: Parameters of generation, or None.
        keep_text: Whether texts and token ids are stored.
        codec: How activations are made smaller on disk; None keeps them as they are.
    """

    model: ModelIdentity
    dataset: str
    sites: tuple[str, ...]
    span: str = "all"
    strategy: Mapping[str, Any] = field(default_factory=lambda: {"name": "none", "params": {}})
    storage_dtype: str = "float32"
    on_too_long: str = "error"
    max_length: int | None = None
    chat: bool = False
    generation: Mapping[str, Any] | None = None
    keep_text: bool = True
    codec: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        data = asdict(self)
        data["sites"] = list(self.sites)
        data["strategy"] = dict(self.strategy)
        data["model"]["interventions"] = [dict(done) for done in self.model.interventions]
        if not self.model.interventions:  # a plain run's fingerprint does not know the field
            del data["model"]["interventions"]
        if self.codec is None:
            del data["codec"]
        return data

    @property
    def fingerprint(self) -> str:
        """Hex digest of the spec."""
        return sha256_json(self.to_json())


def unit_id(start: int, stop: int) -> str:
    """The name of the unit of examples ``start`` to ``stop - 1`` of the dataset."""
    return f"{start:09d}-{stop:09d}"


@dataclass(frozen=True)
class UnitPlan:
    """How a range of the indexed dataset is cut into units, decided once for a run.

    Attributes:
        start: First example of the range.
        stop: One past the last.
        unit_size: Examples in a unit; units begin at multiples of it, whatever the range.
        batch_tokens: Token budget of a batch (padding included), or None with ``batch_size``.
        batch_size: Examples in a batch, or None with ``batch_tokens``.
        threads: Intra-op threads of the worker, 0 where not fixed.
        cuts: Where units begin besides the multiples of ``unit_size``; merged runs have such.
        pass_tokens: What a forward pass costs beside its tokens, in tokens; 0 fills every batch.
        share_prefix: Whether texts that begin alike compute that part once.
    """

    start: int
    stop: int
    unit_size: int
    batch_tokens: int | None = None
    batch_size: int | None = None
    threads: int = 0
    cuts: tuple[int, ...] = ()
    pass_tokens: int = 0
    share_prefix: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise BadInputError("a range must not end before it starts", got=self.to_json())
        object.__setattr__(self, "unit_size", whole_number("unit_size", self.unit_size, 1))

    def units(self) -> list[tuple[int, int]]:
        """(start, stop) of every unit, in order."""
        bounds: list[tuple[int, int]] = []
        at = self.start
        cuts = [*sorted(cut for cut in self.cuts if cut > self.start), self.stop]
        following = 0
        while at < self.stop:
            end = min((at // self.unit_size + 1) * self.unit_size, cuts[following], self.stop)
            following += end == cuts[following]
            bounds.append((at, end))
            at = end
        return bounds

    def unit_ids(self) -> list[str]:
        """The names of the units, in order."""
        return [unit_id(*bounds) for bounds in self.units()]

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON; a plan without cuts does not mention them."""
        data = asdict(self)
        cuts = data.pop("cuts")
        return {**data, "cuts": list(cuts)} if cuts else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> UnitPlan:
        """Read what ``to_json`` wrote."""
        given: dict[str, Any] = {**data, "cuts": tuple(data.get("cuts", ()))}
        return cls(**given)


def spec_differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, object, object]]:
    """Rows of (dotted field, stored, asked) wherever two JSON dictionaries differ."""
    rows: list[tuple[str, object, object]] = []
    for key in sorted({*stored, *asked}):
        a, b = stored.get(key), asked.get(key)
        name = f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += spec_differences(a, b, name + ".")
        elif canonical_json(a) != canonical_json(b):
            rows.append((name, a, b))
    return rows
