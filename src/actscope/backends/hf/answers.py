"""Answers and their activations: live while they are decoded, or replayed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from actscope.backends.hf.generation import (
    check_generates,
    generate_rows,
    generates_alike_in_batches,
)
from actscope.backends.hf.live import answer_capture, generate_live
from actscope.backends.hf.prefix import PrefixCheck, prefix_refusal
from actscope.core.activations import ActivationBatch, TokenRow
from actscope.core.batching import length_sorted_batches
from actscope.core.errors import BadInputError, ExampleError, UnknownNameError
from actscope.core.protocols import (
    AnswerCapture,
    Generated,
    GenerationParams,
    Listener,
    Listeners,
    Selection,
    Strategy,
)
from actscope.core.sites import Site
from actscope.core.text import Span, as_examples
from actscope.strategies import as_strategy

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["AnswerOptions", "Answering", "Generation"]


@dataclass(frozen=True)
class Generation:
    """Answers, and their activations where sites were asked for.

    Attributes:
        texts: The answer to each prompt, exactly as it follows the reasoning.
        rows: Prompt, reasoning and answer of each; ``row.phase`` tells them apart.
        activations: Row i is token i, prompt and response alike; None without sites.
        capture: How the activations were taken, and why so; None without sites.
        thoughts: The reasoning before each answer, between ``<think>`` and ``</think>``; empty
            where there is none. Reasoning that was never closed leaves no answer.
    """

    texts: list[str]
    rows: list[TokenRow]
    activations: ActivationBatch | None
    capture: AnswerCapture | None = None
    thoughts: list[str] = field(default_factory=list[str])


class AnswerOptions(TypedDict, total=False):
    """What may be said to ``generate`` by name.

    Attributes:
        top_p: The smallest set of tokens with so much probability; 1 (the default) takes all.
        top_k: So many most probable tokens; 0 (the default) takes all.
        stop: Texts that end an answer, special tokens' included, found across the borders of
            tokens. The text ends before it, the rows with the token that completed it.
        n: Answers to each prompt, called ``ID#0``, ``ID#1``, ... where there are several; each has
            its own seed, and the first is the answer that there would be alone.
        chat: Whether each text becomes a user turn of the chat template.
        strategy: As for ``capture``.
        span: As for ``capture``.
        capture: ``live`` while decoding, ``replay`` in one teacher-forced pass over prompt and
            response, or ``auto`` (the default): live where that was verified to give the same.
        batch_tokens: Padded tokens of a batch, answers included; 4096 by default.
        on_token: Called with example id, token id and a piece of text for each new token of each
            row, in order. Pieces are whole characters, hold back what may become a stop string or a
            tag, and join to the answer. What it raises ends the generation.
        on_thought: The same for pieces of reasoning, where a token makes one certain; they join to
            the reasoning.
    """

    top_p: float
    top_k: int
    stop: str | Sequence[str]
    n: int
    chat: bool
    strategy: str | Strategy | Callable[..., Any] | None
    span: str | Span
    capture: str
    batch_tokens: int
    on_token: Listener | None
    on_thought: Listener | None


_OF_PARAMS = ("top_p", "top_k", "stop", "n", "capture")


class Answering:
    """The half of an ``HFModel`` that answers prompts."""

    def generate(
        self,
        prompts: object,
        max_new_tokens: int = 50,
        temperature: float = 0.7,
        seed: int = 0,
        sites: str | Sequence[str | Site] | None = None,
        layers: str | int | Iterable[int] | None = "all",
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """Continue prompts, and capture every token of prompt and response if sites are given.

        Args:
            prompts: As for ``capture``.
            max_new_tokens: Longest response.
            temperature: 0 is greedy.
            seed: Seeds every example by itself (with its id): its text does not depend on others.
            sites: What to capture.
            layers: As for ``capture``.
            options: See ``AnswerOptions``: ``top_p``, ``top_k``, ``stop``, ``n``, ``chat``,
                ``strategy``, ``span``, ``capture``, ``batch_tokens``, ``on_token``,
                ``on_thought``.

        Raises:
            BadInputError: a parameter without meaning, a model that cannot generate or has no room.
            UnknownNameError: no such option.
            ExampleError: an example has no tokens, none in the span, or too many.
        """
        model = self._model
        for name in options:
            if name not in AnswerOptions.__annotations__:
                raise UnknownNameError("option of generate", name, AnswerOptions.__annotations__)
        named = {k: v for k, v in options.items() if k in _OF_PARAMS}
        params = GenerationParams(max_new_tokens, temperature, seed=seed, **cast("Any", named))
        chat = options.get("chat", False)
        prompt_rows = [model.checked(model.encode(e, chat=chat)) for e in as_examples(prompts)]
        rows = [sample for row in prompt_rows for sample in row.samples(params.n)]
        if not rows:
            raise BadInputError("there is nothing to generate from: no prompts")
        selection = None
        if sites is not None:
            strategy, span = options.get("strategy"), options.get("span", "all")
            kept = model.expand(sites, layers)
            selection = Selection(kept, as_strategy(strategy), Span.parse(span))
            model.open(selection)  # refuses what this model does not have, before it answers
        told = (options.get("on_token"), options.get("on_thought"))
        listeners = Listeners(*told) if any(told) else None
        budget = options.get("batch_tokens", 4096)
        return _answer(model, rows, params, selection, budget, listeners)

    def generate_rows(self, rows: Sequence[TokenRow], params: GenerationParams) -> list[Generated]:
        """Continue each row: all in one batch, or one by one where the model mixes batch mates.

        Raises:
            BadInputError: an encoder, or no room in the context.
        """
        return _continue_rows(self._model, rows, params)

    def generate_live(
        self, rows: Sequence[TokenRow], params: GenerationParams, selection: Selection
    ) -> tuple[list[Generated], ActivationBatch]:
        """The same, and the activations of a selection that ``answer_capture`` calls live."""
        return _continue_rows_live(self._model, rows, params, selection)

    def answer_capture(self, params: GenerationParams, selection: Selection) -> AnswerCapture:
        """Whether answers are captured live or replayed, and why.

        Raises:
            BadInputError: live was asked for and is not what this model can do.
        """
        return answer_capture(self._model, params, self._model.taps(selection))

    @cached_property
    def generates_in_batches(self) -> bool:
        """Whether a text does not depend on its batch mates; else rows are continued alone."""
        with self._model.interventions.suspended():
            return generates_alike_in_batches(self._model.hf, self._model.pad_id)

    @cached_property
    def live_refusals(self) -> dict[tuple[str | None, frozenset[Site]], str]:
        """Why answers cannot be captured live, by adapter and sites; empty where they can."""
        return {}

    @cached_property
    def prefix_checks(self) -> dict[tuple[str | None, frozenset[Site]], PrefixCheck]:
        """Whether texts can share their beginnings, by adapter and sites."""
        return {}

    def prefix_refusal(self, selection: Selection | str | Sequence[str | Site]) -> str:
        """Why texts that begin alike cannot share that part; empty where they can.

        Args:
            selection: What would be captured; site names or keys as for ``capture`` do as well.

        Raises:
            UnknownNameError: no such site or module.
            SiteUnavailableError: a site is not verified on this model.
        """
        if not isinstance(selection, Selection):
            selection = Selection(self._model.expand(selection), as_strategy(None))
        return prefix_refusal(self._model, self._model.taps(selection))

    @property
    def _model(self) -> HFModel:
        return cast("HFModel", self)


def _answer(
    model: HFModel,
    rows: Sequence[TokenRow],
    params: GenerationParams,
    selection: Selection | None,
    batch_tokens: int,
    listeners: Listeners | None,
) -> Generation:
    """Continue prompts in batches of a token budget, and capture what is selected.

    Raises:
        ExampleError: an example has no token in the span.
        BadInputError: the model cannot generate, or not so many tokens.
    """
    _check_room(model, rows, params)
    how = model.answer_capture(params, selection) if selection else None
    live = how is not None and how.mode == "live"
    plan = length_sorted_batches(
        [row.longest + params.max_new_tokens for row in rows], batch_tokens=batch_tokens
    )
    made: dict[int, Generated] = {}
    parts: list[ActivationBatch] = []
    for places in plan:
        some = [rows[i] for i in places]
        if live and selection is not None:
            answers, part = _continue_rows_live(model, some, params, selection, listeners)
            parts.append(_refuse_failures(part))
        else:
            answers = _continue_rows(model, some, params, listeners)
        made.update(zip(places, answers, strict=True))
    ordered = [made[i] for i in range(len(rows))]
    full = [one.row for one in ordered]
    captured = None
    if live:
        captured = ActivationBatch.join(parts, [i for places in plan for i in places])
    elif selection is not None:
        captured = model.capture_rows(full, selection, batch_tokens)
    texts, thoughts = [one.text for one in ordered], [one.thought for one in ordered]
    return Generation(texts, full, captured, how, thoughts)


def _continue_rows(
    model: HFModel,
    rows: Sequence[TokenRow],
    params: GenerationParams,
    listeners: Listeners | None = None,
) -> list[Generated]:
    """Continue rows: as one batch, or one by one where the model mixes batch mates.

    Raises:
        BadInputError: the model cannot generate, or not so many tokens.
    """
    _check_room(model, rows, params)
    made: list[Generated] = []
    for group in _groups(model, rows):
        made += generate_rows(model, group, params, listeners=listeners)
    return made


def _continue_rows_live(
    model: HFModel,
    rows: Sequence[TokenRow],
    params: GenerationParams,
    selection: Selection,
    listeners: Listeners | None = None,
) -> tuple[list[Generated], ActivationBatch]:
    """The same, with activations; see ``BackendModel.generate_live``."""
    _check_room(model, rows, params)
    taps = model.taps(selection)
    made: list[Generated] = []
    parts: list[ActivationBatch] = []
    for group in _groups(model, rows):
        answers, part = generate_live(model, group, params, selection, taps, listeners=listeners)
        made += answers
        parts.append(part)
    if len(parts) == 1:
        return made, parts[0]
    kept = [i for i, part in enumerate(parts) if len(part)]
    whole = ActivationBatch.join([parts[i] for i in kept] or parts[:1], kept)
    failures = [replace(f, index=i) for i, part in enumerate(parts) for f in part.failures]
    return made, replace(whole, failures=tuple(failures))


def _check_room(model: HFModel, rows: Sequence[TokenRow], params: GenerationParams) -> None:
    """Whether the model can answer at all, and so long.

    Raises:
        BadInputError: an encoder, or no room in the context.
    """
    check_generates(model)
    if params.stop and model.tokenizer is None:
        raise BadInputError(
            "stop strings need a tokenizer, and the model has none",
            got=list(params.stop),
            next_step="wrap_model(hf_model, tokenizer), or leave stop out",
        )
    longest = max(len(row) for row in rows)
    if model.context_length and longest + params.max_new_tokens > model.context_length:
        raise BadInputError(
            f"{longest} prompt tokens and {params.max_new_tokens} new ones do not fit",
            expected=f"at most {model.context_length} together",
            next_step="ask for fewer new tokens or truncate the prompts",
        )


def _groups(model: HFModel, rows: Sequence[TokenRow]) -> list[list[TokenRow]]:
    if len(rows) == 1 or model.generates_in_batches:
        return [list(rows)]
    return [[row] for row in rows]


def _refuse_failures(batch: ActivationBatch) -> ActivationBatch:
    if batch.failures:
        raise ExampleError(batch.failures[0].kind, batch.failures[0].message)
    return batch
