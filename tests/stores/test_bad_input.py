"""What a store and a reader refuse, and what they say."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from actscope.core.activations import ExampleFailure
from actscope.core.errors import (
    BadInputError,
    DamagedRunError,
    NumericRangeError,
    OutputFolderError,
    RunMismatchError,
    UnknownNameError,
)
from actscope.core.sites import Site
from actscope.core.spec import unit_id
from actscope.stores import (
    HDF5Storage,
    NPZStorage,
    ShardStorage,
    open_run,
    stored_plan,
    verify_run,
)
from actscope.stores._records import decode_unit, dump_record, encode_unit
from actscope.testing.store_contract import PLAN, SITES, SPEC, sample_batch


def test_names_of_units_come_back():
    for name in ("000-004", "a b", "é/☃", "..", "x" * 100, "\ud800", "CON", "a~b"):
        assert decode_unit(encode_unit(name)) == name
    assert encode_unit("A").lower() != encode_unit("a").lower()
    assert decode_unit(encode_unit("x" * 200)) is None
    assert decode_unit("%ff") == ""


def test_importing_and_using_stores_needs_neither_torch_nor_h5py():
    code = (
        "import sys; sys.modules['h5py'] = None; sys.modules['torch'] = None\n"
        "from actscope.stores import HDF5Storage, ShardStorage\n"
        "from actscope.core.errors import BadInputError\n"
        "try: HDF5Storage('x').open_run('r')\n"
        "except BadInputError as error: assert \"pip install 'actscope[hdf5]'\" in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("bad", [float("nan"), {1, 2}, object()])
def test_a_spec_that_is_no_json(tmp_path, bad):
    with pytest.raises(BadInputError, match="cannot be stored as JSON"):
        ShardStorage(tmp_path).open_run("r", {**SPEC, "x": bad})
    assert not (tmp_path / "r").exists()


def test_metadata_that_is_no_json_is_refused_before_writing(tmp_path):
    writer = ShardStorage(tmp_path).open_run("r")
    for metadata in ({"x": {1}}, {"timings": "long"}, {"errors": [{"id": "a"}]}):
        with pytest.raises(BadInputError):
            writer.append("u", sample_batch(0, 1), metadata)
    batch = sample_batch(0, 1)
    odd = replace(batch, examples=(replace(batch.examples[0], metadata={"x": object()}),))
    with pytest.raises(BadInputError, match="'ex-0'"):
        writer.append("u", odd, {})
    assert writer.committed() == set()


def test_numpy_numbers_in_metadata_are_plain_numbers(tmp_path):
    writer = ShardStorage(tmp_path).open_run("r")
    batch = sample_batch(0, 1)
    record = replace(batch.examples[0], metadata={"score": np.float32(0.5), "n": np.int64(3)})
    writer.append("u", replace(batch, examples=(record,)), {"halved": np.arange(2)})
    assert open_run(writer.path).examples[0].metadata == {"score": 0.5, "n": 3}


def test_a_plan_that_is_none(tmp_path):
    with pytest.raises(BadInputError, match="no unit plan"):
        ShardStorage(tmp_path).open_run("r", SPEC, {"units": 3})


def test_an_unknown_storage_dtype(tmp_path):
    with pytest.raises(UnknownNameError, match="float32"):
        ShardStorage(tmp_path).open_run("r", {**SPEC, "storage_dtype": "float23"})


def test_the_folder_is_a_file(tmp_path):
    (tmp_path / "r").write_text("mine")
    with pytest.raises(OutputFolderError, match="is a file"):
        ShardStorage(tmp_path).open_run("r")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("ACTSCOPE_FAIL_AT", "run.created:1:EROFS")
    with pytest.raises(OutputFolderError, match="cannot be written"):
        ShardStorage(tmp_path).open_run("r")


def test_a_run_of_another_store(tmp_path):
    NPZStorage(tmp_path).open_run("r", SPEC, PLAN)
    with pytest.raises(OutputFolderError, match="npz"):
        ShardStorage(tmp_path).open_run("r", SPEC, PLAN)


def test_the_stored_plan(tmp_path):
    storage = ShardStorage(tmp_path)
    assert storage.stored_plan("r") is None
    storage.open_run("r", SPEC, PLAN)
    assert storage.stored_plan("r") == stored_plan(tmp_path / "r") == PLAN
    storage.open_run("bare")
    assert storage.stored_plan("bare") is None
    with pytest.raises(RunMismatchError, match=r"plan\.unit_size"):
        storage.open_run("bare", None, PLAN)


@pytest.mark.parametrize("dtype", ["float32", "native", "bfloat16"])
def test_pooled_values_stay_float32(tmp_path, dtype):
    writer = ShardStorage(tmp_path).open_run("r", {**SPEC, "storage_dtype": dtype}, PLAN)
    writer.append(unit_id(0, 4), sample_batch(0, 4, pooled=True), {})
    assert open_run(writer.path).array("ln_final", example=0).dtype == np.float32


@pytest.mark.parametrize("storage", [ShardStorage, NPZStorage])
def test_a_storage_dtype_gives_the_same_numbers_in_every_store(tmp_path, storage):
    writer = storage(tmp_path).open_run("r", {**SPEC, "storage_dtype": "bfloat16"}, PLAN)
    writer.append(unit_id(0, 4), sample_batch(0, 4), {})
    import ml_dtypes

    rounded = sample_batch(0, 4).arrays[SITES[2]].astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(open_run(writer.path).numpy("ln_final"), rounded)


def test_a_bare_run_stores_what_it_is_given(tmp_path):
    batch = sample_batch(0, 4, dtype="float64")
    batch.arrays[Site.module("lm_head")] = np.arange(10, dtype=np.int64).reshape(10, 1)
    writer = ShardStorage(tmp_path).open_run("r")
    writer.append("u", batch, {})
    run = open_run(writer.path)
    assert run.array("ln_final", example=0).dtype == np.float64
    assert run.get("lm_head", example=1).tolist() == [[1], [2]]
    assert run.spec is None and run.fingerprint == "" and run.complete


@pytest.mark.parametrize("value", [1e5, -65520.0, np.nan, np.inf])
def test_float16_refuses_what_is_not_finite_in_it(tmp_path, value):
    batch = sample_batch(0, 4, pooled=True)
    batch.arrays[SITES[0]][2, 1] = value
    writer = ShardStorage(tmp_path).open_run("r", {**SPEC, "storage_dtype": "float16"}, PLAN)
    with pytest.raises(NumericRangeError, match=r"'ex-2' \(pooled"):
        writer.append(unit_id(0, 4), batch, {})
    assert not list((writer.path / "shards").iterdir())


def test_float32_refuses_a_double_too_large_and_keeps_infinity(tmp_path):
    batch = sample_batch(0, 4, dtype="float64")
    batch.arrays[SITES[0]][0, 0] = np.inf
    writer = ShardStorage(tmp_path).open_run("r", {**SPEC, "storage_dtype": "float32"}, PLAN)
    writer.append(unit_id(0, 4), batch, {})
    other = sample_batch(4, 8, dtype="float64")
    other.arrays[SITES[0]][0, 0] = 1e39
    with pytest.raises(NumericRangeError, match="float32"):
        writer.append(unit_id(4, 8), other, {})


def test_a_site_with_the_name_of_a_table(tmp_path):
    batch = sample_batch(0, 1)
    batch.arrays[Site.module("tokens.ids")] = batch.arrays[SITES[0]]
    with pytest.raises(BadInputError, match="name of a table"):
        ShardStorage(tmp_path).open_run("r").append("u", batch, {})


def test_objects_are_never_pickled(tmp_path):
    batch = sample_batch(0, 1)
    batch.arrays[SITES[0]] = np.array([[object()]])
    for storage in (ShardStorage, NPZStorage, HDF5Storage):
        with pytest.raises(BadInputError):
            storage(tmp_path / storage.__name__).open_run("r").append("u", batch, {})


# -- reading --------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    writer = ShardStorage(tmp_path).open_run("r", SPEC, PLAN)
    for start, stop in ((0, 4), (4, 8), (8, 10)):
        failure = ExampleFailure(f"f{start}", start, "too_long", "much")
        batch = replace(sample_batch(start, stop), failures=(failure,))
        writer.append(unit_id(start, stop), batch, {"timings": {"forward": 1.0}})
    return open_run(writer.path)


def test_layers_from_the_end_are_the_models(run):
    assert run.site("resid_post", -1) == Site("resid_post", 3)
    assert run.site("resid_post", -4) == Site("resid_post", 0)
    assert run.site(SITES[2]) == run.site("ln_final") == SITES[2]
    assert run.site("blocks.3.resid_post") == SITES[1]
    for name, layer in (("resid_post", -2), ("resid_post", 1), ("resid_mid", 0), ("ln", None)):
        with pytest.raises(UnknownNameError, match="captured site"):
            run.site(name, layer)
    with pytest.raises(BadInputError, match="out of range"):
        run.site("resid_post", -5)


def test_examples_are_a_sequence(run):
    assert len(run.examples) == len(run) == 10
    assert run.examples[-1].id == "ex-9" and [e.id for e in run.examples[3:5]] == ["ex-3", "ex-4"]
    with pytest.raises(IndexError):
        run.examples[10]
    with pytest.raises(BadInputError, match="no such example"):
        run.get("ln_final", example=10)


def test_the_summary(run):
    summary = run.summary()
    values = sample_batch(0, 10).arrays[SITES[1]].astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    site = summary.sites["blocks.3.resid_post"]
    assert site.norms.count == site.rows == len(norms) == summary.n_rows
    assert np.isclose(site.norms.mean, norms.mean(), rtol=1e-12)
    assert np.isclose(site.norms.std, norms.std(ddof=1), rtol=1e-12)
    assert site.absmax == np.abs(values).max() and site.non_finite == 0
    assert (site.width, site.dtype, site.bytes) == (5, "float32", len(norms) * 20)
    assert summary.errors == {"too_long": 3} and summary.n_failures == len(run.failures) == 3
    assert summary.timings == {"forward": 3.0} and summary.n_tokens == 23
    assert summary.bytes == sum(p.stat().st_size for p in (run.path / "shards").iterdir())
    json.dumps(summary.to_json(), allow_nan=False)


def test_non_finite_values_are_counted_and_left_out(tmp_path):
    batch = sample_batch(0, 4)
    batch.arrays[SITES[0]][3, :3] = np.nan, np.inf, 1e30
    writer = ShardStorage(tmp_path).open_run("r")
    writer.append("u", batch, {})
    site = open_run(writer.path).summary().sites["blocks.0.resid_post"]
    assert site.non_finite == 2 and site.norms.count == 9 and site.absmax == np.float32(1e30)


def test_reading_gives_arrays_without_copying(run):
    rows = run.array("resid_post", 3, example=7)
    assert not rows.flags.writeable and not rows.flags.owndata
    assert np.array_equal(rows, sample_batch(7, 8).arrays[SITES[1]])
    run.close()
    assert np.array_equal(rows, sample_batch(7, 8).arrays[SITES[1]])
    assert run.get("ln_final", example=0).shape == (1, 5)


def test_more_units_than_files_are_kept_open(tmp_path):
    writer = ShardStorage(tmp_path).open_run("r")
    for i in range(40):
        writer.append(f"u{i}", sample_batch(i, i + 1), {})
    run = open_run(writer.path)
    kept = [run.array("ln_final", example=i) for i in range(40)]
    assert len(run._files._open) == 32
    whole = sample_batch(0, 40).arrays[SITES[2]]
    assert np.array_equal(np.concatenate(kept), whole)
    assert np.array_equal(run.numpy("ln_final"), whole)


def test_units_of_different_shape_do_not_stack(tmp_path):
    writer = ShardStorage(tmp_path).open_run("r")
    writer.append("a", sample_batch(0, 1, width=3), {})
    writer.append("b", sample_batch(1, 2, width=4), {})
    run = open_run(writer.path)
    assert run.get("ln_final", example=1).shape == (2, 4)
    with pytest.raises(BadInputError, match="different shapes"):
        run.stack("ln_final")


@pytest.mark.parametrize("units", [1, 3])
def test_a_changed_byte_is_not_stacked(tmp_path, units):
    writer = ShardStorage(tmp_path).open_run("r")
    for i in range(units):
        writer.append(f"u{i}", sample_batch(i, i + 1), {})
    run = open_run(writer.path)
    assert len(run.stack("ln_final"))
    unit = run.stored_units[-1]
    data = bytearray(unit.path.read_bytes())
    at = bytes(data).rindex(unit.read("ln_final").tobytes())
    run.close()
    data[at + 2] ^= 1
    unit.path.write_bytes(data)
    with pytest.raises(DamagedRunError, match="ln_final"):
        open_run(writer.path).stack("ln_final")


def rewrite_commit(run, **changes):
    """Change a commit record and give it a digest that matches: not damage but malice."""
    file = run.path / "commits" / f"{unit_id(0, 4)}.json"
    data = json.loads(file.read_bytes())
    del data["digest"]
    file.write_bytes(dump_record({**data, **changes}))
    return open_run(run.path)


@pytest.mark.parametrize(
    "path", ["../../../etc/passwd", "/etc/passwd", "shards/../run.json", "shards/a\0b", "", "x/y"]
)
def test_a_commit_record_cannot_point_out_of_the_run(run, path):
    again = rewrite_commit(run, path=path)
    with pytest.raises(DamagedRunError, match="names no data file"):
        again.get("ln_final", example=0)
    assert not again.verify().ok


def test_a_link_is_not_followed(run, tmp_path):
    (shard,) = (run.path / "shards").glob(unit_id(0, 4) + "*")
    elsewhere = tmp_path / "elsewhere"
    shard.rename(elsewhere)
    shard.symlink_to(elsewhere)
    with pytest.raises(DamagedRunError, match="link"):
        open_run(run.path).get("ln_final", example=0)
    file = run.path / "run.json"
    file.rename(tmp_path / "run.json")
    file.symlink_to(tmp_path / "run.json")
    with pytest.raises(DamagedRunError):
        open_run(run.path)


@pytest.mark.parametrize("changes", [{"tensors": 3}, {"sites": [{}]}, {"new": 1}, {"version": "x"}])
def test_a_record_with_the_wrong_fields_is_damaged(run, changes):
    with pytest.raises(DamagedRunError):
        _ = rewrite_commit(run, **changes).n_examples


def test_a_record_too_large_is_not_read(run, monkeypatch):
    from actscope.stores import _records

    monkeypatch.setattr(_records, "LARGEST_RECORD", 100)
    with pytest.raises(DamagedRunError, match="larger than 100 bytes"):
        open_run(run.path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code was executed",))


def replace_data(path, make):
    """Put another file in the place of a unit's data, with sizes and sums that match."""
    import xxhash

    commit = path / "commits" / f"{unit_id(0, 4)}.json"
    data = json.loads(commit.read_bytes())
    make(path / data["path"])
    raw = (path / data["path"]).read_bytes()
    del data["digest"]
    changed = {**data, "bytes": len(raw), "xxh3": xxhash.xxh3_128_hexdigest(raw)}
    commit.write_bytes(dump_record(changed))
    run = open_run(path)
    with pytest.raises(DamagedRunError):
        run.get("ln_final", example=0)
    assert not verify_run(path).ok


