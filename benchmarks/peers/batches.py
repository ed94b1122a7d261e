"""Batches as a careful user of any library makes them, and files as such a user writes them.

Texts are sorted by length and cut into batches of 16 rows, padded on the right: so some percent of
padding are computed, and a causal model needs no mask to give the right values at real tokens,
which leaves PyTorch its fastest attention kernel.
Activations go to disk with ``np.save`` as they come, padding included: leaving it out would be a
copy of everything for those bytes. Nothing here is flushed to the disk itself, resumable or
checksummed: that is what a loop of one's own leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROWS = 16


@dataclass(frozen=True)
class Batch:
    """Some texts as one rectangle.

    Attributes:
        ids: Token ids ``[rows, longest]``.
        texts: Which text each row is.
        lengths: How many tokens each row has.
    """

    ids: torch.Tensor
    texts: list[int]
    lengths: list[int]

    def last(self, hidden: torch.Tensor) -> torch.Tensor:
        """The rows ``[rows, d]`` of the last real tokens, copied, so that the rest can go."""
        return hidden[torch.arange(len(self.lengths)), torch.tensor(self.lengths) - 1]


def sorted_batches(texts: list[list[int]], rows: int = ROWS) -> Iterator[Batch]:
    """The texts by length, the longest first: what does not fit into memory shows at once."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        lengths = [len(texts[i]) for i in chosen]
        ids = torch.zeros(len(chosen), max(lengths), dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, : lengths[row]] = torch.tensor(texts[i])
        yield Batch(ids, chosen, lengths)


class Files:
    """A folder of ``.npy`` files: one per batch and layer, or one table of a row per text."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.index: list[dict[str, Any]] = []
        out.mkdir(parents=True)

    def batch(self, batch: Batch, parts: dict[str, torch.Tensor]) -> None:
        """Save what one batch gave, each part as a file of its own."""
        number = len(self.index)
        for name, values in parts.items():
            np.save(self.out / f"{number:05d}.{name}.npy", values.numpy())
        self.index.append({"texts": batch.texts, "lengths": batch.lengths})

    def close(self) -> None:
        """Write which row of which file is which text."""
        (self.out / "batches.json").write_text(json.dumps(self.index))


def text_rows(out: Path, text: int, name: str) -> np.ndarray:
    """What ``Files`` holds of one text: ``[length, ...]``, or ``[heads, length, length]``."""
    for number, batch in enumerate(json.loads((out / "batches.json").read_text())):
        if text in batch["texts"]:
            row = batch["texts"].index(text)
            length = batch["lengths"][row]
            values = np.load(out / f"{number:05d}.{name}.npy", mmap_mode="r")[row]
            return values[:, :length, :length] if name == "pattern" else values[:length]
    raise KeyError(f"text {text} is in no batch of {out}")
