"""Plain PyTorch hooks with an early stop: baukit's ``TraceDict(model, layers, stop=True)``.

baukit is not on PyPI. Its ``TraceDict`` registers a forward hook on each named module, keeps the
output, optionally through ``edit_output`` or a copy, and with ``stop=True`` raises an exception in
the last hook that the ``with`` block swallows; this is the same in as few steps.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peers.batches import Batch
from peers.plain import attention, blocks, eager_attention, load_model
from peers.tasks import Keep, Peer


class _StopForward(Exception):  # noqa: N818 - baukit's word
    """Enough has run."""


class Hooks(Peer):
    """Forward hooks on the blocks of a plain model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks = blocks(model)
        self.n_layers = len(self.blocks)

    def residuals(self, batch: Batch, layers: list[int], keep: Keep) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}

        def hook(layer: int) -> Any:
            def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[layer] = keep(output[0] if isinstance(output, tuple) else output)
                if layer == layers[-1]:
                    raise _StopForward

            return take

        self._run(batch, {self.blocks[layer]: hook(layer) for layer in layers})
        return [found[layer] for layer in layers]

    def attending(self) -> AbstractContextManager[Any]:
        return eager_attention(self.model)

    def patterns(self, batch: Batch, layer: int, heads: list[int]) -> torch.Tensor:
        found: list[torch.Tensor] = []

        def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found.append(output[1][:, heads])
            raise _StopForward

        self._run(batch, {attention(self.blocks[layer]): take})
        return found[0]

    def _run(self, batch: Batch, hooks: dict[nn.Module, Any]) -> None:
        with ExitStack() as stack:
            for module, hook in hooks.items():
                stack.callback(module.register_forward_hook(hook).remove)
            with suppress(_StopForward):
                self.model(batch.ids, use_cache=False)


def load(folder: Path) -> Peer:
    return Hooks(load_model(folder))
