"""Our streamed safetensors against the reference library, both ways; and malformed files."""

from __future__ import annotations

import io
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores import _safetensors
from actscope.stores._safetensors import SafetensorsFile, write_safetensors

DTYPES = ["float32", "float16", "float64", "int64", "int32", "uint8", "bool", "bfloat16"]


def written(tensors, header=None):
    file = io.BytesIO()
    sums = write_safetensors(file, tensors, header or {})
    return file.getvalue(), sums


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    real = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    size = int(np.prod(shape)) * np.dtype(real).itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    if dtype == "bool":
        raw = raw & 1
    return raw.view(real).reshape(shape)


tables = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda s: s.isprintable()), arrays()
)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_the_reference_library_reads_what_we_write(tensors):
    data, _ = written(tensors, {"unit": "a"})
    found = dict(safetensors.deserialize(data))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert bytes(found[name]["data"]) == array.tobytes()
        assert tuple(found[name]["shape"]) == array.shape


@settings(max_examples=60, deadline=None)
@given(tables)
def test_equal_tensors_make_the_reference_librarys_very_bytes(tensors):
    assert written(tensors, {"k": "v"})[0] == safetensors.numpy.save(tensors, {"k": "v"})


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tables)
def test_we_read_what_the_reference_library_writes(tmp_path, tensors):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, {"k": "v"}))
    file = SafetensorsFile(path)
    assert file.header == {"k": "v"} and set(file.names()) == set(tensors)
    for name, array in tensors.items():
        found = file.read(name)
        assert found.dtype == array.dtype and found.shape == array.shape
        assert found.tobytes() == array.tobytes() and not found.flags.writeable
    file.close()


def test_torch_reads_our_bfloat16():
    import torch

    values = np.array([-0.0, np.inf, 1.5, 3e-39]).astype(ml_dtypes.bfloat16)
    found = safetensors.torch.load(written({"x": values})[0])["x"]
    assert found.dtype == torch.bfloat16
    assert found.view(torch.int16).numpy().tobytes() == values.tobytes()


def test_checksums_come_from_the_same_pass():
    tensors = {"a": np.arange(5.0), "b": np.arange(3, dtype=np.uint8)}
    data, sums = written(tensors)
    assert sums.file == xxhash.xxh3_128_hexdigest(data)
    assert sums.tensors["a"] == xxhash.xxh3_128_hexdigest(tensors["a"].tobytes())


def test_every_tensor_is_aligned_and_any_layout_is_stored_in_c_order(tmp_path):
    tensors = {
        "bytes": np.arange(3, dtype=np.uint8),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "step": np.arange(10, dtype=np.float32)[::3],
    }
    path = tmp_path / "x"
    path.write_bytes(written(tensors)[0])
    file = SafetensorsFile(path)
    for name, array in tensors.items():
        found = file.read(name)
        assert np.array_equal(found, array) and found.flags.aligned and found.flags.c_contiguous


def test_a_dtype_the_format_lacks_is_refused():
    with pytest.raises(BadInputError, match="complex128"):
        written({"x": np.zeros(2, dtype=np.complex128)})


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD = {
    "empty": b"",
    "short": b"\1\0",
    "header longer than the file": raw({}, length=10**6),
    "header larger than any": raw({}, length=2**63),
    "no json": raw(b"not json"),
    "no object": raw(b"[]"),
    "leading space": raw(b" {}"),
    "deep": raw(b'{"a":' + b"[" * 100_000),
    "not utf-8": raw(b'{"\xff": 1}'),
    "unknown dtype": raw({"x": entry(dtype="F8")}, bytes(8)),
    "shape and size disagree": raw({"x": entry(shape=(3,))}, bytes(8)),
    "beyond the end": raw({"x": entry()}, bytes(4)),
    "data left over": raw({"x": entry()}, bytes(9)),
    "hole": raw({"x": entry(), "y": entry(offsets=(12, 20))}, bytes(20)),
    "overlap": raw({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)),
    "negative": raw({"x": entry(shape=(-2,), offsets=(8, 0))}, bytes(8)),
    "fraction": raw({"x": entry(shape=(2.0,))}, bytes(8)),
    "boolean": raw({"x": entry(shape=(True,), offsets=(0, 4))}, bytes(4)),
    "huge": raw({"x": entry(shape=(2**62, 2**62), offsets=(0, 8))}, bytes(8)),
    "no shape": raw({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "no entry": raw({"x": 3}),
    "metadata is no object": raw({"__metadata__": 3}),
    "twice": raw(b'{"x":%s,"x":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_refused(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(BAD[name])
    with pytest.raises(DamagedRunError, match=r"x\.safetensors"):
        SafetensorsFile(path)


def test_many_rows_are_mapped_and_still_the_callers_own(tmp_path, monkeypatch):
    monkeypatch.setattr(_safetensors, "_COPY_BELOW", 1)
    rows = np.arange(5000, dtype=np.float32).reshape(1000, 5)
    path = tmp_path / "x"
    path.write_bytes(written({"x": rows, "y": np.ones(3)})[0])
    file = SafetensorsFile(path)
    mine = file.private("x", 900, 1000)
    assert np.array_equal(mine, rows[900:])
    mine[:] = 0
    assert np.array_equal(file.read("x"), rows) and np.array_equal(file.private("x", 0, 1000), rows)
    assert np.array_equal(SafetensorsFile(path).read("x"), rows)
    assert _safetensors._PrivateMap.alive == 1
    del mine
    assert _safetensors._PrivateMap.alive == 0


@given(arrays(), arrays())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plain_reads_are_mapped_reads(tmp_path, monkeypatch, first, second):
    monkeypatch.setattr(_safetensors, "_READ_CHUNK", 7)
    data, sums = written({"a": first, "b": second})
    path = tmp_path / "x"
    path.write_bytes(data)
    file = SafetensorsFile(path)
    for name, want in (("a", first), ("b", second)):
        target = np.empty(want.shape, want.dtype)
        assert file.read_into(name, target) == sums.tensors[name]
        assert target.tobytes() == want.tobytes() == file.read(name).tobytes()


def test_a_closed_file_opens_itself_again(tmp_path):
    rows = np.arange(300, dtype=np.float32)
    path = tmp_path / "x"
    path.write_bytes(written({"a": rows})[0])
    file = SafetensorsFile(path)
    file.close()
    assert np.array_equal(file.read("a"), rows)


def test_a_file_that_was_cut_short_is_no_data(tmp_path):
    rows = np.arange(300, dtype=np.float32)
    path = tmp_path / "x"
    path.write_bytes(written({"a": rows})[0])
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DamagedRunError, match="ends within"):
        file.read_into("a", np.empty_like(rows))
