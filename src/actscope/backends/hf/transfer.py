"""Memory that batches pass through on their way to the CPU, used again and again.

On the CPU a hook fills a buffer and that is all. On an accelerator the buffer is copied into pinned
memory by a stream of its own, while the next batch is computed: one copy a batch, of the selected
rows and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from actscope.core.protocols import AHEAD

__all__ = ["Transfer"]

Key = tuple[int, torch.dtype]


@dataclass
class _Memory:
    """Flat tensors, one for each kind of buffer, as large as the largest so far."""

    device: torch.device
    pinned: bool
    flat: dict[Key, torch.Tensor] = field(default_factory=dict[Key, torch.Tensor])

    def take(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = torch.Size(shape).numel()
        if key not in self.flat or self.flat[key].numel() < size:
            self.flat.pop(key, None)  # let go of the smaller one first
            self.flat[key] = torch.empty(
                size, dtype=dtype, device=self.device, pin_memory=self.pinned
            )
        return self.flat[key][:size].view(shape)


class Transfer:
    """Buffers of the batches of one session, ``AHEAD`` sets in turn.

    Args:
        device: Where the model computes.
        staged: Whether buffers are copied to host memory of their own; None does so wherever the
            device is not the CPU.
    """

    def __init__(self, device: torch.device, staged: bool | None = None) -> None:
        self._staged = device.type != "cpu" if staged is None else staged
        self._cuda = device.type == "cuda"
        host = torch.device("cpu")
        self._there = [_Memory(device, False) for _ in range(AHEAD)]
        self._here = [_Memory(host, self._cuda) for _ in range(AHEAD)]
        self._stream: Any = torch.cuda.Stream(device) if self._cuda else None
        self._turn = 0
        self.bytes_copied = 0

    def next(self) -> int:
        """The set of the next batch; what the set held before is overwritten."""
        self._turn = (self._turn + 1) % AHEAD
        return self._turn

    def buffer(
        self, turn: int, place: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """``shape`` values on the device, uninitialised.

        Args:
            turn: From ``next``.
            place: Which of the buffers of that turn.
            shape: Its shape.
            dtype: Its type.
        """
        return self._there[turn].take((place, dtype), shape, dtype)

    def to_host(self, turn: int, buffers: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        """Begin to copy filled buffers; what is returned waits until they are on the CPU."""
        if not self._staged:
            return lambda: buffers
        host = [
            self._here[turn].take((place, b.dtype), tuple(b.shape), b.dtype)
            for place, b in enumerate(buffers)
        ]
        self.bytes_copied += sum(b.nbytes for b in buffers)
        if self._stream is None:
            for target, source in zip(host, buffers, strict=True):
                target.copy_(source)
            return lambda: host
        self._stream.wait_stream(torch.cuda.current_stream(buffers[0].device))
        with torch.cuda.stream(self._stream):
            for target, source in zip(host, buffers, strict=True):
                target.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)

        def wait() -> list[torch.Tensor]:
            done.synchronize()
            return host

        return wait
