"""Files that other programs wrote, made here with their own libraries."""

from __future__ import annotations

import gzip
import json
import pickle

import numpy as np
import pytest

from actscope.core.errors import BadInputError, DamagedRunError, OutputFolderError
from actscope.formats import import_run
from actscope.stores import open_run
from actscope.stores._records import dump_record

D = 5


def rng(seed=0):
    return np.random.default_rng(seed)


def back(source, form, tmp_path, **options):
    return open_run(import_run(source, form, tmp_path / "back", options=options).path)


@pytest.mark.parametrize("form", ["npz", "hdf5", "pickle", "pt", "safetensors", "npy"])
@pytest.mark.parametrize("shape", [(3, D), (3, 4, D)])
def test_arrays_that_are_called_after_sites(tmp_path, form, shape):
    import h5py
    import torch
    from safetensors.numpy import save_file

    x = rng().standard_normal(shape).astype(np.float32)
    arrays = {"blocks.3.resid_post": x, "blocks.3.hook_resid_pre": 2 * x}
    folder = tmp_path / "in"
    folder.mkdir()
    if form == "npz":
        np.savez(folder / "a.npz", **arrays)
    elif form == "pickle":
        (folder / "a.pkl").write_bytes(pickle.dumps(arrays, 4))
    elif form == "pt":
        torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, folder / "a.pt")
    elif form == "safetensors":
        save_file(arrays, folder / "a.safetensors")
    elif form == "hdf5":
        with h5py.File(folder / "a.h5", "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
    run = back(folder, form, tmp_path)
    assert run.spec is None and run.n_examples == 3 and run.verify().ok
    for i in range(3):
        assert np.array_equal(run.get("resid_post", 3, example=i).numpy(), x[i])
        assert np.array_equal(run.get("resid_pre", 3, example=i).numpy(), 2 * x[i])


@pytest.mark.parametrize("form", ["npz", "hdf5"])
def test_the_compressed_files_of_seed_000(tmp_path, form):
    """Compressed, one file a question, layers by number, texts beside the numbers."""
    import h5py

    folder = tmp_path / "activations"
    folder.mkdir()
    x = rng().standard_normal((2, 1, 9, D)).astype(np.float16)
    for i, rows in enumerate(x):
        if form == "npz":
            np.savez_compressed(folder / f"q_{i}.npz", layer_5=rows, layer_10=rows * 2)
            continue
        with h5py.File(folder / f"q_{i}.h5", "w") as file:
            file.create_dataset("hidden/layer_5", data=rows, compression="gzip", shuffle=True)
            file.create_dataset("hidden/layer_10", data=rows * 2, compression="lzf")
            file["response"] = "a text"
    run = back(folder, form, tmp_path, site="resid_post")
    assert run.layers == [5, 10] and run.n_examples == 2
    for i in range(2):
        assert np.array_equal(run.get("resid_post", 10, example=i).numpy(), x[i, 0] * 2)


def test_the_layers_of_seed_001(tmp_path):
    """``activations_layer_NN.npy``, ``[n, seq, d]`` float16."""
    layers = {n: rng(n).standard_normal((2, 3, D)).astype(np.float16) for n in (0, 31)}
    for n, array in layers.items():
        np.save(tmp_path / f"activations_layer_{n:02d}.npy", array)
    (tmp_path / "metadata.json").write_text("[]")
    run = back(tmp_path, "npy", tmp_path)
    assert run.layers == [0, 31]
    assert np.array_equal(run.get("resid_post", 31, example=1).numpy(), layers[31][1])


def test_nested_pickles_and_names_that_only_number_layers(tmp_path):
    x = rng().standard_normal((2, D))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"meta": {"q": "why"}, "layer_3": x}))
    with pytest.raises(BadInputError, match="site=resid_post"):
        back(tmp_path / "a.pkl", "pickle", tmp_path)
    run = back(tmp_path / "a.pkl", "pickle", tmp_path, site="mlp_out")
    assert np.array_equal(run.numpy("mlp_out", 3), x.astype(np.float32))
    assert run.stack("mlp_out", 3).dtype.itemsize == 8


