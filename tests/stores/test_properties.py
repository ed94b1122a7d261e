"""Whatever goes in comes out, bit by bit."""

from __future__ import annotations

import tempfile
from functools import reduce
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.core.activations import ActivationBatch, ExampleRecord
from actscope.core.sites import Site
from actscope.core.stats import Moments
from actscope.stores import STORES, open_run
from actscope.stores._units import _measured

FLOATS = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
}
texts = st.one_of(st.none(), st.text(st.characters(), max_size=12))  # surrogates and NUL too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@st.composite
def batches(draw):
    """Ragged batches of any bits: -0.0, NaN of every payload, infinities, denormals; no rows."""
    lengths = draw(st.lists(st.integers(0, 4), max_size=4))
    pooled = draw(st.booleans())
    n, rows = len(lengths), len(lengths) if pooled else sum(lengths)
    width = draw(st.integers(0, 3))
    arrays = {}
    for layer in range(draw(st.integers(1, 2))):
        dtype = np.dtype(FLOATS[draw(st.sampled_from(sorted(FLOATS)))])
        size = rows * width * dtype.itemsize
        raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
        arrays[Site("resid_post", layer)] = raw.view(dtype).reshape(rows, width)
    offsets = np.concatenate([[0], np.cumsum([1] * n if pooled else lengths)]).astype(np.int64)
    token_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = int(token_offsets[-1])
    return ActivationBatch(
        arrays=arrays,
        offsets=offsets,
        positions=np.arange(0 if pooled else rows, dtype=np.int32),
        examples=tuple(
            ExampleRecord(
                draw(st.text(max_size=5)),
                i,
                length,
                length,
                draw(texts),
                draw(texts),
                draw(st.dictionaries(st.text(max_size=3), json_values, max_size=2)),
            )
            for i, length in enumerate(lengths)
        ),
        token_ids=np.arange(tokens, dtype=np.int64) * 2**40,
        token_offsets=token_offsets,
        phase=(np.arange(tokens) % 2).astype(np.uint8),
        pooled=pooled,
    )


@pytest.mark.parametrize("store", STORES.names())
@settings(max_examples=60, deadline=None)
@given(batch=batches(), unit=st.text(st.characters(), min_size=1))
def test_round_trip(store, batch, unit):
    with tempfile.TemporaryDirectory() as folder:
        storage = STORES.get(store)(folder)
        writer = storage.open_run("r")
        writer.append(unit, batch, {})
        writer.append(unit, batch, {})
        assert writer.committed() == {unit}
        run = open_run(Path(folder) / "r")
        assert run.units == (unit,) and list(run.examples) == list(batch.examples)
        assert run.offsets.tolist() == batch.offsets.tolist()
        for site, given_array in batch.arrays.items():
            wide = given_array.dtype == ml_dtypes.bfloat16 and not storage.keeps_bfloat16
            array = given_array.astype(np.float32) if wide else given_array
            stored = run.stored_units[0].read(str(site))
            assert stored.dtype == array.dtype and stored.shape == array.shape
            assert stored.tobytes() == array.tobytes()
            for i in range(len(batch)):
                rows = array[i] if batch.pooled else array[batch.offsets[i] : batch.offsets[i + 1]]
                assert run.array(site, example=i).tobytes() == rows.tobytes()
        for i in range(len(batch)):
            assert run.tokens(i).tolist() == batch.tokens(i).tolist()
        assert run.verify().ok
        run.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=40),
    st.lists(st.integers(0, 40), max_size=5),
    st.randoms(use_true_random=False),
)
def test_moments_do_not_depend_on_how_rows_were_cut(values, cuts, shuffle):
    rows = np.array(values, dtype=np.float32).reshape(-1, 1)
    parts = np.split(rows, sorted(min(cut, len(rows)) for cut in cuts))
    shuffle.shuffle(parts)
    whole = _measured(rows).norms
    merged = reduce(Moments.merge, (_measured(part).norms for part in parts), Moments())
    assert merged.count == whole.count == len(rows)
    assert np.isclose(merged.mean, whole.mean, rtol=1e-9)
    assert np.isclose(merged.m2, whole.m2, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(0, 700), st.sampled_from(sorted(FLOATS)))
def test_measuring_in_pieces_is_measuring_at_once(rows, width, dtype):
    import actscope.stores._units as units

    array = np.random.default_rng(width).standard_normal((rows, width)).astype(FLOATS[dtype])
    at_once = _measured(array)
    before, units._BLOCK = units._BLOCK, 64
    try:
        assert _measured(array) == at_once
    finally:
        units._BLOCK = before
    norms = np.linalg.norm(array.astype(np.float64), axis=1)
    assert np.isclose(at_once.norms.mean, norms.mean() if rows else 0, rtol=1e-12)
