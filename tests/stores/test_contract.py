"""Every file of ``stores/`` keeps the promises of a store."""

from __future__ import annotations

import numpy as np
import pytest

from actscope.core.spec import unit_id
from actscope.stores import STORES, _stored_unit, open_run
from actscope.testing.store_contract import SITES, StoreContract, sample_batch


@pytest.fixture(params=STORES.names())
def store(request):
    return STORES.get(request.param)


class TestStores(StoreContract):
    @pytest.fixture
    def storage(self, store, tmp_path):
        return store(tmp_path / "runs")

    def read(self, path):
        return open_run(path)


def test_the_stores_are_the_files_of_the_room():
    assert STORES.names() == ["hdf5", "npy_layers", "npz", "pickle", "shards"]
    for name in STORES.names():
        assert STORES.get(name).unit_format.name == name


def test_more_units_than_files_may_be_open_are_read_side_by_side(store, tmp_path, monkeypatch):
    monkeypatch.setattr(_stored_unit, "_OPEN_FILES", 2)
    with store(tmp_path).open_run("run", None, None) as writer:
        for at in range(0, 120, 4):
            writer.append(unit_id(at, at + 4), sample_batch(at, at + 4), {})
    whole = sample_batch(0, 120)
    with open_run(tmp_path / "run") as run:
        for _ in range(3):
            assert all(np.array_equal(run.numpy(site), whole.arrays[site]) for site in SITES)
            assert np.array_equal(run.offsets, whole.offsets)
