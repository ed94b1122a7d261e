"""Continue prompts with the model's own ``generate``, seeded per example.

Sampling uses the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): adding independent Gumbel
noise to log-probabilities and taking the largest draws exactly from the distribution. Each example
has its own noise, seeded by the seed and its id, so its text does not depend on its batch mates,
on their order or on which worker ran it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from actscope.backends.hf.placement import input_device
from actscope.backends.hf.resolve import probe_ids
from actscope.backends.hf.trace import evaluation_mode
from actscope.core.activations import Batch, TokenRow
from actscope.core.errors import BadInputError
from actscope.core.protocols import Generated, GenerationParams
from actscope.core.text import RESPONSE

__all__ = ["check_params", "generate_rows", "generates_alike_in_batches", "stop_ids"]


def check_params(params: GenerationParams) -> None:
    """Refuse parameters that mean nothing.

    Raises:
        BadInputError: naming the parameter.
    """
    if params.max_new_tokens < 1:
        raise BadInputError("max_new_tokens must be at least 1", got=params.max_new_tokens)
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise BadInputError(
            "temperature must be a finite number and not negative",
            got=params.temperature,
            expected="0 for greedy",
        )
    if not 0 < params.top_p <= 1:
        raise BadInputError("top_p must lie in (0, 1]", got=params.top_p)
    if params.top_k < 0:
        raise BadInputError("top_k must not be negative", got=params.top_k, expected="0 for all")


class _SeededGumbel(LogitsProcessor):
    """Temperature, top-k and top-p, then each row's own Gumbel noise; argmax then samples."""

    def __init__(self, ids: Sequence[str], params: GenerationParams) -> None:
        self._generators = [_generator(params.seed, identity) for identity in ids]
        self._warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
        if params.top_k:
            self._warpers.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            self._warpers.append(TopPLogitsWarper(params.top_p))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        warped = self._warpers(input_ids, scores.float())
        noise = torch.stack(
            [
                torch.rand(scores.shape[-1], generator=g, dtype=torch.float64)
                for g in self._generators
            ]
        )
        gumbel = -torch.log(-torch.log(noise.clamp_min(1e-300)))
        return torch.log_softmax(warped, dim=-1) + gumbel.to(warped.device, warped.dtype)


def _generator(seed: int, identity: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}\0{identity}".encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def generate_rows(
    hf: Any, tokenizer: Any, rows: Sequence[TokenRow], params: GenerationParams, pad_id: int
) -> list[Generated]:
    """Continue each row; the rows run as one left-padded batch.

    Only these parameters and the model's stop tokens count: a repetition penalty or minimum length
    that a checkpoint carries in its generation_config would change texts unrecorded.

    Returns:
        Prompt and response tokens of each example. A stop token that the model wrote is the last
        response token; what a longer batch mate made after it is not there.
    """
    check_params(params)
    processors = LogitsProcessorList()
    if params.temperature > 0:
        processors.append(_SeededGumbel([row.id for row in rows], params))
    stops = stop_ids(hf, tokenizer)
    output = _generate(
        hf, rows, pad_id, stops=stops, steps=params.max_new_tokens, processors=processors
    )
    new = output.sequences[:, -len(output.logits) :].cpu().numpy()
    return [_finish(row, new[i], stops, tokenizer) for i, row in enumerate(rows)]


def generates_alike_in_batches(hf: Any, pad_id: int) -> bool:
    """Whether a row has the same logits alone and beside a longer one, over three greedy steps.

    Models that carry a recurrent state may let padding leak into it, or mix the states of a batch.
    """
    ids = probe_ids(hf)[0].tolist()
    rows = [TokenRow.from_ids("long", ids), TokenRow.from_ids("short", ids[:3])]
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
    stops: Collection[int] = (),
    processors: LogitsProcessorList | None = None,
) -> Any:
    ids, mask = Batch(tuple(rows), padding_side="left").padded(pad_id)
    device = input_device(hf)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=steps,
        pad_token_id=pad_id,
        eos_token_id=sorted(stops) or None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad(), evaluation_mode(hf), _generation_config(hf, config):
        return hf.generate(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask.astype(np.int64)).to(device),
            generation_config=config,
            logits_processor=processors or LogitsProcessorList(),
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


def stop_ids(hf: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer, by the model's configuration, else by its tokenizer."""
    config = getattr(hf, "generation_config", None)
    stops = getattr(config, "eos_token_id", None)
    if stops is None:
        stops = getattr(tokenizer, "eos_token_id", None)
    if stops is None:
        return set()
    return {int(stops)} if isinstance(stops, int) else {int(s) for s in stops}


def _finish(row: TokenRow, new: Any, stops: set[int], tokenizer: Any) -> Generated:
    end = next((i + 1 for i, token in enumerate(new) if int(token) in stops), len(new))
    response = np.asarray(new[:end], dtype=np.int64)
    marks = np.asarray(getattr(tokenizer, "all_special_ids", None) or [], dtype=np.int64)
    full = TokenRow(
        row.id,
        np.concatenate([row.token_ids, response]),
        np.concatenate([row.phase, np.full(end, RESPONSE, np.uint8)]),
        np.concatenate([row.special, np.isin(response, marks)]),
    )
    text = tokenizer.decode(response, skip_special_tokens=True) if tokenizer is not None else ""
    return Generated(full, text)
