"""How a model lays out the residual stream, and its rows as ``[n, pos, d]``.

Most models pass ``[n, pos, d]``. Some put tokens first, some carry several streams side by side,
and some put positions that are no tokens around the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["PLAIN", "Layout", "inner_layout", "layout_of"]


@dataclass(frozen=True)
class Layout:
    """From the model's own tensor to ``[n, pos, d]``.

    Attributes:
        axes: Order in which the axes become ``[n, pos, ...]``; empty where they are already.
        before: Positions before the first token.
        streams: How many streams lie side by side in a row; their widths add up to ``d``.
    """

    axes: tuple[int, ...] = ()
    before: int = 0
    streams: int = 1

    @property
    def plain(self) -> bool:
        """Whether the model's own tensor is ``[n, pos, d]`` already."""
        return self == PLAIN

    @property
    def ndim(self) -> int:
        """How many axes the model's own tensor has."""
        return len(self.axes) or (4 if self.streams > 1 else 3)

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as ``[n, pos, d]``, a view where possible."""
        return self.tokens(self.arranged(tensor))

    def tokens(self, arranged: torch.Tensor) -> torch.Tensor:
        """What ``arranged`` returned, without positions that are no tokens."""
        return arranged[:, self.before :] if self.before else arranged

    def arranged(self, tensor: torch.Tensor) -> torch.Tensor:
        """``[n, positions, d]``, with positions that are no tokens."""
        if self.plain:
            return tensor
        ordered = tensor.permute(self.axes) if self.axes else tensor
        return ordered.flatten(2) if ordered.ndim > 3 else ordered

    def restored(self, arranged: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The inverse of ``arranged``, in the shape of ``like``."""
        if self.plain:
            return arranged
        order = self.axes or tuple(range(like.ndim))
        shape = [like.shape[axis] for axis in order]
        back = [order.index(axis) for axis in range(like.ndim)]
        return arranged.reshape(shape).permute(back)

    def __str__(self) -> str:
        said: list[str] = []
        if self.streams > 1:
            said.append(f"{self.streams} streams side by side")
        if self.axes:
            said.append("tokens are not on the second axis")
        if self.before:
            said.append(f"{self.before} positions before the tokens left out")
        return ", ".join(said)


PLAIN = Layout()
"""``[n, pos, d]`` as it is."""


def layout_of(shape: tuple[int, ...], n: int, pos: int) -> Layout | None:
    """How a tensor of this shape can hold ``n`` examples of ``pos`` tokens, or None.

    Positions that are no tokens are taken to stand before the tokens, which has to be checked.
    """
    if len(shape) == 3:
        if shape[0] == n and shape[1] >= pos:
            return Layout(before=shape[1] - pos)
        return Layout(axes=(1, 0, 2)) if shape[:2] == (pos, n) else None
    if len(shape) == 4:
        if shape[:2] == (n, pos):
            return Layout(streams=shape[2])
        if shape[1:3] == (n, pos):
            return Layout(axes=(1, 2, 0, 3), streams=shape[0])
    return None


def inner_layout(shape: tuple[int, ...], n: int, pos: int, block: Layout) -> Layout | None:
    """How a tensor inside a block holds token rows, or None where that is not certain.

    Args:
        shape: Of the tensor.
        n: Examples.
        pos: Tokens of each.
        block: How the block's own stream lies: rows that are no tokens, and axes, are the same.
    """
    if len(shape) == 2:  # examples and tokens on one axis
        return PLAIN if shape[0] == n * pos and not block.axes and not block.before else None
    found = layout_of(shape, n, pos)
    if found is None or found.streams > 1:
        return None
    return found if found == PLAIN or found in (block, Layout(block.axes, block.before)) else None