def written(storage):
    writer = storage.open_run("r", SPEC, PLAN)
    writer.append(unit_id(0, 4), sample_batch(0, 4), {})
    return writer.path


def test_a_pickle_in_an_npz_is_not_loaded(tmp_path):
    def make(file):
        header = json.loads(zipfile.ZipFile(file).comment)
        objects = np.empty(4, dtype=object)
        objects[:] = Bomb()
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = json.dumps(header).encode()
            with archive.open("ln_final.npy", "w") as member:
                np.lib.format.write_array(member, objects, allow_pickle=True)
            archive.writestr("rows.offsets.npy", pickle.dumps(Bomb()))

    replace_data(written(NPZStorage(tmp_path)), make)


def test_a_zip_bomb_is_not_inflated(tmp_path):
    def make(file):
        comment = zipfile.ZipFile(file).comment
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.comment = comment
            archive.writestr("ln_final.npy", bytes(10_000_000))
            archive.writestr("rows.offsets.npy", bytes(10_000_000))

    replace_data(written(NPZStorage(tmp_path)), make)


def test_an_hdf5_link_to_another_file_is_not_followed(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the hdf5 extra is not installed")
    path = written(HDF5Storage(tmp_path))
    (good,) = (path / "units").iterdir()
    other = tmp_path / "other.h5"
    other.write_bytes(good.read_bytes())

    def link(file):
        with h5py.File(file, "a") as h5:
            for name in ("ln_final", "rows.offsets"):
                del h5[name]
                h5[name] = h5py.ExternalLink(str(other), name)

    replace_data(path, link)


def test_hdf5_data_outside_its_file_is_not_read(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the hdf5 extra is not installed")
    (tmp_path / "raw").write_bytes(bytes(1000))

    def outside(file):
        with h5py.File(file, "a") as h5:
            for name in ("ln_final", "rows.offsets"):
                shape, dtype = h5[name].shape, h5[name].dtype
                del h5[name]
                h5.create_dataset(name, shape, dtype, external=[(str(tmp_path / "raw"), 0, 1000)])

    replace_data(written(HDF5Storage(tmp_path)), outside)
