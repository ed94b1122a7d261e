"""Find what attention and the MLP add to the residual stream by solving the sum.

Among the tensors returned inside a block, the ones whose sum is ``resid_post - resid_pre`` are the
contributions. Which one is attention is decided by behaviour: attention mixes positions. Where no
sum closes, nothing is guessed: the sites are unavailable, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actscope.backends.hf.blocks import Blocks, differ, same
from actscope.backends.hf.trace import Trace

__all__ = ["Contributions", "solve_blocks"]

ULPS = 4  # of the row's largest |resid|, where the sum is not bitwise


@dataclass(frozen=True)
class Contributions:
    """The residual algebra of one block.

    Attributes:
        attn: Path of the module that returns what attention adds, before ``scale``.
        mlp: Path of the module that returns what the MLP adds, before ``scale``.
        mid: Path of a module whose first input is the residual after attention; None in a parallel
            block, which has no such tensor.
        scale: Multiplies both before they are added.
        how: What was checked, in words.
        reason: Why nothing closes; empty where it does.
    """

    attn: str = ""
    mlp: str = ""
    mid: str | None = None
    scale: float = 1.0
    how: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Candidate:
    path: str
    order: int
    added: torch.Tensor  # scaled, in the residual's shape


def solve_blocks(
    trace: Trace, altered: Trace, blocks: Blocks, position: int, scale: float
) -> list[Contributions]:
    """Solve every block.

    Args:
        trace: The probe.
        altered: The same probe with one other token at ``position``.
        blocks: The chain.
        position: Which token was altered.
        scale: The family's residual scale.
    """
    solved = [_solve(trace, blocks, layer, scale) for layer in range(len(blocks.paths))]
    return _tell_apart(solved, trace, altered, blocks, position)


def _solve(trace: Trace, blocks: Blocks, layer: int, scale: float) -> Contributions:
    pre, post = blocks.pre(layer), blocks.post(layer)
    candidates = _candidates(trace, blocks.paths[layer], pre, scale)
    return (
        _sequential(trace, blocks.paths[layer], candidates, pre, post, scale)
        or _parallel(candidates, pre, post, scale)
        or Contributions(
            reason=f"no two tensors inside the block add up to resid_post - resid_pre "
            f"({len(candidates)} tried), as in blocks that normalise after adding; module paths "
            "still work as sites"
        )
    )


def _candidates(trace: Trace, block: str, pre: torch.Tensor, scale: float) -> list[_Candidate]:
    """Residual-shaped outputs inside a block, in order; of equal tensors the outermost module."""
    found: list[_Candidate] = []
    inside = [p for p in trace.calls if p.startswith(block + ".")]
    for path in sorted(inside, key=lambda p: (p.count("."), trace.calls[p][0].order)):
        call = trace.single(path)
        if call is None or call.output is None or call.output.numel() != pre.numel():
            continue
        if call.output.shape[-1] != pre.shape[-1] or call.output.dtype != pre.dtype:
            continue
        added = call.output.reshape(pre.shape)
        added = added if scale == 1.0 else added * scale
        if not any(torch.equal(added, other.added) for other in found):
            found.append(_Candidate(path, call.order, added))
    return sorted(found, key=lambda c: c.order)


def _sequential(
    trace: Trace,
    block: str,
    candidates: list[_Candidate],
    pre: torch.Tensor,
    post: torch.Tensor,
    scale: float,
) -> Contributions | None:
    """Attention first, then an MLP that reads pre + attention: some module receives that sum."""
    for attn in candidates:
        mid = pre + attn.added
        reader = _receiver(trace, block, mid, attn.order)
        if reader is None:
            continue
        for mlp in candidates:
            if mlp.order > attn.order and same(mid + mlp.added, post):
                how = "(resid_pre + attn_out) + mlp_out == resid_post, bitwise"
                return Contributions(attn.path, mlp.path, reader, scale, how)
    return None


def _receiver(trace: Trace, block: str, tensor: torch.Tensor, after: int) -> str | None:
    """The first module of the block whose first input is bitwise ``tensor``."""
    hits: list[tuple[int, str]] = []
    for path, calls in trace.calls.items():
        if path.startswith(block + ".") and len(calls) == 1 and calls[0].order > after:
            inputs = calls[0].inputs
            if inputs and same(inputs[0], tensor):
                hits.append((calls[0].order, path))
    return min(hits)[1] if hits else None


def _parallel(
    candidates: list[_Candidate], pre: torch.Tensor, post: torch.Tensor, scale: float
) -> Contributions | None:
    """Both read the same input; the sum may have been taken in any order."""
    for exact in (True, False):
        closing = [
            (a, b, how)
            for i, a in enumerate(candidates)
            for b in candidates[i + 1 :]
            if (how := _closes(pre, a.added, b.added, post, exact))
        ]
        if len(closing) == 1:
            a, b, how = closing[0]
            return Contributions(a.path, b.path, None, scale, how)
        if closing and exact:  # equal sums of different tensors: keep the outermost pair
            a, b, how = min(closing, key=lambda c: c[0].path.count(".") + c[1].path.count("."))
            return Contributions(a.path, b.path, None, scale, how)
    return None


def _closes(
    pre: torch.Tensor, a: torch.Tensor, b: torch.Tensor, post: torch.Tensor, exact: bool
) -> str:
    if exact:
        orders = ((pre + a) + b, (pre + b) + a, (a + b) + pre)
        if any(same(total, post) for total in orders):
            return "resid_pre + attn_out + mlp_out == resid_post, bitwise"
        return ""
    size = torch.maximum(pre.abs(), post.abs()).amax(-1, keepdim=True).float()
    allowed = ULPS * torch.finfo(pre.dtype).eps * size
    # A part as small as the tolerance could be left out unnoticed: it proves nothing.
    if min(float(x.float().abs().amax()) for x in (a, b)) < 20 * float(allowed.max()):
        return ""
    error = ((pre.float() + a.float() + b.float()) - post.float()).abs()
    if bool((error <= allowed).all()):
        return f"resid_pre + attn_out + mlp_out == resid_post within {ULPS} ulp"
    return ""


def _tell_apart(
    solved: list[Contributions], trace: Trace, altered: Trace, blocks: Blocks, position: int
) -> list[Contributions]:
    """Check which contribution mixes positions; that one is attention.

    In block 0 the input of every token but the altered one is unchanged, so a contribution that
    changes at another token must have looked at it. In a sequential block the MLP reads attention's
    output, so both change. Later blocks follow block 0's module names.
    """
    if solved[0].reason:
        return solved
    first = solved[0]
    mixes = [_mixes(trace, altered, path, position) for path in (first.attn, first.mlp)]
    if first.mid is not None:
        if mixes[0]:
            return solved
        reason = "the first contribution of a block does not mix positions: it is no attention"
        return [Contributions(reason=reason) for _ in solved]
    if mixes[0] == mixes[1]:
        reason = "two parallel contributions close the sum, but which one is attention is undecided"
        return [Contributions(reason=reason) if s.mid is None else s for s in solved]
    attn_name = (first.attn if mixes[0] else first.mlp)[len(blocks.paths[0]) :]
    named: list[Contributions] = []
    for layer, s in enumerate(solved):
        expected = blocks.paths[layer] + attn_name
        if s.reason or s.mid is not None or s.attn == expected:
            named.append(s)
        elif s.mlp == expected:
            named.append(Contributions(s.mlp, s.attn, None, s.scale, s.how))
        else:
            named.append(Contributions(reason="the block's parts differ from those of block 0"))
    return named


def _mixes(trace: Trace, altered: Trace, path: str, position: int) -> bool:
    a, b = trace.single(path), altered.single(path)
    if a is None or b is None or a.output is None or b.output is None:
        return False
    before, after = (x.reshape(-1, x.shape[-1]) for x in (a.output, b.output))
    others = torch.ones(len(before), dtype=torch.bool, device=before.device)
    others[position] = False
    return bool(differ(before[others], after[others]).any())
