"""Find what happens inside the MLP of a block, and prove it by values.

    last_linear(mlp_post) == mlp_out          finds mlp_post (before a post-norm where there is one)
    act(mlp_pre) [* up] == mlp_post           finds mlp_pre (before a norm where there is one)

A block that normalises or rescales its stream adds no ``mlp_out``; there the MLP is the one part of
the block that ends in a linear map of such neurons and looks at one token at a time. A mixture of
experts has no ``mlp_pre`` and no ``mlp_post``: every token goes through other neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn

from actscope.backends.hf.blocks import Blocks, same
from actscope.backends.hf.contributions import Contributions
from actscope.backends.hf.layout import PLAIN, Layout, inner_layout
from actscope.backends.hf.linear import is_affine, is_elementwise, is_row_wise
from actscope.backends.hf.probe import PROBE_TOKENS, Probe
from actscope.backends.hf.router import Experts, find_router
from actscope.backends.hf.sums import is_multiple
from actscope.backends.hf.trace import Call, Trace

__all__ = ["Inside", "LayerMlp", "solve_mlp"]


@dataclass(frozen=True)
class Inside:
    """A tensor that was found.

    Attributes:
        path: The module it is read at.
        side: ``input`` (the first) or ``output``.
        tensor: Its value in the probe.
        how: What was checked.
        turn: Which call of the module, where it runs several times in one pass.
        layout: How the module's own tensor becomes ``[n, pos, d]``.
    """

    path: str
    side: str
    tensor: torch.Tensor
    how: str
    turn: int = 0
    layout: Layout = PLAIN


@dataclass
class LayerMlp:
    """The MLP of one block.

    Attributes:
        found: Site name -> what was found.
        refused: Site name -> why it is unavailable.
        experts: How experts are chosen, in a mixture of experts whose router was found.
    """

    found: dict[str, Inside] = field(default_factory=dict[str, Inside])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    experts: Experts | None = None


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
        _placed(_solve_layer(probe, blocks, contributions[layer], layer), blocks, layer)
        for layer in range(len(blocks.paths))
    ]


def _placed(solved: LayerMlp, blocks: Blocks, layer: int) -> LayerMlp:
    """The same with the call and the layout of each tensor; without those whose rows are unsure."""
    for kind, inside in tuple(solved.found.items()):
        shape = tuple(inside.tensor.shape)
        layout = inner_layout(shape, 1, PROBE_TOKENS, blocks.layout)
        if layout is None:
            del solved.found[kind]
            solved.refused[kind] = (
                f"{inside.path} holds it as {list(shape)} for a probe of {PROBE_TOKENS} tokens: "
                "which row is which token's cannot be told"
            )
        else:
            solved.found[kind] = replace(inside, turn=blocks.turns[layer], layout=layout)
    return solved


def _inside(trace: Trace, blocks: Blocks, layer: int) -> dict[str, Call]:
    """The modules of a block that ran once in it, in order."""
    block, turn, times = blocks.paths[layer], blocks.turns[layer], blocks.times(layer)
    calls: dict[str, Call] = {}
    for path in trace.calls:
        call = trace.turn(path, turn, times) if path.startswith(block + ".") else None
        if call is not None:
            calls[path] = call
    return dict(sorted(calls.items(), key=lambda item: item[1].order))


def _solve_layer(probe: Probe, blocks: Blocks, contribution: Contributions, layer: int) -> LayerMlp:
    model, solved = probe.model, LayerMlp()
    calls = _inside(probe.plain, blocks, layer)
    router = find_router(model, calls)
    if router is None:
        solved.refused["router"] = (
            "no mixture of experts: no linear module's output, cut to its largest entries, gives "
            "weights that the block uses"
        )
    else:
        solved.found["router"] = Inside(router.path, "output", router.logits, router.how)
        solved.experts = router.experts
    post = _last_linear(model, calls, contribution) if contribution.mlp else None
    if post is None and router is None and not contribution.added:
        post = _only_mlp(model, calls, blocks.paths[layer])
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
            "no activation function that is a module, and no usual one, makes mlp_post of a tensor "
            "of the block, alone or times another one: something else lies between"
        )
    else:
        solved.found["mlp_pre"] = pre
    return solved


def _no_mlp(contribution: Contributions) -> str:
    return contribution.missing.get("mlp_out", "") or contribution.reason


def _last_linear(
    model: nn.Module, calls: dict[str, Call], contribution: Contributions
) -> Inside | None:
    """The linear module that returns what the MLP adds, or what a post-norm makes that of.

    One constant may lie between.
    """
    target = calls.get(contribution.mlp)
    if target is None or target.output is None:
        return None
    for path, call in calls.items():
        if call.output is None or not call.inputs or same(call.inputs[0], call.output):
            continue
        within = path == contribution.mlp or path.startswith(contribution.mlp + ".")
        if call.output.numel() != target.output.numel():
            continue
        added = same(call.output, target.output)
        times = (
            not added
            and within
            and is_multiple(call.output.reshape(target.output.shape), target.output)
        )
        normed = (
            bool(target.inputs)
            and same(call.output, target.inputs[0])
            and is_row_wise(model, contribution.mlp, target.inputs[0])
        )
        if (added or times or normed) and _is_linear(model, path, call):
            what = "norm(linear(mlp_post)) == mlp_out" if normed else "linear(mlp_post) == mlp_out"
            what = "linear(mlp_post) times a constant == mlp_out" if times else f"{what}, bitwise"
            return Inside(path, "input", call.inputs[0], f"{what}; {path}")
    return None


def _is_linear(model: nn.Module, path: str, call: Call) -> bool:
    """Whether a module is one linear map of each token's row."""
    given = call.inputs[0]
    return is_affine(model, path, given) and is_row_wise(model, path, given)


