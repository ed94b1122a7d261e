"""A unit is filled in place: the same arrays as joining and sorting, and no second copy."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.capture.assembly import Assembly, UnitMemory
from actscope.core.activations import ActivationBatch, ExampleRecord, TokenRow
from actscope.core.errors import BadInputError
from actscope.core.sites import Site

ROWS, PATTERN, POOLER = Site("resid_post", 1), Site("pattern", 0), Site("pooler")
HEADS = 2


def bounds(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def made(rows, kept, pooled=False):
    """A batch whose every number tells where it comes from."""
    rng = np.random.default_rng(sum(len(r) for r in rows) + 7 * len(rows))
    n, lengths = len(rows), [len(r) for r in rows]
    total = n if pooled else sum(kept)
    pairs = sum(k * length for k, length in zip(kept, lengths, strict=True))
    arrays = {ROWS: rng.normal(size=(total, 3)).astype(np.float32)}
    if not pooled:
        arrays[PATTERN] = rng.normal(size=HEADS * pairs).astype(np.float32)
        arrays[POOLER] = rng.normal(size=(n, 4)).astype(np.float32)
    return ActivationBatch(
        arrays=arrays,
        offsets=bounds([1] * n if pooled else kept),
        positions=np.concatenate([np.arange(0 if pooled else k, dtype=np.int32) for k in kept]),
        examples=tuple(ExampleRecord(r.id, i, len(r), len(r)) for i, r in enumerate(rows)),
        token_ids=np.concatenate([r.token_ids for r in rows]),
        token_offsets=bounds(lengths),
        phase=np.concatenate([r.phase for r in rows]),
        pooled=pooled,
        heads={PATTERN: HEADS},
    )


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    pooled=st.booleans(),
    gaps=st.booleans(),
)
def test_it_is_what_join_makes(sizes, seed, pooled, gaps):
    rng = np.random.default_rng(seed)
    lengths = [max(pair) for pair in sizes]
    kept = [min(pair) for pair in sizes]
    rows = [TokenRow.from_ids(str(i), rng.integers(0, 99, n)) for i, n in enumerate(lengths)]
    order = rng.permutation(len(rows))
    batches = np.array_split(order, rng.integers(1, len(rows) + 1))
    batches = [b.tolist() for b in batches if len(b)]
    if gaps and len(batches) > 1:
        batches.pop(int(rng.integers(len(batches))))
    parts = [made([rows[i] for i in b], [kept[i] for i in b], pooled) for b in batches]
    there = sorted(i for b in batches for i in b)
    want = ActivationBatch.join(deepcopy(parts), [there.index(i) for b in batches for i in b])

    memory = UnitMemory()  # of an earlier unit
    memory.take(ROWS, (int(rng.integers(0, 60)), 3), np.dtype(np.float32))[:] = np.inf
    whole = Assembly(rows, kept, memory)
    for part, places in zip(parts, batches, strict=True):
        whole.put(part, places)
        for array in part.arrays.values():
            array[:] = np.nan  # its memory is used again by the next batch
    assert len(whole) == len(there)
    got = whole.batch(want.examples)
    for site in want.arrays:
        np.testing.assert_array_equal(got.arrays[site], want.arrays[site])
    for name in ("offsets", "positions", "token_ids", "token_offsets", "phase"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert (got.pooled, got.heads, got.examples) == (want.pooled, want.heads, want.examples)


def test_a_batch_with_other_rows_than_planned_is_refused():
    rows = [TokenRow.from_ids("a", [1, 2, 3])]
    with pytest.raises(BadInputError, match="another number of rows"):
        Assembly(rows, [3]).put(made(rows, [2]), [0])
