"""Exports of every store, side by side, and names that are hard to make."""

from __future__ import annotations

import numpy as np
import pytest

from actscope.core.errors import OutputFolderError
from actscope.core.spec import unit_id
from actscope.formats import FORMATS, export_run, import_run
from actscope.formats._manifest import append_line, read_lines
from actscope.stores import STORES, open_run
from actscope.testing.format_contract import same_runs
from actscope.testing.store_contract import PLAN, SPEC, UNITS, sample_batch


@pytest.mark.parametrize("form", ["npz", "npy", "parquet"])
@pytest.mark.parametrize("store", STORES.names())
def test_a_run_of_any_store(tmp_path, store, form):
    writer = STORES.get(store)(tmp_path).open_run("r", SPEC, PLAN)
    for start, stop in UNITS:
        writer.append(unit_id(start, stop), sample_batch(start, stop), {})
    export_run(writer.path, form, tmp_path / "out")
    back = open_run(import_run(tmp_path / "out", form, tmp_path / "back").path)
    assert back.store == "shards"
    same_runs(open_run(writer.path), back)


def test_units_in_another_order_are_exported_in_dataset_order(tmp_path):
    writer = STORES.get("shards")(tmp_path).open_run("r", SPEC, PLAN)
    for start, stop in UNITS[::-1]:
        writer.append(unit_id(start, stop), sample_batch(start, stop), {})
    export_run(writer.path, "npy", tmp_path / "out")
    found = np.load(tmp_path / "out" / "ln_final.npy")
    assert np.array_equal(found, open_run(writer.path).numpy("ln_final"))


def test_two_processes_on_one_export(make_run, tmp_path):
    run = make_run()
    export_run(run, "npz", tmp_path / "out")
    record = tmp_path / "out" / "actscope.units.jsonl"
    (line, *_), size = read_lines(record)
    assert size == record.stat().st_size
    with pytest.raises(OutputFolderError, match="another process"):
        append_line(record, line, size - 1)
    assert record.stat().st_size == size


def test_progress_and_an_output_in_folders_that_are_not_there(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    report = export_run(make_run(), "npz", "deep/er/out", progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)] and report.path == tmp_path / "deep/er/out"
    assert [p.name for p in (tmp_path / "deep/er").iterdir()] == ["out"]


def test_an_empty_folder_is_filled(make_run, tmp_path):
    (tmp_path / "out").mkdir()
    export_run(make_run(), "npz", tmp_path / "out")
    assert (tmp_path / "out" / "part-00000.npz").is_file()


def test_kebab_case_names_a_format():
    assert FORMATS.get("steering-vectors").name == "steering_vectors"
