"""Python's own ``pickle`` reads our pickles, our reader reads Python's, and runs nothing."""

from __future__ import annotations

import contextlib
import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.core.spec import unit_id
from actscope.stores import PickleStorage
from actscope.stores._plain_pickle import (
    PlainPickleError,
    read_plain_pickle,
    walk_arrays,
    write_plain_pickle,
)
from actscope.testing.store_contract import SITES, sample_batch

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


class NoClass(pickle.Unpickler):
    def find_class(self, module, name):
        raise AssertionError(f"{module}.{name}")


def read(data):
    return read_plain_pickle(memoryview(data))


def test_pickle_reads_a_unit_without_any_class(tmp_path):
    writer = PickleStorage(tmp_path).open_run("r")
    batch = sample_batch(0, 4)
    writer.append(unit_id(0, 4), batch, {})
    with next((writer.path / "units").iterdir()).open("rb") as file:
        data = NoClass(file).load()
    for site in SITES:
        entry = data["tensors"][str(site)]
        array = np.frombuffer(entry["data"], entry["dtype"]).reshape(entry["shape"])
        assert np.array_equal(array, batch.arrays[site])


@given(PLAIN, st.integers(2, 5))
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
    data = pickle.dumps(value, protocol)
    assert read(data) == pickle.loads(data) == value


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "f2", "i8", "u1", "?"])
def test_arrays_of_numpy(dtype, protocol):
    arrays = {
        "a": (np.arange(6) - 2).astype(dtype).reshape(2, 3),
        "deep": {"b": np.asfortranarray(np.eye(3)), "empty": np.zeros((0, 4), "f4")},
    }
    found = dict(walk_arrays(read(pickle.dumps(arrays, protocol))))
    assert found.keys() == {"a", "deep.b", "deep.empty"}
    for name, array in (("a", arrays["a"]), ("deep.b", np.eye(3))):
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    assert found["deep.empty"].shape == (0, 4)


def test_a_numpy_scalar():
    assert read(pickle.dumps({"loss": np.float32(0.5)}))["loss"] == 0.5


def test_bfloat16_is_kept(tmp_path):
    import ml_dtypes

    array = np.arange(4).astype(ml_dtypes.bfloat16)
    file = io.BytesIO()
    write_plain_pickle(file, {"x": array}, {})
    entry = pickle.loads(file.getvalue())["tensors"]["x"]
    assert entry["dtype"] == "bfloat16" and entry["data"] == array.tobytes()


@given(st.binary(max_size=200))
def test_noise_is_refused_or_plain(data):
    """Whatever the bytes are, there is an answer or a PlainPickleError, nothing else."""
    with contextlib.suppress(PlainPickleError):
        read(b"\x80\x04" + data)


@given(st.data())
def test_a_cut_or_changed_pickle_is_refused_or_plain(data):
    whole = pickle.dumps({"a": np.arange(9.0), "b": [1, "x", b"y", {"c": None}]}, 4)
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    if changed:
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PlainPickleError):
        read(bytes(changed))