@pytest.mark.parametrize("suffix", [".pkl.gz", ".pickle.gz"])
def test_pickles_that_gzip_packed(tmp_path, suffix):
    x = rng().standard_normal((3, D)).astype(np.float32)
    packed = gzip.compress(pickle.dumps({"blocks.3.resid_post": x, "note": "a text" * 1000}))
    (tmp_path / f"a{suffix}").write_bytes(packed)
    run = back(tmp_path / f"a{suffix}", "pickle", tmp_path)
    assert np.array_equal(run.numpy("resid_post", 3), x) and run.verify().ok


def test_another_import_into_the_same_run_is_refused(tmp_path, make_run):
    """Neither has a spec that would tell them apart, so their examples would be mixed."""
    from actscope.formats import Directions, export_run, write_directions

    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", **{"blocks.3.resid_post": np.ones((2, D), "f4")})
    run = back(tmp_path / "a.npz", "npz", tmp_path)
    with pytest.raises(OutputFolderError, match="another run"):
        back(tmp_path / "b.npz", "npz", tmp_path)
    write_directions(Directions({1: np.ones(D, "f4")}), "repeng", tmp_path / "v.pt")
    with pytest.raises(OutputFolderError, match="another run"):
        back(tmp_path / "v.pt", "repeng", tmp_path)
    export_run(run, "pt", tmp_path / "out")
    other = import_run(tmp_path / "b.npz", "npz", tmp_path / "other").path
    with pytest.raises(OutputFolderError, match="another run"):
        import_run(tmp_path / "out", "pt", other)
    assert len(open_run(tmp_path / "back")) == len(open_run(other)) == 2
    back(tmp_path / "a.npz", "npz", tmp_path)  # the same again is the same run


