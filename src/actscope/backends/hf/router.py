"""Find the router of a mixture of experts: the logits that give the weights its experts get.

A router's scores are ``softmax`` or another function of its logits; each token's experts get the
scores of those chosen, often made to sum to one and scaled. Which are chosen need not be the
largest: many families add a bias before choosing. So weights follow from logits if, for every
token, they are the scores of the experts whose numbers go with them, times one number. Where no
numbers do, any choice of experts counts that chance would not explain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from actscope.backends.hf.linear import is_affine, is_own_product
from actscope.backends.hf.trace import Call

__all__ = ["Experts", "Router", "find_router"]

_MOST_EXPERTS = 4096
_MOST_TRIED = 1 << 26  # entries of the largest tensor that is made to try choices


@dataclass(frozen=True)
class Experts:
    """How a block chooses experts.

    Attributes:
        n_experts: How many there are to choose from.
        top_k: Through how many a token goes.
        largest: Whether these are the ones with the largest router logits; some families add a bias
            before they choose.
    """

    n_experts: int
    top_k: int
    largest: bool


@dataclass(frozen=True)
class Router:
    """Router logits that were found.

    Attributes:
        path: The module that returns them.
        logits: Its output in the probe.
        how: What was checked.
        experts: How experts are chosen by them.
    """

    path: str
    logits: torch.Tensor
    how: str
    experts: Experts


def find_router(model: nn.Module, calls: dict[str, Call]) -> Router | None:
    """The linear module whose output gives weights that another module of the block is handed."""
    weights = [
        (path, tensor, [i for i in call.indices if i.shape == tensor.shape])
        for path, call in calls.items()
        for tensor in call.inputs[1:]
        if tensor.ndim >= 2 and float(tensor.max() - tensor.min()) > 1e-4  # else nothing is shown
    ]
    for path, call in calls.items():
        logits = call.output
        if logits is None or not call.inputs or not 1 < logits.shape[-1] <= _MOST_EXPERTS:
            continue
        n_experts = logits.shape[-1]
        for reader, tensor, numbers in weights:
            k = tensor.shape[-1]
            if k > n_experts or tensor.numel() * n_experts != logits.numel() * k:
                continue
            rows, given_weights = logits.reshape(-1, n_experts).float(), tensor.reshape(-1, k)
            chosen = [i.reshape(-1, k).long() for i in numbers]
            rule = _rule(rows, given_weights, chosen)
            largest = bool(rule)
            rule = rule or _rule_of_choice(rows, given_weights, chosen)
            given = call.inputs[0]
            if rule and (
                is_affine(model, path, given) or is_own_product(model, path, given, logits)
            ):
                how = f"{rule} are the weights that {reader} receives; {path}"
                return Router(path, logits, how, Experts(n_experts, k, largest))
    return None


def _rule(logits: torch.Tensor, weights: torch.Tensor, chosen: list[torch.Tensor]) -> str:
    """How weights ``[tokens, k]`` follow from logits ``[tokens, experts]``; empty if they do not.

    One constant factor is allowed: some families scale what the experts return. Where the block
    hands on the experts' numbers, they have to be those of the largest logits; where it does not,
    the weights have to differ by more than rounding explains.
    """
    k = weights.shape[-1]
    spread = float((weights.max() - weights.min()) / weights.abs().max())
    if chosen and not any(_are_largest(logits, numbers) for numbers in chosen):
        return ""
    if not chosen and weights.dtype not in (torch.float32, torch.float64) and spread < 0.2:
        return ""
    most = torch.softmax(logits, -1).topk(k, -1).values
    lit = torch.sigmoid(logits).topk(k, -1).values
    rules = {
        f"the {k} largest of softmax(router)": most,
        f"the {k} largest of softmax(router), made to sum to 1,": most / most.sum(-1, True),
        f"the {k} largest of sigmoid(router)": lit,
        f"the {k} largest of sigmoid(router), made to sum to 1,": lit / lit.sum(-1, True),
    }
    theirs = weights.float().sort(-1, descending=True).values
    allowed = 1e-5 if weights.dtype in (torch.float32, torch.float64) else 2e-2
    for rule, ours in rules.items():
        factor = float((theirs * ours).sum() / ours.pow(2).sum())
        if float((theirs - factor * ours).abs().max()) <= allowed * float(theirs.abs().max()):
            return rule if abs(factor - 1) < 1e-2 else f"{rule} times {factor:.4g}"
    return ""


_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda x: torch.softmax(x, -1),
    "sigmoid": torch.sigmoid,
    "sqrt(softplus)": lambda x: F.softplus(x).sqrt(),
}


def _are_largest(logits: torch.Tensor, numbers: torch.Tensor) -> bool:
    """Whether these experts' logits are each token's largest; which of equal ones is no matter."""
    if int(numbers.min()) < 0 or int(numbers.max()) >= logits.shape[-1]:
        return False
    theirs = logits.gather(-1, numbers).sort(-1).values
    return torch.equal(theirs, logits.topk(numbers.shape[-1], -1).values.sort(-1).values)


def _rule_of_choice(logits: torch.Tensor, weights: torch.Tensor, chosen: list[torch.Tensor]) -> str:
    """Whether each token's weights are the scores of some experts, times one number.

    Args:
        logits: ``[tokens, experts]``.
        weights: ``[tokens, k]``.
        chosen: ``[tokens, k]`` numbers of the experts, where the block hands them on.
    """
    k, n_experts = weights.shape[-1], logits.shape[-1]
    if not 1 < k < n_experts or float(weights.min()) <= 0:
        return ""
    exact = weights.dtype in (torch.float32, torch.float64)
    weights, allowed = weights.float(), 1e-5 if exact else 2e-2
    for name, score in _SCORES.items():
        scores = score(logits)
        said = f"for every token {k} of the scores {name}(router), times one number,"
        for numbers in chosen:
            if int(numbers.min()) >= 0 and int(numbers.max()) < n_experts:
                ratio = weights / scores.gather(-1, numbers)
                spread = ratio.amax(-1) - ratio.amin(-1)
                if bool((spread <= 2 * allowed * ratio.mean(-1)).all()):
                    return said
        if not chosen and _any_choice(scores, weights, allowed):
            return said
    return ""


def _any_choice(scores: torch.Tensor, weights: torch.Tensor, allowed: float) -> bool:
    """Whether some choice of experts explains every token's weights, and chance does not."""
    (tokens, k), n_experts = weights.shape, scores.shape[-1]
    by_chance = min(n_experts * (2 * n_experts * allowed) ** (k - 1), 1.0) ** tokens
    if by_chance > 1e-9 or tokens * n_experts**2 * k > _MOST_TRIED:
        return False
    # Whichever expert got the first weight fixes the number; then all others have to fit.
    scaled = scores[:, None, :] * (weights[:, :1] / scores)[:, :, None]
    gaps = (scaled[:, :, None, :] - weights[:, None, :, None]).abs()
    fits = (gaps <= allowed * weights[:, None, :, None]).any(-1).all(-1)
    return bool(fits.any(-1).all())
