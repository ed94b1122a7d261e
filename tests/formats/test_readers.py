"""Every export, read by the format's own library alone, without a word of actscope."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

from actscope.core.errors import BadInputError
from actscope.formats import export_run, import_run
from actscope.stores import open_run
from actscope.testing.store_contract import SITES, sample_batch

KEY = "blocks.3.resid_post"


@pytest.fixture
def whole():
    return sample_batch(0, 10)


def export(make_run, tmp_path, to, **options):
    run = make_run("run", **{k: options.pop(k) for k in ("pooled", "dtype") if k in options})
    export_run(run, to, tmp_path / "out", **options)
    return tmp_path / "out"


def parts(out, suffix):
    found = sorted(out.glob(f"part-*{suffix}"))
    assert len(found) == 3
    return found


def bits(a, b):
    assert np.asarray(a).dtype == np.asarray(b).dtype
    assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def check_tables(read, whole):
    """The tables of parts, one after the other."""
    for name, expected in (
        (KEY, whole.arrays[SITES[1]]),
        ("ln_final", whole.arrays[SITES[2]]),
        ("tokens.ids", whole.token_ids),
        ("tokens.phase", whole.phase),
        ("rows.positions", whole.positions),
    ):
        bits(np.concatenate(read(name)), expected)
    lengths = np.concatenate([np.diff(o) for o in read("rows.offsets")])
    bits(np.cumsum(lengths), whole.offsets[1:])
    lines = b"".join(bytes(np.asarray(raw)) for raw in read("examples")).splitlines()
    assert [json.loads(line)["text"] for line in lines] == [e.text for e in whole.examples]
    assert [json.loads(line)["metadata"] for line in lines] == [{"place": i} for i in range(10)]


def test_npz_by_numpy(make_run, tmp_path, whole):
    files = parts(export(make_run, tmp_path, "npz"), ".npz")
    check_tables(lambda name: [np.load(file)[name] for file in files], whole)


def test_hdf5_by_h5py(make_run, tmp_path, whole):
    import h5py

    files = parts(export(make_run, tmp_path, "hdf5"), ".h5")

    def read(name):
        found = []
        for path in files:
            with h5py.File(path) as file:
                found.append(file[name][...])
        return found

    check_tables(read, whole)


def test_pickle_by_pickle(make_run, tmp_path, whole):
    def read(name):
        found = []
        for path in parts(tmp_path / "out", ".pkl"):
            entry = pickle.loads(path.read_bytes())["tensors"][name]
            found.append(np.frombuffer(entry["data"], entry["dtype"]).reshape(entry["shape"]))
        return found

    export(make_run, tmp_path, "pickle")
    check_tables(read, whole)


def test_pt_by_torch(make_run, tmp_path, whole):
    import torch

    files = parts(export(make_run, tmp_path, "pt"), ".pt")
    loaded = [torch.load(file, weights_only=True)["tensors"] for file in files]
    check_tables(lambda name: [tensors[name].numpy() for tensors in loaded], whole)


def test_pt_keeps_bfloat16(make_run, tmp_path):
    import torch

    files = parts(export(make_run, tmp_path, "pt", dtype="bfloat16"), ".pt")
    loaded = [torch.load(file, weights_only=True)["tensors"][KEY] for file in files]
    given = sample_batch(0, 10, dtype="bfloat16").arrays[SITES[1]]
    assert loaded[0].dtype == torch.bfloat16
    bits(torch.cat(loaded).view(torch.int16).numpy(), given.view(np.int16))


def test_npy_by_numpy(make_run, tmp_path, whole):
    out = export(make_run, tmp_path, "npy")
    bits(np.load(out / f"{KEY}.npy", mmap_mode="r"), whole.arrays[SITES[1]])
    bits(np.load(out / "rows.offsets.npy"), whole.offsets)
    bits(np.load(out / "tokens.ids.npy"), whole.token_ids)
    bits(np.load(out / "tokens.offsets.npy"), whole.token_offsets)
    lines = (out / "examples.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [e.id for e in whole.examples]


def test_npy_of_bfloat16_is_float32(make_run, tmp_path):
    out = export(make_run, tmp_path, "npy", dtype="bfloat16")
    given = sample_batch(0, 10, dtype="bfloat16").arrays[SITES[1]]
    bits(np.load(out / f"{KEY}.npy"), given.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors_per_site_by_safetensors(make_run, tmp_path, dtype):
    from safetensors.torch import load_file

    out = export(make_run, tmp_path, "safetensors", dtype=dtype)
    import torch

    tensor = load_file(out / f"{KEY}.safetensors")[KEY]
    given = sample_batch(0, 10, dtype=dtype).arrays[SITES[1]]
    assert tensor.dtype == getattr(torch, dtype)
    bits(tensor.view(torch.int8).numpy(), given.view(np.int8))


def test_safetensors_per_example_by_safetensors(make_run, tmp_path, whole):
    from safetensors import safe_open

    out = export(make_run, tmp_path, "safetensors", options={"per": "example"})
    files = sorted((out / "examples").iterdir())
    assert len(files) == 10
    for i, path in enumerate(files):
        with safe_open(path, "np") as file:
            record = json.loads(file.metadata()["example"])
            rows = slice(*whole.offsets[i : i + 2])
            bits(file.get_tensor(KEY), whole.arrays[SITES[1]][rows])
            bits(file.get_tensor("tokens.ids"), whole.tokens(i))
            assert record == whole.examples[i].to_json()


def test_csv_by_csv(make_run, tmp_path):
    out = export(make_run, tmp_path, "csv", pooled=True)
    whole = sample_batch(0, 10, pooled=True)
    with (out / f"{KEY}.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["id", "index", "v0", "v1", "v2", "v3", "v4"]
    assert [row[:2] for row in rows] == [[f"ex-{i}", str(i)] for i in range(10)]
    bits(np.array([row[2:] for row in rows], np.float64).astype("f4"), whole.arrays[SITES[1]])
    with (out / "tokens.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["example", "position", "token_id", "phase"]
    assert [int(row[2]) for row in rows] == whole.token_ids.tolist()
    assert [int(row[3]) for row in rows] == whole.phase.tolist()


def check_table(table, whole):
    assert table.column("id").to_pylist() == [e.id for e in whole.examples]
    assert [json.loads(r)["text"] for r in table.column("record").to_pylist()] == [
        e.text for e in whole.examples
    ]
    for i, (rows, tokens) in enumerate(
        zip(table.column(KEY).to_pylist(), table.column("token_ids").to_pylist(), strict=True)
    ):
        expected = whole.arrays[SITES[1]][slice(*whole.offsets[i : i + 2])]
        bits(np.array(rows, np.float32), expected)
        assert tokens == whole.tokens(i).tolist()


def test_parquet_by_pyarrow(make_run, tmp_path, whole):
    import pyarrow.parquet as pq

    out = export(make_run, tmp_path, "parquet")
    check_table(pq.read_table([str(p) for p in parts(out, ".parquet")]), whole)


def test_datasets_by_pyarrow(make_run, tmp_path, whole):
    import pyarrow as pa

    out = export(make_run, tmp_path, "datasets")
    tables = []
    for path in sorted(out.glob("data-*.arrow")):
        with path.open("rb") as file:
            tables.append(pa.ipc.open_stream(file).read_all())
    check_table(pa.concat_tables(tables), whole)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_datasets_by_datasets(make_run, tmp_path, pooled, dtype):
    import datasets

    out = export(make_run, tmp_path, "datasets", pooled=pooled, dtype=dtype)
    whole = sample_batch(0, 10, pooled=pooled, dtype=dtype)
    found = datasets.load_from_disk(str(out)).with_format("numpy")
    assert len(found) == 10
    for i in (0, 5, 9):
        expected = whole.arrays[SITES[1]]
        expected = expected[i] if pooled else expected[slice(*whole.offsets[i : i + 2])]
        if dtype == "bfloat16" or pooled:  # a pooled run is float32 by its spec
            expected = expected.astype(np.float32)
        assert np.array_equal(found[i][KEY], expected)
        assert found[i]["token_ids"].tolist() == whole.tokens(i).tolist()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size", [3, 4, 23])
def test_saelens_by_datasets_as_saelens_reads_it(make_run, tmp_path, whole, size):
    """The columns, shapes and dtypes that its store checks, and every row that fills a sequence."""
    import datasets
    import torch

    out = export(make_run, tmp_path, "saelens", options={"context_size": str(size)})
    hook = "blocks.3.hook_resid_post"
    found = datasets.load_from_disk(str(out))
    assert found.features[hook].shape == (size, 5)
    found.set_format(type="torch", columns=[hook, "token_ids"], dtype=torch.float32)
    rows = whole.arrays[SITES[1]]
    n = len(rows) // size
    batch = found[0:n]
    assert len(found) == n and batch[hook].shape == (n, size, 5)
    bits(batch[hook].reshape(-1, 5).numpy(), rows[: n * size])
    ids = np.concatenate([whole.tokens(i) for i in range(10)])
    assert batch["token_ids"].reshape(-1).tolist() == ids[: n * size].tolist()
    back = open_run(import_run(out, "saelens", tmp_path / "back").path)
    bits(back.numpy("resid_post", 3), rows[: n * size])
    assert back.tokens(0).tolist() == ids[:size].tolist()


def test_saelens_says_what_it_cannot_hold(make_run, tmp_path):
    with pytest.raises(BadInputError, match="fewer rows than one sequence"):
        export_run(make_run(), "saelens", tmp_path / "out")
    with pytest.raises(BadInputError, match="rows of tokens"):
        export_run(make_run("pooled", pooled=True), "saelens", tmp_path / "out")
    with pytest.raises(BadInputError, match="whole number"):
        export_run(make_run(), "saelens", tmp_path / "out", options={"context_size": "0"})


def test_zarr_by_zarr(make_run, tmp_path, whole):
    import zarr

    out = export(make_run, tmp_path, "zarr", options={"chunk_rows": "4"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(out / "activations.zarr", mode="r")
        assert group.metadata.zarr_format == 3 and group[KEY].chunks == (4, 5)
        bits(group[KEY][...], whole.arrays[SITES[1]])
        bits(group["rows.offsets"][...], whole.offsets)
        bits(group["tokens.ids"][...], whole.token_ids)
        assert group.attrs["sites"] == [str(site) for site in SITES]
        lines = bytes(group["examples"][...]).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [e.id for e in whole.examples]


def test_exporting_with_numpy_formats_needs_neither_torch_nor_other_libraries(make_run, tmp_path):
    run = make_run().path
    code = (
        "import sys\n"
        "for name in ('torch', 'h5py', 'pyarrow', 'zarr', 'datasets', 'gguf'):\n"
        "    sys.modules[name] = None\n"
        "from actscope.core.errors import BadInputError\n"
        "from actscope.formats import export_run, import_run\n"
        f"for form in ('npz', 'npy', 'pickle', 'safetensors'):\n"
        f"    export_run({str(run)!r}, form, {str(tmp_path)!r} + '/' + form)\n"
        f"    import_run({str(tmp_path)!r} + '/' + form, form, {str(tmp_path)!r} + '/b' + form)\n"
        "for form in ('hdf5', 'parquet', 'zarr', 'datasets', 'saelens'):\n"
        f"    try: export_run({str(run)!r}, form, {str(tmp_path)!r} + '/' + form)\n"
        "    except BadInputError as error: assert 'pip install' in str(error), error\n"
        "    else: raise SystemExit(form)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
