"""From an attention operation to the rows and blocks that were asked for, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from actscope.backends.hf.attention_call import AttentionCall, pattern_block, tolerance
from actscope.core.activations import Batch
from actscope.core.arrays import Array
from actscope.core.errors import SiteUnavailableError
from actscope.core.sites import Site

__all__ = [
    "Checked",
    "QueryBlock",
    "chosen_columns",
    "head_rows",
    "pattern_rows",
    "query_blocks",
    "refuse_unverified",
]


@dataclass(frozen=True)
class QueryBlock:
    """The queries and keys of one example.

    Attributes:
        example: Its place in the batch.
        queries: ``[q]`` int64, positions of the kept tokens in the padded row.
        keys: All of its tokens in the padded row.
    """

    example: int
    queries: torch.Tensor
    keys: slice


@dataclass(frozen=True)
class Checked:
    """What tells whether a pattern is right.

    Attributes:
        errors: ``[2]``: the largest relative error of ``pattern @ value``, and the largest weight
            on padding; on the device, so that taking it does not wait.
        allowed: The largest error that rounding explains.
    """

    errors: torch.Tensor
    allowed: float


def query_blocks(
    batch: Batch,
    spans: Sequence[Array | None],
    keep: Sequence[int],
    width: int,
    device: torch.device,
) -> tuple[QueryBlock, ...]:
    """Where the queries and keys of the kept examples lie in the padded batch."""
    blocks: list[QueryBlock] = []
    for index in keep:
        length, positions = len(batch.rows[index]), spans[index]
        assert positions is not None
        shift = width - length if batch.padding_side == "left" else 0
        queries = torch.as_tensor(positions + shift, dtype=torch.int64, device=device)
        blocks.append(QueryBlock(index, queries, slice(shift, shift + length)))
    return tuple(blocks)


def chosen_columns(tensor: torch.Tensor, parts: Sequence[int], size: int) -> torch.Tensor:
    """Some of the heads or neurons, each ``size`` wide, that lie side by side in ``[..., d]``."""
    split = tensor.unflatten(-1, (-1, size))
    index = torch.tensor(parts, dtype=torch.int64, device=tensor.device)
    return split.index_select(-2, index).flatten(-2)


def head_rows(call: AttentionCall, part: str, heads: Sequence[int]) -> torch.Tensor:
    """Queries, keys, values or what each head adds up from the values, heads side by side.

    Args:
        call: The operation.
        part: ``q``, ``k``, ``v`` or ``z``.
        heads: Which; empty for all.

    Returns:
        ``[n, pos, head * d_head]``.
    """
    z = call.output.transpose(1, 2)
    tensor = {"q": call.query, "k": call.key, "v": call.value, "z": z}[part]
    if heads:
        index = torch.tensor(heads, dtype=torch.int64, device=tensor.device)
        tensor = tensor.index_select(1, index)
    return tensor.transpose(1, 2).flatten(2)


def pattern_rows(
    call: AttentionCall, heads: Sequence[int], blocks: Sequence[QueryBlock]
) -> tuple[torch.Tensor, Checked]:
    """The pattern of some heads, flat: the blocks ``[head, query, key]`` of the examples in order.

    Args:
        call: The operation.
        heads: Which; empty for all.
        blocks: The queries and keys of each example.
    """
    device = call.query.device
    wanted = torch.tensor(list(heads) or range(call.n_heads), dtype=torch.int64, device=device)
    flat: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    for block in blocks:
        made = pattern_block(call, block.example, wanted, block.queries.to(device), block.keys)
        flat.append(made.values.reshape(-1))
        errors.append(torch.stack([made.error, made.outside]))
    worst = torch.stack(errors).amax(0)
    return torch.cat(flat), Checked(worst, tolerance(call.query.dtype))


def refuse_unverified(checks: Mapping[Site, Checked]) -> None:
    """Let no pattern out that does not reproduce what the model computed.

    Raises:
        SiteUnavailableError: naming the site and how far it is off.
    """
    for site, checked in checks.items():
        error, outside = checked.errors.tolist()
        if not (error <= checked.allowed and outside <= checked.allowed):
            raise SiteUnavailableError(
                f"the pattern of {site} is not what the model computed on this batch",
                got=f"pattern @ v off by {error:.2g} of the largest value, weight of {outside:.2g} "
                "on padding",
                expected=f"at most {checked.allowed:g}",
                next_step="capture without the pattern, or wrap a model that was loaded with "
                "attn_implementation='eager'",
            )
