"""Rows for training: every row once, in any number of workers, mixed over runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_runs import SITE, run_of
from torch.utils.data import DataLoader

from actscope.core.errors import BadInputError, UnknownNameError
from actscope.stores import Run, shuffled_rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return [run_of(tmp_path_factory.mktemp(f"training{i}"), seed=i) for i in range(2)]


def test_rows_are_those_of_stack(runs: list[Run]) -> None:
    part = runs[0].where("category == 'refusal'").span("prompt")
    data = part.dataset("resid_post", 1)
    rows = part.stack(SITE)
    assert len(data) == len(rows) > 5
    assert all(torch.equal(data[i], rows[i]) for i in range(len(rows)))
    assert torch.equal(data[-1], rows[-1])
    chosen = [5, 0, 5, 3]
    assert torch.equal(torch.stack(data.__getitems__(chosen)), rows[chosen])
    assert [data.example_of(i) for i in range(len(rows))] == np.repeat(
        range(len(part)), np.diff(part.offsets)
    ).tolist()
    with pytest.raises(IndexError):
        data[len(rows)]


@pytest.mark.parametrize("workers", [0, 2])
def test_with_a_data_loader(runs: list[Run], workers: int) -> None:
    data = runs[0].dataset(SITE)
    loader = DataLoader(
        data, batch_size=7, shuffle=True, num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    found = torch.cat(list(loader))
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, runs[0].stack(SITE).tolist()))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("buffer_rows", [8, 1000])
def test_every_row_comes_once(runs: list[Run], workers: int, buffer_rows: int, monkeypatch) -> None:
    monkeypatch.setattr("actscope.stores._training._BLOCK_ROWS", 6)
    data = shuffled_rows(runs, "resid_post", 1, batch_size=5, buffer_rows=buffer_rows, seed=3)
    loader = DataLoader(data, batch_size=None, num_workers=workers)
    wanted = sorted(map(tuple, torch.cat([r.stack(SITE) for r in runs]).tolist()))
    orders = []
    for epoch in (0, 0, 1):
        data.set_epoch(epoch)
        batches = list(loader)
        assert max(len(b) for b in batches) == 5
        found = torch.cat(batches)
        assert sorted(map(tuple, found.tolist())) == wanted
        assert data.n_rows == len(found)
        orders.append(found)
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_rows_of_different_runs_are_mixed(runs: list[Run]) -> None:
    data = shuffled_rows(runs, SITE, batch_size=20, buffer_rows=1000)
    first = {tuple(row) for row in runs[0].stack(SITE).tolist()}
    shares = [sum(tuple(row) in first for row in b.tolist()) / len(b) for b in data]
    assert all(0.1 < share < 0.9 for share in shares)


def test_it_travels_to_workers_without_rows(runs: list[Run]) -> None:
    for data in (runs[0].dataset(SITE), shuffled_rows(runs, SITE, batch_size=4)):
        assert len(pickle.dumps(data)) < 4000
        again = pickle.loads(pickle.dumps(data))
        assert torch.equal(next(iter(again)), next(iter(data)))


def test_bad_input(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        runs[0].dataset("resid_post", 9)
    with pytest.raises(BadInputError, match="must hold a batch"):
        shuffled_rows(runs, SITE, batch_size=64, buffer_rows=32)
    with pytest.raises(BadInputError, match="there are none"):
        shuffled_rows([], SITE)
    kept = shuffled_rows(runs, SITE, batch_size=7, drop_last=True)
    assert {len(b) for b in kept} == {7}
