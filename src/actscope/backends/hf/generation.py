"""Continue prompts with the model's own ``generate``, one left-padded batch at a time."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from actscope.backends.hf.answer_text import AnswerText, Said, opens_reasoning, said_by
from actscope.backends.hf.exclusive import alone
from actscope.backends.hf.placement import input_device
from actscope.backends.hf.resolve import probe_ids
from actscope.backends.hf.sampling import samplers
from actscope.backends.hf.stacks import answer_start, encoder_text, prompt_rows, start_token
from actscope.backends.hf.trace import evaluation_mode
from actscope.backends.hf.unfolding import are_special, offsets_of_ids
from actscope.core.activations import Batch, TokenRow
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError
from actscope.core.protocols import Generated, GenerationParams, Listeners
from actscope.core.spelling import ROLES, Speller, Spelling
from actscope.core.text import RESPONSE

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["check_generates", "generate_rows", "generates_alike_in_batches"]

_CONTEXT = 8
"""So many tokens before an answer tell how its first one is spelled, such as with a space."""


def generate_rows(
    model: HFModel,
    rows: Sequence[TokenRow],
    params: GenerationParams,
    *,
    stops: Collection[int] | None = None,
    listeners: Listeners | None = None,
    live: bool = False,
    prompt_logits: bool = False,
) -> list[Generated]:
    """Continue each row; the rows run as one left-padded batch.

    Only these parameters and the model's stop tokens count: a repetition penalty or minimum length
    that a checkpoint carries in its generation_config would change texts unrecorded.

    Args:
        model: The wrapped model.
        rows: The prompts.
        params: How to continue.
        stops: Token ids that end an answer; None takes the model's.
        listeners: Told every new token.
        live: Whether hooks watch: then the last token of each answer goes through the model too.
        prompt_logits: Whether they watch the head: then every token of a prompt goes through it.

    Returns:
        Prompt and response tokens of each example. A stop token that the model wrote is the last
        response token; what a longer batch mate made after it is not there.
    """
    stops = _stop_ids(model.hf, model.tokenizer) if stops is None else stops
    rows = [answer_start(row) for row in rows]
    answers = [_Answer(row, model.tokenizer, params, stops, listeners) for row in rows]
    batch = Batch(tuple(rows), padding_side="left")
    with (
        alone(model.hf),
        model.interventions.announced(batch, lambda: [a.read(live=live) for a in answers]),
    ):
        _generate(
            model.hf,
            rows,
            model.pad_id,
            steps=params.max_new_tokens + live,
            ends=_Ends(answers, one_more=live),
            processors=samplers(rows, params),
            prompt_logits=prompt_logits,
        )
    return [answer.generated() for answer in answers]


def check_generates(model: HFModel) -> None:
    """Refuse a model that cannot generate.

    Raises:
        BadInputError: it is an encoder, or has no head.
    """
    if not model.causal or not callable(getattr(model.hf, "generate", None)):
        raise BadInputError(
            f"{model.identity.name} ({model.identity.model_type}) cannot generate",
            expected="a causal language model with a head",
            next_step="load a decoder; of an encoder-decoder its decoder (--stack decoder)",
        )


class _Answer:
    """The new tokens of one row, and whether it has ended."""

    def __init__(
        self,
        row: TokenRow,
        tokenizer: Any,
        params: GenerationParams,
        stops: Collection[int],
        listeners: Listeners | None,
    ) -> None:
        self._row = row
        self._tokenizer = tokenizer
        self._limit = params.max_new_tokens
        self._stops = stops
        self._listeners = listeners or Listeners()
        self._thinking = opens_reasoning(tokenizer, row.token_ids)
        watched = tokenizer is not None and (params.stop or listeners is not None)
        self._text = (
            AnswerText(tokenizer, params.stop, thinking=self._thinking) if watched else None
        )
        self._ids: list[int] = []
        self.ended = False

    def add(self, token: int) -> None:
        """The next token; what comes after the end is not the row's."""
        if self.ended:
            return
        self._ids.append(token)
        self.ended = token in self._stops or len(self._ids) == self._limit
        piece = Said()
        if self._text is not None:
            piece = self._text.add(token, last=self.ended)
            self.ended = self.ended or self._text.stopped
        if self._listeners.thought is not None and piece.thought:
            self._listeners.thought(self._row.id, token, piece.thought)
        if self._listeners.token is not None:
            self._listeners.token(self._row.id, token, piece.text)

    def read(self, *, live: bool) -> int:
        """How many tokens go through the model; the last one does only for its row."""
        return len(self._ids) - (self.ended and not live)

    def generated(self) -> Generated:
        """Prompt and answer."""
        row = self._row
        said, phase = self._said()
        response = np.asarray(self._ids, dtype=np.int64)
        special = are_special(self._tokenizer, response)
        full = replace(
            row,
            token_ids=np.concatenate([row.token_ids, response]),
            phase=np.concatenate([row.phase, phase]),
            special=np.concatenate([row.special, special]),
            spelling=_spelled_on(row, response, (phase == RESPONSE) & ~special, self._tokenizer),
        )
        return Generated(full, said.text, said.thought)

    def _said(self) -> tuple[Said, Array]:
        if self._text is not None:
            return self._text.whole, self._text.phases()
        if self._tokenizer is None:
            return Said(), np.full(len(self._ids), RESPONSE, np.uint8)
        return said_by(self._tokenizer, self._ids, thinking=self._thinking)


