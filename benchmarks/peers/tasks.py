"""What every contender is asked to do, and the loops that most of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from peers.batches import Batch, Files, sorted_batches

TASKS = ("pattern", "last_token_layer", "last_token_all_layers", "all_layers")
"""In the order in which they run in a process: those that need most memory come last."""

HEADS = (0, 1)

Keep = Callable[[torch.Tensor], torch.Tensor]
Texts = list[list[int]]


def middle(n_layers: int) -> int:
    """The layer of the tasks that want one: half of the blocks have run when it is done."""
    return n_layers // 2 - 1


class NotOfferedError(Exception):
    """What a library does not offer, in its own terms: the reason stands in the table."""


class Contender(Protocol):
    """Something that captures; everything it captures is on disk when a task returns."""

    n_layers: int
    last_is_normed: bool
    """Whether what it calls the last layer has been through the final norm, as in Hugging Face."""

    def all_layers(self, texts: Texts, out: Path) -> None:
        """Every token of every block."""
        ...

    def last_token_all_layers(self, texts: Texts, out: Path) -> None:
        """The last token of every block."""
        ...

    def last_token_layer(self, texts: Texts, layer: int, out: Path) -> None:
        """The last token of one block."""
        ...

    def pattern(self, texts: Texts, layer: int, heads: tuple[int, ...], out: Path) -> None:
        """The attention probabilities of some heads of one block."""
        ...


class Peer(ABC):
    """A contender that hands back tensors of one batch; the loops and the files are these."""

    n_layers: int
    last_is_normed = False

    @abstractmethod
    def residuals(self, batch: Batch, layers: list[int], keep: Keep) -> list[torch.Tensor]:
        """``keep`` of what leaves each of the blocks, ascending, at the least cost it can be had.

        Args:
            batch: The tokens.
            layers: The blocks, ascending; nothing after the last of them is wanted.
            keep: Takes what is wanted out of ``[rows, longest, d_model]``, as early as possible.
        """

    def attending(self) -> AbstractContextManager[Any]:
        """Entered once for all batches whose patterns are asked for."""
        return nullcontext()

    @abstractmethod
    def patterns(self, batch: Batch, layer: int, heads: list[int]) -> torch.Tensor:
        """``[rows, heads, longest, longest]``."""

    @torch.inference_mode()
    def all_layers(self, texts: Texts, out: Path) -> None:
        layers, files = list(range(self.n_layers)), Files(out)
        for batch in sorted_batches(texts):
            found = self.residuals(batch, layers, _everything)
            files.batch(batch, {str(i): x for i, x in zip(layers, found, strict=True)})
        files.close()

    @torch.inference_mode()
    def last_token_all_layers(self, texts: Texts, out: Path) -> None:
        self._last_tokens(texts, list(range(self.n_layers)), out)

    @torch.inference_mode()
    def last_token_layer(self, texts: Texts, layer: int, out: Path) -> None:
        self._last_tokens(texts, [layer], out)

    @torch.inference_mode()
    def pattern(self, texts: Texts, layer: int, heads: tuple[int, ...], out: Path) -> None:
        files = Files(out)
        with self.attending():
            for batch in sorted_batches(texts):
                files.batch(batch, {"pattern": self.patterns(batch, layer, list(heads))})
        files.close()

    def _last_tokens(self, texts: Texts, layers: list[int], out: Path) -> None:
        tables: list[np.ndarray | None] = [None] * len(layers)
        for batch in sorted_batches(texts):
            for i, rows in enumerate(self.residuals(batch, layers, batch.last)):
                if tables[i] is None:
                    tables[i] = np.empty((len(texts), rows.shape[-1]), np.float32)
                tables[i][batch.texts] = rows.numpy()
        out.mkdir(parents=True)
        for layer, table in zip(layers, tables, strict=True):
            np.save(out / f"{layer}.npy", table)


def _everything(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
