"""Units laid end to end, against plain concatenation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.core.errors import BadInputError
from actscope.formats._layout import Layout, UnitShape, out_dtype


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=5), st.data())
def test_rows_and_offsets_of_any_range(counts, data):
    """``counts`` are rows per example, per unit; units and examples may be empty."""
    units, tables = [], []
    value = 0
    for of_unit in counts:
        n = sum(of_unit)
        rows = np.arange(value, value + n)
        value += n
        tables.append({"x": rows, "rows.offsets": np.concatenate([[0], np.cumsum(of_unit)])})
        shapes = {name: table.shape for name, table in tables[-1].items()}
        units.append(UnitShape(shapes, {"rows.offsets": n}))
    layout = Layout(units)
    flat = [n for of_unit in counts for n in of_unit]
    whole = {"x": np.arange(value), "rows.offsets": np.concatenate([[0], np.cumsum(flat)])}
    for name, expected in whole.items():
        assert layout.shape(name) == expected.shape
        if not len(expected):
            continue
        start = data.draw(st.integers(0, len(expected) - 1))
        stop = data.draw(st.integers(start + 1, len(expected)))
        found = layout.rows(name, start, stop, lambda unit, name=name: tables[unit][name])
        assert np.array_equal(found, expected[start:stop])
        for unit, table in enumerate(tables):
            a, b = layout.place(name, unit)
            assert np.array_equal(expected[a:b] - layout.base(name, unit), table[name])


def test_units_that_do_not_fit_together():
    with pytest.raises(BadInputError, match="different tensors"):
        Layout([UnitShape({"x": (1, 2)}), UnitShape({"y": (1, 2)})])
    with pytest.raises(BadInputError, match="different shapes"):
        Layout([UnitShape({"x": (1, 2)}), UnitShape({"x": (1, 3)})])
    with pytest.raises(ValueError, match="dtype"):
        out_dtype("object", True)
