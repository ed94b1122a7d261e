"""Find the router of a mixture of experts: the logits that give the weights its experts get.

A router's scores are ``softmax`` or another function of its logits; each token's experts get the
scores of those chosen, often made to sum to one and scaled. Which are chosen need not be the
largest: many families add a bias before choosing. So weights follow from logits if, for every
token, they are the scores of some choice of experts times one number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from actscope.backends.hf.linear import is_affine, is_own_product
from actscope.backends.hf.trace import Call

__all__ = ["Router", "find_router"]

_MOST_EXPERTS = 4096
_MOST_TRIED = 1 << 26  # entries of the largest tensor that is made to try choices


@dataclass(frozen=True)
class Router:
    """Router logits that were found.

    Attributes:
        path: The module that returns them.
        logits: Its output in the probe.
        how: What was checked.
    """

    path: str
    logits: torch.Tensor
    how: str


def find_router(model: nn.Module, calls: dict[str, Call]) -> Router | None:
    """The linear module whose output gives weights that another module of the block is handed."""
    weights = [
        (path, tensor)
        for path, call in calls.items()
        for tensor in call.inputs[1:]
        if tensor.ndim >= 2 and float(tensor.max() - tensor.min()) > 1e-4  # else nothing is shown
    ]
    for path, call in calls.items():
        logits = call.output
        if logits is None or not call.inputs or not 1 < logits.shape[-1] <= _MOST_EXPERTS:
            continue
        n_experts = logits.shape[-1]
        for reader, tensor in weights:
            k = tensor.shape[-1]
            if k > n_experts or tensor.numel() * n_experts != logits.numel() * k:
                continue
            rule = _rule(logits.reshape(-1, n_experts).float(), tensor.reshape(-1, k))
            given = call.inputs[0]
            if rule and (
                is_affine(model, path, given) or is_own_product(model, path, given, logits)
            ):
                how = f"{rule} are the weights that {reader} receives; {path}"
                return Router(path, logits, how)
    return None


def _rule(logits: torch.Tensor, weights: torch.Tensor) -> str:
    """How weights ``[tokens, k]`` follow from logits ``[tokens, experts]``; empty if they do not.

    One constant factor is allowed: some families scale what the experts return.
    """
    k = weights.shape[-1]
    chosen = torch.softmax(logits, -1).topk(k, -1).values
    lit = torch.sigmoid(logits).topk(k, -1).values
    rules = {
        f"the {k} largest of softmax(router)": chosen,
        f"the {k} largest of softmax(router), made to sum to 1,": chosen / chosen.sum(-1, True),
        f"the {k} largest of sigmoid(router)": lit,
        f"the {k} largest of sigmoid(router), made to sum to 1,": lit / lit.sum(-1, True),
    }
    theirs = weights.float().sort(-1, descending=True).values
    allowed = 1e-5 if weights.dtype in (torch.float32, torch.float64) else 2e-2
    for rule, ours in rules.items():
        factor = float((theirs * ours).sum() / ours.pow(2).sum())
        if float((theirs - factor * ours).abs().max()) <= allowed * float(theirs.abs().max()):
            return rule if abs(factor - 1) < 1e-2 else f"{rule} times {factor:.4g}"
    return _some_choice(logits, weights.float(), allowed) if 1 < k < logits.shape[-1] else ""


_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda x: torch.softmax(x, -1),
    "sigmoid": torch.sigmoid,
    "sqrt(softplus)": lambda x: F.softplus(x).sqrt(),
}


def _some_choice(logits: torch.Tensor, weights: torch.Tensor, allowed: float) -> str:
    """Whether each token's weights are the scores of some of the experts, times one number."""
    tokens, k = weights.shape
    if tokens * logits.shape[-1] ** 2 * k > _MOST_TRIED or float(weights.min()) <= 0:
        return ""
    for name, score in _SCORES.items():
        scores = score(logits)
        # Whichever expert got the first weight fixes the number; then all others have to fit.
        scaled = scores[:, None, :] * (weights[:, :1] / scores)[:, :, None]
        gaps = (scaled[:, :, None, :] - weights[:, None, :, None]).abs()
        fits = (gaps <= allowed * weights[:, None, :, None]).any(-1).all(-1)
        if bool(fits.any(-1).all()):
            return f"for every token {k} of the scores {name}(router), times one number,"
    return ""