def _only_mlp(model: nn.Module, calls: dict[str, Call], block: str) -> Inside | None:
    """The one part of a block that ends in a linear map of activated neurons, token by token.

    It may add its own input to that and normalise the sum.
    """
    found: list[Inside] = []
    for path, part in calls.items():
        if "." in path.removeprefix(block + ".") or part.output is None or not part.inputs:
            continue
        inner = {p: c for p, c in calls.items() if p.startswith(path + ".")}
        for name, call in inner.items():
            if not call.inputs or call.output is None or not _ends(part, call, inner):
                continue
            if not _is_linear(model, name, call) or not is_row_wise(model, path, part.inputs[0]):
                continue
            if _activation(model, inner, call.inputs[0]) is not None:
                what = f"the linear map at the end of {path}, which looks at one token at a time"
                found.append(Inside(name, "input", call.inputs[0], f"{what}; {name}"))
                break
    return found[0] if len(found) == 1 else None


def _ends(part: Call, last: Call, inner: dict[str, Call]) -> bool:
    """Whether a part returns what a linear map in it returned, or a norm of that and its input."""
    assert part.output is not None and last.output is not None
    if last.output.shape != part.output.shape:
        return False
    if same(last.output, part.output):
        return True
    total = last.output + part.inputs[0] if part.inputs[0].shape == last.output.shape else None
    return total is not None and any(
        call.inputs and same(call.inputs[0], total) and call.output is not None
        and same(call.output, part.output)
        for call in inner.values()
    )  # fmt: skip


_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "squared relu": lambda x: torch.relu(x).square(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""Activation functions that a model may call without a module around them."""


def _activation(model: nn.Module, calls: dict[str, Call], post: torch.Tensor) -> Inside | None:
    """What is activated: ``act`` of it is ``post``, alone or times an ``up`` of the block.

    A norm may lie between that and ``post``.
    """
    normed = [
        call.inputs[0]
        for path, call in calls.items()
        if call.output is not None and call.inputs and same(call.output, post)
        and call.inputs[0].shape == post.shape and not is_affine(model, path, call.inputs[0])
    ]  # fmt: skip
    for target, name in [
        (post, "mlp_post"),
        *((x, "what a norm makes mlp_post of") for x in normed),
    ]:
        found = _by_module(model, calls, target, name) or _by_function(model, calls, target, name)
        if found is not None:
            return found
    return None


def _by_module(
    model: nn.Module, calls: dict[str, Call], post: torch.Tensor, name: str
) -> Inside | None:
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
            return Inside(path, "input", received, f"act(mlp_pre) == {name}; {path}")
        for up_name, up in _ups(calls, out):
            if same((out * up).to(post.dtype), post):
                how = f"act(mlp_pre) * up == {name}, bitwise; {path}, up: {up_name}"
                return Inside(path, "input", received, how)
    return None


def _by_function(
    model: nn.Module, calls: dict[str, Call], post: torch.Tensor, name: str
) -> Inside | None:
    """The linear module whose output, through a usual activation function, makes ``post``."""
    for path, call in calls.items():
        out = call.output
        if out is None or not call.inputs or out.dtype != post.dtype:
            continue
        if out.numel() != post.numel() or out.shape[-1] != post.shape[-1]:
            continue
        if not _is_linear(model, path, call):
            continue
        for act, function in _FUNCTIONS.items():
            acted = function(out)
            if same(acted, out):
                continue  # a relu of what is positive already does nothing
            if _rounds_to(acted, post):
                return Inside(path, "output", out, f"{act}(mlp_pre) == {name}; {path}")
            for up_name, up in _ups(calls, out):
                if up_name != path and _rounds_to(acted * up, post):
                    how = f"{act}(mlp_pre) * up == {name}; {path}, up: {up_name}"
                    return Inside(path, "output", out, how)
    return None


def _rounds_to(made: torch.Tensor, post: torch.Tensor) -> bool:
    """Equal, in float32 up to the rounding of a formula that is written another way."""
    if post.dtype in (torch.bfloat16, torch.float16):
        return same(made, post)
    gap = (made.reshape(-1) - post.reshape(-1)).abs()
    return bool((gap <= 64 * torch.finfo(post.dtype).eps * post.abs().amax()).all())


def _ups(calls: dict[str, Call], like: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Outputs of a shape, and halves of outputs twice as wide."""
    width = like.shape[-1]
    for path, call in calls.items():
        out = call.output
        if out is None:
            continue
        out = out.to(like.dtype)
        if out.numel() == like.numel() and out.shape[-1] == width:
            yield path, out.reshape(like.shape)
        elif out.numel() == 2 * like.numel() and out.shape[-1] == 2 * width:
            first, second = out.chunk(2, dim=-1)
            yield f"first half of {path}", first.reshape(like.shape)
            yield f"second half of {path}", second.reshape(like.shape)
            yield f"even entries of {path}", out[..., 0::2].reshape(like.shape)
            yield f"odd entries of {path}", out[..., 1::2].reshape(like.shape)
