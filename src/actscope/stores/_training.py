"""Rows of runs for training: a torch dataset to index, and one that shuffles as it reads.

Imported only where torch is wanted: stores themselves work without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from actscope.core.arrays import Array, to_torch
from actscope.core.errors import BadInputError
from actscope.core.sites import Site
from actscope.core.text import Span
from actscope.stores._slice import RunSlice

__all__ = ["RowDataset", "ShuffledRows"]

_BLOCK_ROWS = 4096


class RowDataset(Dataset[torch.Tensor]):
    """The rows of one site, ``dataset[i]`` of ``[d]``, in the order of ``stack``.

    It holds places, not rows, and opens the run anew in each worker of a ``DataLoader``.

    Args:
        part: Examples and tokens.
        site: Of the run.
    """

    def __init__(self, part: RunSlice, site: Site) -> None:
        if site.layout == "blocks":
            raise BadInputError(f"{site} has no rows: read a block at a time with get")
        self.site = site
        self.offsets = part.offsets
        self._path = part.run.path
        self._places = part.places
        self._kept = part.kept
        self._part: RunSlice | None = part

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, index: int) -> torch.Tensor:
        """One row."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Several rows, example by example: what a ``DataLoader`` asks for."""
        n = len(self)
        wanted = np.array([i + n if i < 0 else i for i in indices], dtype=np.int64)
        beyond = np.flatnonzero((wanted < 0) | (wanted >= n))
        if len(beyond):
            raise IndexError(f"there is no row {indices[beyond[0]]}: there are {n:,}")
        examples = np.searchsorted(self.offsets, wanted, side="right") - 1
        found: dict[int, torch.Tensor] = {}
        for example in np.unique(examples).tolist():
            rows = self._opened.flat(self.site, example)
            for at in np.flatnonzero(examples == example).tolist():
                row = rows[int(wanted[at] - self.offsets[example])]
                found[at] = to_torch(np.array(row))
        return [found[at] for at in range(len(wanted))]

    def example_of(self, index: int) -> int:
        """Which example of the part a row is of."""
        return int(np.searchsorted(self.offsets, index, side="right")) - 1

    @property
    def _opened(self) -> RunSlice:
        if self._part is None:
            from actscope.stores._reader import open_run

            self._part = RunSlice(open_run(self._path), self._places, self._kept)
        return self._part

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_part": None}


class ShuffledRows(IterableDataset[torch.Tensor]):
    """Rows of one site of several runs as shuffled batches, for training on what is on disk.

    Blocks of neighbouring rows are read in a random order into a buffer, batches are drawn from it
    at random, and it is filled up again when half is left. Every row comes once in an epoch, with
    any number of ``DataLoader`` workers (use ``batch_size=None`` there: these are batches).

    Args:
        parts: Parts of runs, each with the site.
        name: A site's name or key.
        layer: The layer of a name.
        batch_size: Rows in a batch; the last ones of a worker may be fewer.
        buffer_rows: Rows mixed with each other.
        seed: With the epoch it decides the order.
        drop_last: Leave out a last batch that is smaller.
    """

    def __init__(
        self,
        parts: Sequence[RunSlice],
        name: str | Site,
        layer: int | None = None,
        *,
        batch_size: int = 1024,
        buffer_rows: int = 1 << 17,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1 or buffer_rows < batch_size:
            raise BadInputError(
                "the buffer must hold a batch", got=f"{buffer_rows} rows for {batch_size}"
            )
        self.parts = list(parts)
        self.sites = [part.run.site(name, layer) for part in self.parts]
        self._check_widths()
        self._check_pooling()
        self.batch_size = batch_size
        self.buffer_rows = buffer_rows
        self.seed = seed
        self.drop_last = drop_last
        # In shared memory: workers that live on from one epoch to the next see it too
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._blocks = [
            (at, start, stop) for at, part in enumerate(self.parts) for start, stop in _blocks(part)
        ]
        self._described = [(p.run.path, p.places, p.kept) for p in self.parts]

    @property
    def epoch(self) -> int:
        """The pass whose order comes next."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Another order for another pass, in persistent workers as well."""
        self._epoch.fill_(epoch)

    @property
    def n_rows(self) -> int:
        """Rows of all runs."""
        return sum(int(part.offsets[-1]) for part in self.parts)

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self._blocks))
        rng = np.random.default_rng([self.seed, self.epoch, number])
        buffer: Array | None = None
        for index in order[number::of].tolist():
            rows = self._read(self._blocks[index])
            buffer = rows if buffer is None else np.concatenate([buffer, rows])
            if len(buffer) >= self.buffer_rows:
                buffer = buffer[rng.permutation(len(buffer))]
                least = max(self.buffer_rows // 2, self.batch_size)
                while len(buffer) - self.batch_size >= least:
                    yield to_torch(buffer[-self.batch_size :].copy())
                    buffer = buffer[: -self.batch_size]
        if buffer is None:
            return
        buffer = buffer[rng.permutation(len(buffer))]
        for start in range(0, len(buffer), self.batch_size):
            batch = buffer[start : start + self.batch_size]
            if len(batch) == self.batch_size or not self.drop_last:
                yield to_torch(batch.copy())

    def _read(self, block: tuple[int, int, int]) -> Array:
        at, start, stop = block
        part, site = self.parts[at], self.sites[at]
        return np.concatenate([part.flat(site, example) for example in range(start, stop)])

    def _check_widths(self) -> None:
        widths = {part.run.width(site) for part, site in zip(self.parts, self.sites, strict=True)}
        if len(widths) != 1:
            raise BadInputError(
                "the runs hold rows of different widths, or there are none", got=sorted(widths)
            )

    def _check_pooling(self) -> None:
        """A row of a token and the mean of many, or means of other tokens, do not belong together.

        Rows of tokens do, whatever the spans they were captured with.
        """
        kinds = dict.fromkeys(map(_pooling, self.parts, self.sites))
        if len(kinds) > 1:
            raise BadInputError(
                "the runs hold rows of different kinds",
                got=" and ".join(kinds),
                next_step="mix runs captured with one --pool, and where it pools with one --span",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "parts": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from actscope.stores._reader import open_run

        self.__dict__ = state
        described: list[tuple[Path, tuple[int, ...], Span]] = self._described
        self.parts = [RunSlice(open_run(p), places, span) for p, places, span in described]


def _pooling(part: RunSlice, site: Site) -> str:
    """What a row of a site is, in words."""
    if not part.run.is_pooled(site):
        return "one row a token"
    strategy = dict((part.run.spec or {}).get("strategy") or {})
    if strategy.get("name", "none") == "none":
        return "one row an example"
    params = ", ".join(f"{k}={v}" for k, v in dict(strategy.get("params") or {}).items())
    span = (part.run.spec or {}).get("span", "all")
    return f"{strategy['name']}({params}) over the span {span}"


def _blocks(part: RunSlice) -> Iterator[tuple[int, int]]:
    """Neighbouring examples of about ``_BLOCK_ROWS`` rows."""
    offsets: npt.NDArray[np.int64] = part.offsets
    start = 0
    while start < len(part):
        stop = int(np.searchsorted(offsets, offsets[start] + _BLOCK_ROWS, side="right")) - 1
        stop = min(max(stop, start + 1), len(part))
        if offsets[stop] > offsets[start]:
            yield start, stop
        start = stop
