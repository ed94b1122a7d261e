"""Native runs to export."""

from __future__ import annotations

import pytest

from actscope.core.spec import unit_id
from actscope.stores import ShardStorage, open_run
from actscope.testing.store_contract import PLAN, SPEC, UNITS, sample_batch


@pytest.fixture
def make_run(tmp_path):
    """``make_run("name", pooled=True)``: a run of three units in ``tmp_path``."""

    def make(name="run", **options):
        writer = ShardStorage(tmp_path).open_run(name, SPEC, PLAN)
        for start, stop in UNITS:
            writer.append(unit_id(start, stop), sample_batch(start, stop, **options), {})
        return open_run(writer.path)

    return make
