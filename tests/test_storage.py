"""Small arrays go into NPZ, HDF5 and native runs and come back."""

from __future__ import annotations

import numpy as np
import pytest

import actscope
from actscope import ActivationBatch, HDF5Storage, NPZStorage, ShardStorage, Site
from actscope.core.activations import ExampleRecord


def small_batch() -> ActivationBatch:
    """Two examples of two and one tokens, one layer of width 3."""
    return ActivationBatch(
        arrays={Site("resid_post", 0): np.arange(9, dtype=np.float32).reshape(3, 3)},
        offsets=np.array([0, 2, 3]),
        positions=np.array([0, 1, 0], dtype=np.int32),
        examples=(ExampleRecord("a", 0, 2, 2, "hello"), ExampleRecord("b", 1, 1, 1, "hi")),
        token_ids=np.array([5, 6, 7]),
        token_offsets=np.array([0, 2, 3]),
        phase=np.zeros(3, dtype=np.uint8),
    )


@pytest.mark.parametrize("storage_class", [NPZStorage, HDF5Storage, ShardStorage])
def test_round_trip(storage_class, tmp_path):
    writer = storage_class(tmp_path).open_run("first")
    writer.append("batch-0", small_batch(), {"note": "small"})
    writer.close()
    run = actscope.open_run(tmp_path / "first")
    assert run.get("resid_post", 0, example=0).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert run.get("resid_post", 0, example=1).tolist() == [[6, 7, 8]]
    assert run.tokens(0).tolist() == [5, 6]
    assert [record.text for record in run.examples] == ["hello", "hi"]
    assert run.verify().ok


def test_an_npz_unit_is_plain_numpy(tmp_path):
    NPZStorage(tmp_path).open_run("first").append("batch-0", small_batch(), {})
    (file,) = (tmp_path / "first" / "units").iterdir()
    with np.load(file, allow_pickle=False) as data:
        assert data["blocks.0.resid_post"].tolist() == np.arange(9).reshape(3, 3).tolist()
        assert data["tokens.ids"].tolist() == [5, 6, 7]


def test_an_hdf5_unit_is_plain_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the hdf5 extra is not installed")
    HDF5Storage(tmp_path).open_run("first").append("batch-0", small_batch(), {})
    (file,) = (tmp_path / "first" / "units").iterdir()
    with h5py.File(file, "r") as data:
        assert data["blocks.0.resid_post"][...].tolist() == np.arange(9).reshape(3, 3).tolist()


def test_a_shard_is_plain_safetensors(tmp_path):
    from safetensors.numpy import load_file

    ShardStorage(tmp_path).open_run("first").append("batch-0", small_batch(), {})
    (file,) = (tmp_path / "first" / "shards").iterdir()
    data = load_file(file)
    assert data["blocks.0.resid_post"].tolist() == np.arange(9).reshape(3, 3).tolist()