def test_parquet_and_datasets_of_others(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [rng(i).standard_normal((i + 1, D)).astype(np.float32) for i in range(3)]
    column = pa.array([r.tolist() for r in rows], pa.list_(pa.list_(pa.float32(), D)))
    ids = pa.array([[1], [1, 2], [1, 2, 3]])
    names = pa.array(["a", "b", "c"])
    table = pa.table({"blocks.0.hook_resid_post": column, "token_ids": ids, "id": names})
    pq.write_table(table, tmp_path / "a.parquet")
    run = back(tmp_path / "a.parquet", "parquet", tmp_path)
    assert [e.id for e in run.examples] == ["a", "b", "c"]
    for i, expected in enumerate(rows):
        assert np.array_equal(run.get("resid_post", 0, example=i).numpy(), expected)
        assert run.tokens(i).tolist() == list(range(1, i + 2))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dataset_that_saelens_wrote(tmp_path):
    """As its runner makes it: ``Dataset.from_dict`` with ``Array2D`` features, saved to disk."""
    import datasets

    datasets.disable_progress_bars()
    x = rng().standard_normal((4, 3, D)).astype(np.float32)
    ids = np.arange(12).reshape(4, 3)
    hook = "blocks.2.hook_mlp_out"
    features = datasets.Features(
        {
            hook: datasets.Array2D(shape=(3, D), dtype="float32"),
            "token_ids": datasets.List(datasets.Value("int32"), length=3),
        }
    )
    data = datasets.Dataset.from_dict({hook: x, "token_ids": ids}, features=features)
    data.save_to_disk(tmp_path / "in", num_shards=2)
    run = back(tmp_path / "in", "saelens", tmp_path)
    assert run.n_examples == 4 and len(run.units) == 2
    for i in range(4):
        assert np.array_equal(run.get("mlp_out", 2, example=i).numpy(), x[i])
        assert run.tokens(i).tolist() == ids[i].tolist()


# -- vLLM -------------------------------------------------------------------------------------


def vllm_files(folder, lengths, layers, *, early=False, dtype="float32"):
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    made = []
    for i, n in enumerate(lengths):
        x = torch.from_numpy(rng(i).standard_normal((n, layers, D)).astype("f4"))
        x = x.to(getattr(torch, dtype))
        made.append(x)
        hidden = x.transpose(0, 1).contiguous() if early else x
        save_file(
            {"hidden_states": hidden, "token_ids": torch.arange(n)},
            folder / f"cmpl-{i}.safetensors",
        )
    return made


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_requests(tmp_path, early, dtype):
    """An id L is what enters layer L: the output of block L - 1."""
    made = vllm_files(tmp_path / "in", [3, 5, 2], 3, early=early, dtype=dtype)
    run = back(tmp_path / "in", "vllm", tmp_path, layer_ids="0,2,12")
    assert [str(s) for s in run.sites] == [
        "blocks.0.resid_pre", "blocks.1.resid_post", "blocks.11.resid_post",
    ]  # fmt: skip
    assert [e.id for e in run.examples] == ["cmpl-0", "cmpl-1", "cmpl-2"]
    for i, hidden in enumerate(made):
        assert run.get("resid_post", 11, example=i).equal(hidden[:, 2])
        assert run.tokens(i).tolist() == list(range(len(hidden)))


def test_vllm_what_the_files_do_not_say_is_asked_for(tmp_path):
    vllm_files(tmp_path / "in", [3], 3)
    with pytest.raises(BadInputError, match="eagle_aux_hidden_state_layer_ids"):
        back(tmp_path / "in", "vllm", tmp_path)
    with pytest.raises(BadInputError, match="as many tokens as layers"):
        back(tmp_path / "in", "vllm", tmp_path, layer_ids="1,2,3")
    with pytest.raises(BadInputError, match="another shape"):
        back(tmp_path / "in", "vllm", tmp_path, layer_ids="1,2")
    with pytest.raises(BadInputError, match="layer_ids"):
        back(tmp_path / "in", "vllm", tmp_path, layer_ids="1,1,2")
    assert not (tmp_path / "back").exists()


def test_vllm_a_square_request_beside_another(tmp_path):
    made = vllm_files(tmp_path / "in", [3, 4], 3)
    run = back(tmp_path / "in", "vllm", tmp_path, layer_ids="1,2,3")
    assert run.get("resid_post", 1, example=0).equal(made[0][:, 1])


# -- one .pt a layer --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pooled", "padded", "list"])
def test_pt_layers(tmp_path, kind):
    import torch

    folder = tmp_path / "in"
    folder.mkdir()
    lengths = [2, 4, 1] if kind == "list" else [3, 3, 3]
    expected = {}
    for layer in (0, 10):
        x = [torch.from_numpy(rng(layer + n).standard_normal((n, D))) for n in lengths]
        if kind == "pooled":
            x = [rows[0] for rows in x]
        expected[layer] = x
        torch.save(x if kind == "list" else torch.stack(x), folder / f"layer_{layer}.pt")
    run = back(folder, "pt_layers", tmp_path, site="resid_post")
    assert run.layers == [0, 10]
    for layer, rows in expected.items():
        for i in range(3):
            assert run.get("resid_post", layer, example=i).equal(rows[i])


def test_pt_layers_that_do_not_fit_together(tmp_path):
    import torch

    torch.save(torch.zeros(2, D), tmp_path / "layer_0.pt")
    with pytest.raises(BadInputError, match="--option site"):
        back(tmp_path, "pt_layers", tmp_path)
    torch.save(torch.zeros(3, D), tmp_path / "layer_1.pt")
    with pytest.raises(BadInputError, match="other examples or rows"):
        back(tmp_path, "pt_layers", tmp_path, site="resid_post")
    torch.save({"x": torch.zeros(3, D)}, tmp_path / "layer_1.pt")
    with pytest.raises(DamagedRunError, match="neither a tensor"):
        back(tmp_path, "pt_layers", tmp_path, site="resid_post")
    torch.save(torch.zeros(3, D), tmp_path / "weights.pt")
    (tmp_path / "layer_1.pt").unlink()
    with pytest.raises(BadInputError, match="called after no layer"):
        back(tmp_path, "pt_layers", tmp_path, site="resid_post")


# -- nothing there -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["npz", "hdf5", "npy", "parquet", "datasets", "zarr", "csv"])
def test_a_folder_without_such_files(tmp_path, form):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("x")
    with pytest.raises(BadInputError):
        back(tmp_path / "in", form, tmp_path)
    with pytest.raises(BadInputError, match="no such file"):
        back(tmp_path / "none", form, tmp_path)
    assert not (tmp_path / "back").exists()


def test_an_export_of_another_format(tmp_path, make_run):
    from actscope.formats import export_run

    export_run(make_run(), "npz", tmp_path / "out")
    with pytest.raises(BadInputError, match="--from npz"):
        back(tmp_path / "out", "npy", tmp_path)
    path = tmp_path / "out" / "actscope.json"
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k != "digest"}
    path.write_bytes(dump_record({**manifest, "version": 99}))
    with pytest.raises(BadInputError, match="newer actscope"):
        back(tmp_path / "out", "npz", tmp_path)
