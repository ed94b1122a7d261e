"""Every file of ``stores/`` keeps the promises of a store."""

from __future__ import annotations

import pytest

from actscope.stores import STORES, open_run
from actscope.testing.store_contract import StoreContract


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
