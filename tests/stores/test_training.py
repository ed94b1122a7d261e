"""Rows for training: every row once, in any number of workers, mixed over runs."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored_runs import SITE, run_of
from torch.utils.data import DataLoader

from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.spec import unit_id
from actscope.stores import STORES, Run, open_run, shuffled_rows
from actscope.testing.store_contract import PLAN, SPEC, sample_batch


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
    for beyond in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=f"no row {beyond}: there are {len(rows)}"):
            data[beyond]


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


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_that_live_on_hear_of_the_epoch(runs: list[Run], context: str) -> None:
    data = shuffled_rows(runs, SITE, batch_size=5, seed=3)
    loader = DataLoader(
        data, batch_size=None, num_workers=2, persistent_workers=True,
        multiprocessing_context=context,
    )  # fmt: skip
    passes = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        passes.append(torch.cat(list(loader)))
    assert torch.equal(passes[0], passes[2]) and not torch.equal(passes[0], passes[1])


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
    pooled = run_of(tmp_path / "pooled", pooled=True)
    with pytest.raises(BadInputError, match="one row a token and one row an example"):
        shuffled_rows([runs[0], pooled], SITE)
    with pytest.raises(BadInputError, match="there are none"):
        shuffled_rows([], SITE)
    kept = shuffled_rows(runs, SITE, batch_size=7, drop_last=True)
    assert {len(b) for b in kept} == {7}


def test_rows_pooled_in_different_ways_do_not_mix(tmp_path: Path) -> None:
    def pooled(name: str, **more: Any) -> Run:
        spec = {**SPEC, **more}
        with STORES.get("shards")(tmp_path).open_run(name, spec, {**PLAN, "stop": 4}) as writer:
            writer.append(unit_id(0, 4), sample_batch(0, 4, pooled=True), {})
        return open_run(tmp_path / name)

    mean = pooled("mean", strategy={"name": "mean", "params": {}}, span="all")
    again = pooled("again", strategy={"name": "mean", "params": {}}, span="all", dataset="other")
    last = pooled("last", strategy={"name": "last", "params": {}}, span="all")
    answers = pooled("answers", strategy={"name": "mean", "params": {}}, span="response")
    for other, says in ((last, "last.. over the span all"), (answers, "over the span response")):
        with pytest.raises(BadInputError, match=says):
            shuffled_rows([mean, other], "resid_post", 3)
    assert shuffled_rows([mean, again], "resid_post", 3).n_rows == 8


@pytest.mark.parametrize("store", STORES.names())
def test_forked_workers_open_files_of_their_own(tmp_path: Path, store: str) -> None:
    """Else they would share the place in each with their parent, and read each other's bytes."""
    with STORES.get(store)(tmp_path).open_run("r", SPEC, PLAN) as writer:
        for start, stop in ((0, 4), (4, 8), (8, 10)):
            writer.append(unit_id(start, stop), sample_batch(start, stop, width=600), {})
    run = open_run(tmp_path / "r")
    data = run.dataset("resid_post", 3)  # which has opened the files here
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), run.stack("resid_post", 3))
    files = run._files
    before = dict(files._open)

    def reads(results: Any) -> None:
        found = run.numpy("resid_post", 0).tobytes()
        results.put((found, any(file is before[path] for path, file in files._open.items())))

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=reads, args=(results,))
    child.start()
    found, shared = results.get()
    child.join()
    assert not shared and found == run.numpy("resid_post", 0).tobytes()
    assert all(file is before[path] for path, file in files._open.items())


def test_a_forked_worker_leaves_the_copies_of_its_parent(tmp_path: Path) -> None:
    store = STORES.get("npz")
    with store("memory://forked").open_run("r", SPEC, {**PLAN, "stop": 4}) as writer:
        writer.append(unit_id(0, 4), sample_batch(0, 4), {})
    with open_run("memory://forked/r") as run:
        run.numpy("resid_post", 0)
        (copy,) = run._files._open.values()

        child = multiprocessing.get_context("fork").Process(target=copy._forget)
        child.start()
        child.join()
        assert Path(copy._file._path).is_file()
