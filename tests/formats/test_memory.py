"""Exporting takes as much memory for a run of twelve units as for one of three."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from actscope.core.spec import UnitPlan
from actscope.formats import export_run, import_run
from actscope.stores import ShardStorage, open_run
from actscope.testing.store_contract import SPEC, sample_batch

UNIT = 8
WIDTH = 1024
FORMS = [
    "csv", "datasets", "hdf5", "npy", "npz", "parquet", "pickle", "pt", "safetensors", "saelens",
    "zarr",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of 3 and 12 units, about 250 KB of activations each unit; pooled ones too."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for pooled in (False, True):
        for n in (3, 12):
            plan = UnitPlan(0, n * UNIT, UNIT)
            name = f"{n}-{pooled}"
            writer = ShardStorage(folder).open_run(name, SPEC, plan.to_json())
            for unit, (start, stop) in zip(plan.unit_ids(), plan.units(), strict=True):
                batch = sample_batch(start, stop, width=WIDTH, pooled=pooled)
                writer.append(unit, batch, {})
            made[n, pooled] = writer.path
    return made


def peak(work):
    """Most bytes of Python and numpy that were allocated at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", FORMS)
def test_memory_is_flat(runs, tmp_path, form):
    pooled = form == "csv"
    arrow = form in ("datasets", "parquet", "saelens")
    options = {"context_size": "16"} if form == "saelens" else {}

    def export(n, name):
        with open_run(runs[n, pooled]) as run:
            export_run(run, form, tmp_path / name, options=options)

    export(3, "warm")  # what is imported or cached once
    most = {n: peak(lambda n=n: export(n, f"out-{n}")) for n in (3, 12)}
    size = sum(p.stat().st_size for p in (runs[12, pooled] / "shards").iterdir())
    assert size > (1 << 20) * (1 if pooled else 2.5)
    assert most[12] < 1.25 * most[3] + (128 << 10), most
    if arrow:
        import pyarrow as pa

        assert pa.total_allocated_bytes() < 1 << 20


@pytest.mark.parametrize("form", ["npz", "npy", "parquet", "zarr"])
def test_importing_is_flat_too(runs, tmp_path, form):
    def load(n, name):
        import_run(tmp_path / f"out-{n}", form, tmp_path / name)

    for n in (3, 12):
        export_run(runs[n, False], form, tmp_path / f"out-{n}")
    load(3, "warm")
    most = {n: peak(lambda n=n: load(n, f"back-{n}")) for n in (3, 12)}
    assert most[12] < 1.25 * most[3] + (256 << 10), most
    found = open_run(tmp_path / "back-12")
    assert np.array_equal(found.numpy("ln_final"), open_run(runs[12, False]).numpy("ln_final"))
