"""What the runs of ``writer_process`` must hold, whatever happened to their writers."""

from __future__ import annotations

import numpy as np

from actscope.core.errors import ActscopeError
from actscope.core.spec import unit_id
from actscope.stores import open_run
from actscope.testing.store_contract import SITES, sample_batch

UNITS = [unit_id(at, at + 4) for at in range(0, 40, 4)]


def shards(path):
    """Name -> bytes of every data file that a commit record names."""
    run = open_run(path)
    return {u.commit.path: (run.path / u.commit.path).read_bytes() for u in run.stored_units}


def check_after_kill(folder, printed):
    """Readers see whole units only, and every unit said to be committed."""
    path = folder / "r"
    if not (path / "run.json").exists():
        assert not printed
        return
    run = open_run(path)
    assert set(printed) <= set(run.units)
    assert run.verify().ok
    for unit, stored in zip(run.units, run.stored_units, strict=True):
        first = int(unit[:9])
        expected = sample_batch(first, first + 4, width=64)
        for site in SITES:
            assert np.array_equal(stored.read(str(site)), expected.arrays[site])
    run.close()


def check_resumed(start, folder, store, whole, workers=1, options=()):
    """Writers that go on end where an uninterrupted one ends."""
    started = [start(store, folder, *options) for _ in range(workers)]
    for writer in started:
        code, _, err = writer.finish()
        assert code == 0, err
    run = open_run(folder / "r")
    assert run.complete and list(run.units) == UNITS and run.n_examples == 40
    assert run.verify().ok
    if store == "hdf5":  # the library's own bytes are not ours to promise; the values are
        expected = sample_batch(0, 40, width=64)
        assert all(np.array_equal(run.numpy(site), expected.arrays[site]) for site in SITES)
    else:
        assert shards(folder / "r") == whole[store]
    run.close()


def wrong_numbers(path, whole):
    """Whether any read gives other values than a batch that was written, without an error."""
    try:
        run = open_run(path)
    except ActscopeError:
        return False
    for site in SITES:
        try:
            found = run.numpy(site)
        except ActscopeError:
            continue
        if not np.array_equal(found, whole.arrays[site]):
            return True
    for i in range(10):
        try:
            if run.examples[i] != whole.examples[i] or run.tokens(i).tolist() != list(
                whole.tokens(i)
            ):
                return True
        except ActscopeError:
            continue
    return False
