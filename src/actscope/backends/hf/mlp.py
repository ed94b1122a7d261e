"""Find what happens inside the MLP of a block, and prove it by values.

    last_linear(mlp_post) == mlp_out          finds mlp_post (before a post-norm where there is one)
    act(mlp_pre) [* up] == mlp_post           finds mlp_pre
    top k of softmax(router) == the weights   finds router, in a mixture of experts

A mixture of experts has no ``mlp_pre`` and no ``mlp_post``: every token goes through other neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from actscope.backends.hf.blocks import Blocks, same
from actscope.backends.hf.contributions import Contributions
from actscope.backends.hf.linear import is_affine, is_elementwise
from actscope.backends.hf.probe import Probe
from actscope.backends.hf.trace import Call, Trace

__all__ = ["Inside", "LayerMlp", "solve_mlp"]

_MOST_EXPERTS = 4096


@dataclass(frozen=True)
class Inside:
    """A tensor that was found.

    Attributes:
        path: The module it is read at.
        side: ``input`` (the first) or ``output``.
        tensor: Its value in the probe.
        how: What was checked.
    """

    path: str
    side: str
    tensor: torch.Tensor
    how: str


@dataclass
class LayerMlp:
    """The MLP of one block: site name -> what was found, or why it is unavailable."""

    found: dict[str, Inside] = field(default_factory=dict[str, Inside])
    refused: dict[str, str] = field(default_factory=dict[str, str])


def solve_mlp(
    probe: Probe, blocks: Blocks, contributions: Sequence[Contributions]
) -> list[LayerMlp]:
    """Find and verify the inside of every block's MLP.

    Args:
        probe: The probe.
        blocks: The chain.
        contributions: What each block adds to the residual.
    """
    return [
        _solve_layer(probe.model, _inside(probe.plain, path), contributions[layer], probe.plain)
        for layer, path in enumerate(blocks.paths)
    ]


def _inside(trace: Trace, block: str) -> dict[str, Call]:
    """The modules of a block that ran once, in order."""
    calls = {p: c[0] for p, c in trace.calls.items() if p.startswith(block + ".") and len(c) == 1}
    return dict(sorted(calls.items(), key=lambda item: item[1].order))


def _solve_layer(
    model: nn.Module, calls: dict[str, Call], contribution: Contributions, trace: Trace
) -> LayerMlp:
    solved = LayerMlp()
    router = _router(model, calls)
    if router is None:
        solved.refused["router"] = (
            "no mixture of experts: no linear module's output, cut to its largest entries, gives "
            "weights that the block uses"
        )
    else:
        solved.found["router"] = router
    post = _last_linear(model, calls, contribution, trace) if contribution.mlp else None
    if post is None:
        reason = _no_mlp(contribution) or "no linear module returns what the MLP adds"
        if router is not None:
            reason = "a mixture of experts: every token goes through neurons of other experts"
        solved.refused |= {"mlp_pre": reason, "mlp_post": reason}
        return solved
    solved.found["mlp_post"] = post
    pre = _activation(model, calls, post.tensor)
    if pre is None:
        solved.refused["mlp_pre"] = (
            "no module's output, alone or times another tensor of the block, is mlp_post: the "
            "activation function is no module, or something else lies between"
        )
    else:
        solved.found["mlp_pre"] = pre
    return solved


def _no_mlp(contribution: Contributions) -> str:
    return contribution.missing.get("mlp_out", "") or contribution.reason


def _last_linear(
    model: nn.Module, calls: dict[str, Call], contribution: Contributions, trace: Trace
) -> Inside | None:
    """The linear module that returns what the MLP adds, or what a post-norm makes that of."""
    target = trace.single(contribution.mlp)
    if target is None or target.output is None:
        return None
    for path, call in calls.items():
        if call.output is None or not call.inputs or same(call.inputs[0], call.output):
            continue
        added = same(call.output, target.output)
        normed = bool(target.inputs) and same(call.output, target.inputs[0])
        if (added or normed) and is_affine(model, path, call.inputs[0]):
            what = "linear(mlp_post) == mlp_out" if added else "norm(linear(mlp_post)) == mlp_out"
            return Inside(path, "input", call.inputs[0], f"{what}, bitwise; {path}")
    return None


def _activation(model: nn.Module, calls: dict[str, Call], post: torch.Tensor) -> Inside | None:
    """The elementwise module whose output is ``post``, alone or times an ``up`` of the block."""
    for path, call in calls.items():
        out = call.output
        if out is None or not call.inputs or call.inputs[0].shape != out.shape:
            continue
        if out.numel() != post.numel() or out.shape[-1] != post.shape[-1]:
            continue
        received = call.inputs[0]
        if is_affine(model, path, received) or not is_elementwise(model, path, received):
            continue
        if same(out, post):
            return Inside(path, "input", call.inputs[0], f"act(mlp_pre) == mlp_post; {path}")
        for name, up in _ups(calls, out):
            if same(out * up, post):
                how = f"act(mlp_pre) * up == mlp_post, bitwise; {path}, up: {name}"
                return Inside(path, "input", call.inputs[0], how)
    return None


def _ups(calls: dict[str, Call], like: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Outputs of a shape, and halves of outputs twice as wide."""
    width = like.shape[-1]
    for path, call in calls.items():
        out = call.output
        if out is None or out.dtype != like.dtype:
            continue
        if out.numel() == like.numel() and out.shape[-1] == width:
            yield path, out.reshape(like.shape)
        elif out.numel() == 2 * like.numel() and out.shape[-1] == 2 * width:
            first, second = out.chunk(2, dim=-1)
            yield f"first half of {path}", first.reshape(like.shape)
            yield f"second half of {path}", second.reshape(like.shape)
            yield f"even entries of {path}", out[..., 0::2].reshape(like.shape)
            yield f"odd entries of {path}", out[..., 1::2].reshape(like.shape)


def _router(model: nn.Module, calls: dict[str, Call]) -> Inside | None:
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
            if rule and is_affine(model, path, call.inputs[0]):
                how = f"{rule} are the weights that {reader} receives; {path}"
                return Inside(path, "output", logits, how)
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
    return ""
