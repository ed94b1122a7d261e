"""Seeded sampling: each example draws from its own noise, whoever its batch mates are.

Sampling uses the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): adding independent Gumbel
noise to log-probabilities and taking the largest draws exactly from the distribution. Each example
has its own noise, seeded by the seed and its id, so its text does not depend on its batch mates,
on their order or on which worker ran it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from actscope.core.activations import TokenRow
from actscope.core.protocols import GenerationParams

__all__ = ["samplers"]


def samplers(rows: Sequence[TokenRow], params: GenerationParams) -> LogitsProcessorList:
    """What is done to logits so that the largest one is the draw; nothing where it is greedy."""
    if params.temperature == 0:
        return LogitsProcessorList()
    return LogitsProcessorList([_SeededGumbel([row.noise or row.id for row in rows], params)])


class _SeededGumbel(LogitsProcessor):
    """Temperature, top-k and top-p, then each row's own Gumbel noise; argmax then samples."""

    def __init__(self, ids: Sequence[str], params: GenerationParams) -> None:
        self._generators = [_generator(params.seed, identity) for identity in ids]
        self._temperature = params.temperature
        self._warpers = LogitsProcessorList()
        if params.top_k:
            self._warpers.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            self._warpers.append(TopPLogitsWarper(params.top_p))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        # Less the largest, so that a temperature near 0 is greedy and nothing overflows upwards.
        least = scores.float() - scores.float().amax(-1, keepdim=True)
        warped = self._warpers(input_ids, (least.double() / self._temperature).float())
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
