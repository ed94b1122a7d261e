"""Memory that batches pass through on their way to the CPU, used again and again.

On the CPU a hook fills a buffer and that is all. On an accelerator the buffer is copied into pinned
memory by a stream of its own, while the next batch is computed: one copy a batch, of the selected
rows and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch

from actscope.core.errors import BadInputError
from actscope.core.protocols import AHEAD

__all__ = ["BufferSet", "Transfer", "placed"]

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


def placed(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device.

    On CUDA by pinned memory: from any other a copy waits for all passes that were begun before.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class BufferSet:
    """The buffers of one batch at a time, on the device and, where those are staged, on the host.

    Args:
        device: Where the model computes.
        staged: Whether buffers are copied to host memory of their own.
        stream: Of the copies, on CUDA.
    """

    def __init__(self, device: torch.device, staged: bool, stream: Any) -> None:
        self._device = device
        self._staged = staged
        self._stream = stream
        self._there = _Memory(device, False)
        self._here = _Memory(torch.device("cpu"), stream is not None)
        self.under_way = False

    def buffer(self, place: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """``shape`` values on the device, uninitialised.

        Args:
            place: Which of the batch's buffers.
            shape: Its shape.
            dtype: Its type.
        """
        return self._there.take((place, dtype), shape, dtype)

    def to_host(self, buffers: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        """Begin to copy filled buffers; what is returned waits until they are on the CPU."""
        arrived = self._copy(buffers) if self._staged else lambda: buffers
        self.under_way = True

        def wait() -> list[torch.Tensor]:
            found = arrived()
            self.under_way = False
            return found

        return wait

    def _copy(self, buffers: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        host = [
            self._here.take((place, b.dtype), tuple(b.shape), b.dtype)
            for place, b in enumerate(buffers)
        ]
        if self._stream is None:
            for target, source in zip(host, buffers, strict=True):
                target.copy_(source)
            return lambda: host
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for target, source in zip(host, buffers, strict=True):
                target.copy_(source, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # waits without keeping a core busy
            done.record(self._stream)

        def wait() -> list[torch.Tensor]:
            done.synchronize()
            return host

        return wait


class Transfer:
    """Buffers of the batches of one session, ``AHEAD`` sets in turn.

    A set's turn is over only when its pass has succeeded: a pass that fails half way leaves the
    other sets alone, whoever reads them later.

    Args:
        device: Where the model computes.
        staged: Whether buffers are copied to host memory of their own; None does so wherever the
            device is not the CPU.
    """

    def __init__(self, device: torch.device, staged: bool | None = None) -> None:
        staged = device.type != "cpu" if staged is None else staged
        stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._staged = staged
        self._sets = deque(BufferSet(device, staged, stream) for _ in range(AHEAD))
        self.bytes_copied = 0

    def next(self) -> BufferSet:
        """The set of the next batch; what it held before is overwritten.

        Raises:
            BadInputError: that batch was not taken yet.
        """
        if self._sets[0].under_way:
            raise BadInputError(
                f"{AHEAD} passes are under way, and there is memory for no more",
                next_step="call what the oldest `begin` returned, then begin the next",
            )
        return self._sets[0]

    def to_host(self, buffers: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        """Begin to copy the filled buffers of ``next``, whose turn is then over."""
        arrived = self._sets[0].to_host(buffers)
        self._sets.rotate(-1)
        if self._staged:
            self.bytes_copied += sum(b.nbytes for b in buffers)
        return arrived
