"""Runs that earlier versions wrote are read as they were written, for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from actscope.core.arrays import DTYPES
from actscope.core.spec import UnitPlan
from actscope.stores import STORES, list_runs, merge_runs, open_run, verify_run
from actscope.stores._records import FORMAT_VERSION

GOLDEN = Path(__file__).parent.parent / "golden"
EXPECTED = {
    path.parent.name: json.loads(path.read_text(encoding="utf-8"))
    for path in GOLDEN.glob("*/expected.json")
}
RUNS = [(version, name) for version, found in EXPECTED.items() for name in found]


def test_there_is_a_golden_run_of_every_version():
    assert set(EXPECTED) == {f"v{n}" for n in range(1, FORMAT_VERSION + 1)}
    assert ("v1", "shards") in RUNS and len(RUNS) >= 4
    head = json.loads((GOLDEN / "v1" / "shards" / "run.json").read_bytes())
    assert head["version"] == 1


@pytest.mark.parametrize(("version", "name"), RUNS)
def test_a_golden_run_reads_as_it_was_written(version, name):
    path, expected = GOLDEN / version / name, EXPECTED[version][name]
    run = open_run(path)
    assert run.store == expected["store"] and run.spec == expected["spec"]
    assert list(run.units) == expected["units"] and run.complete and run.plan == UnitPlan(
        0, 4, 2, batch_tokens=64
    )  # fmt: skip
    assert [record.to_json() for record in run.examples] == expected["examples"]
    assert [failure.to_json() for failure in run.failures] == expected["failures"]
    assert [run.tokens(i).tolist() for i in range(3)] == expected["tokens"]
    assert [run.phase(i).tolist() for i in range(3)] == expected["phase"]
    assert {str(site) for site in run.sites} == set(expected["values"])
    wide = not STORES.get(run.store).keeps_bfloat16
    for key, examples in expected["values"].items():
        kind = expected["dtypes"][key]
        dtype = DTYPES["float32" if wide and kind == "bfloat16" else kind]
        for i, texts in enumerate(examples):
            found = run.array(key, example=i)
            given = np.array([float(text) for text in texts], np.float32).astype(dtype)
            assert found.dtype == dtype and found.reshape(-1).tobytes() == given.tobytes()
            n = expected["examples"][i]["n_tokens"]
            if "pattern" in key:
                assert found.shape == (expected["heads"][key], n, n)
            elif not expected["pooled"]:
                assert len(found) == n and run.positions(i).tolist() == list(range(n))
    codec = expected["spec"].get("codec")
    coded = {
        e.coding.codec for u in run.stored_units for e in u.commit.tensors.values() if e.coding
    }
    assert coded == ({codec} if codec else set())
    summary = run.summary()
    assert (summary.n_units, summary.n_examples, summary.n_failures) == (2, 3, 1)
    assert summary.errors == {"too_long": 1} and summary.timings == {"capture": 0.5}
    last = summary.sites["ln_final"]
    assert last.non_finite == (0 if expected["pooled"] else 3)
    for fast in (True, False):
        report = verify_run(path, fast=fast)
        assert report.ok and report.units == 2 and report.leftovers == []


@pytest.mark.parametrize("version", EXPECTED)
def test_golden_runs_are_listed_resumed_and_merged(version, tmp_path):
    folder = shutil.copytree(GOLDEN / version, tmp_path / "runs")
    assert {run.path.name: run.state for run in list_runs(folder)} == dict.fromkeys(
        EXPECTED[version], "complete"
    )
    for name, expected in EXPECTED[version].items():
        storage = STORES.get(expected["store"])(folder)
        writer = storage.open_run(name, expected["spec"], storage.stored_plan(name))
        assert writer.committed() == set(expected["units"])
        merged = merge_runs([folder / name], folder / f"{name}-merged")
        assert (merged.copied, merged.cut) == (2, 0) and verify_run(merged.path).ok