class _Ends(StoppingCriteria):
    """Hands each row its new token and says which rows have ended.

    Args:
        answers: One a row.
        one_more: Report an end one step late, so that the row's last token is an input once.
    """

    def __init__(self, answers: list[_Answer], *, one_more: bool) -> None:
        self._answers = answers
        self._one_more = one_more

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        before = [answer.ended for answer in self._answers]
        for answer, token in zip(self._answers, input_ids[:, -1].tolist(), strict=True):
            answer.add(token)
        ended = before if self._one_more else [answer.ended for answer in self._answers]
        return torch.tensor(ended, device=input_ids.device)


def generates_alike_in_batches(hf: Any, pad_id: int) -> bool:
    """Whether a row has the same logits alone and beside a longer one, over three greedy steps.

    Models that carry a recurrent state may let padding leak into it, or mix the states of a batch.
    """
    ids = probe_ids(hf)[0].tolist()
    rows = prompt_rows(hf, {"long": ids, "short": ids[:3]})
    together = _generate(hf, rows, pad_id, steps=3)
    for place, row in enumerate(rows):
        alone = _generate(hf, [row], pad_id, steps=3)
        for a, b in zip(alone.logits, together.logits, strict=True):
            x, y = a[0].float(), b[place].float()
            tolerance = 0.05 if a.dtype in (torch.bfloat16, torch.float16) else 1e-3
            if float((x - y).abs().max()) > tolerance * float(x.abs().max()):
                return False
            if int(x.argmax()) != int(y.argmax()):
                break  # a tie: from here on the two continue different texts
    return True


def _generate(
    hf: Any,
    rows: Sequence[TokenRow],
    pad_id: int,
    *,
    steps: int,
    ends: StoppingCriteria | None = None,
    processors: LogitsProcessorList | None = None,
    prompt_logits: bool = False,
) -> Any:
    ids, mask = Batch(tuple(rows), padding_side="left").padded(pad_id)
    device = input_device(hf)
    given: dict[str, Any] = {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device),
    }
    encoder = encoder_text(Batch(tuple(rows)), pad_id, device)
    if encoder is not None:  # the rows are the decoder's, one start token each
        given |= {"decoder_input_ids": given["input_ids"]}
        given |= {"input_ids": encoder[0], "attention_mask": encoder[1]}
    config = GenerationConfig(
        decoder_start_token_id=start_token(hf) if encoder is not None else None,
        do_sample=False,
        num_beams=1,
        max_new_tokens=steps,
        pad_token_id=pad_id,
        output_logits=ends is None,  # a probe compares them; elsewhere they only cost memory
        return_dict_in_generate=True,
    )
    every = prompt_logits and "logits_to_keep" in inspect.signature(hf.forward).parameters
    with alone(hf), torch.no_grad(), evaluation_mode(hf), _generation_config(hf, config):
        return hf.generate(
            **given,
            generation_config=config,
            logits_processor=processors or LogitsProcessorList(),
            stopping_criteria=StoppingCriteriaList([] if ends is None else [ends]),
            **({"logits_to_keep": 0} if every else {}),  # 0 keeps all; generate keeps the last
        )


@contextmanager
def _generation_config(hf: Any, config: GenerationConfig) -> Generator[None]:
    """This configuration and nothing else, instead of the checkpoint's defaults.

    ``generate`` fills what a config leaves out from the model's own, so the model's own has to
    stand aside.
    """
    own = hf.generation_config
    hf.generation_config = config
    try:
        yield
    finally:
        hf.generation_config = own


def _stop_ids(hf: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer, by the model's configuration, else by its tokenizer."""
    config = getattr(hf, "generation_config", None)
    stops = getattr(config, "eos_token_id", None)
    if stops is None:
        stops = getattr(tokenizer, "eos_token_id", None)
    if stops is None:
        return set()
    return {int(stops)} if isinstance(stops, int) else {int(s) for s in stops}


def _spelled_on(row: TokenRow, response: Array, spoken: Array, tokenizer: Any) -> Speller | None:
    """What prompt and answer spell together; in a conversation the answer is the assistant's."""
    spelling = row.spelling
    if spelling is None:
        return None

    def whole() -> Spelling:
        before = spelling()
        ids = [int(i) for i in response]
        text, offsets = offsets_of_ids(tokenizer, ids, row.token_ids[-_CONTEXT:].tolist())
        role = 0 if before.no_roles else ROLES.index("assistant")
        return before.extended(text, offsets, np.where(spoken, role, 0))

    return cache(whole)
