"""Directions: means of runs, and the files of steering tools, read by their own readers."""

from __future__ import annotations

import numpy as np
import pytest

from actscope.core.errors import BadInputError, DamagedRunError, OutputFolderError
from actscope.core.spec import unit_id
from actscope.formats import (
    Directions,
    directions_of_run,
    export_directions,
    import_run,
    read_directions,
    write_directions,
)
from actscope.stores import ShardStorage, open_run
from actscope.testing.store_contract import PLAN, SITES, SPEC, sample_batch

NAMES = ["gguf", "repeng", "steering_vectors"]


@pytest.fixture
def directions():
    rng = np.random.default_rng(0)
    vectors = {layer: rng.standard_normal(8).astype(np.float32) for layer in (1, 2, 31)}
    return Directions(vectors, "llama")


@pytest.mark.parametrize("name", NAMES)
def test_directions_come_back(directions, tmp_path, name):
    path = tmp_path / f"v.{name}"
    write_directions(directions, name, path)
    again = read_directions(path, name)
    assert again.vectors.keys() == directions.vectors.keys()
    for layer, vector in directions.vectors.items():
        assert again.vectors[layer].tobytes() == vector.tobytes()
    assert again.model_type == ("" if name == "steering_vectors" else "llama")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(OutputFolderError, match="in the way"):
        write_directions(directions, name, path)
    run = open_run(import_run(path, name, tmp_path / "run").path)
    assert run.layers == [1, 2, 31] and run.n_examples == 1
    assert np.array_equal(run.get("resid_post", 31, example=0).numpy(), directions.vectors[31])


def test_gguf_by_its_reader(directions, tmp_path):
    """The fields and names that llama.cpp and repeng look for."""
    import gguf

    write_directions(directions, "gguf", tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    texts = {
        name: str(bytes(reader.get_field(name).parts[-1]), "utf-8")
        for name in ("general.architecture", "controlvector.model_hint")
    }
    assert texts == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
    }
    assert int(reader.get_field("controlvector.layer_count").parts[-1][0]) == 31
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert found.keys() == {"direction.1", "direction.2", "direction.31"}
    for layer, vector in directions.vectors.items():
        assert found[f"direction.{layer}"].dtype == np.float32
        assert np.array_equal(found[f"direction.{layer}"], vector)


def test_layer_0_has_no_gguf(directions, tmp_path):
    with pytest.raises(BadInputError, match="--layers"):
        write_directions(Directions({0: np.ones(3, "f4")}), "gguf", tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_the_dictionaries_by_torch(directions, tmp_path):
    import torch

    write_directions(directions, "steering_vectors", tmp_path / "s.pt")
    data = torch.load(tmp_path / "s.pt", weights_only=True)
    assert data.keys() == {"layer_activations", "layer_type"}
    assert data["layer_type"] == "decoder_block"
    assert data["layer_activations"][31].equal(torch.from_numpy(directions.vectors[31]))
    write_directions(directions, "repeng", tmp_path / "r.pt")
    data = torch.load(tmp_path / "r.pt", weights_only=True)
    assert data["model_type"] == "llama"
    assert np.array_equal(data["directions"][2].numpy(), directions.vectors[2])


@pytest.mark.parametrize("pooled", [False, True])
def test_the_direction_of_a_run_is_its_mean(make_run, tmp_path, pooled):
    run, other = make_run("a", pooled=pooled), make_run("b", pooled=pooled, seed=1)
    means = [
        sample_batch(0, 10, pooled=pooled, seed=seed).arrays[SITES[1]].astype("f8").mean(axis=0)
        for seed in (0, 1)
    ]
    found = directions_of_run(run, layers="3")
    assert list(found.vectors) == [3]
    np.testing.assert_allclose(found.vectors[3], means[0], rtol=1e-6)
    found = export_directions(run.path, "gguf", tmp_path / "v.gguf", layers=[3], minus=other)
    np.testing.assert_allclose(found.vectors[3], means[0] - means[1], rtol=1e-5, atol=1e-7)
    assert np.array_equal(read_directions(tmp_path / "v.gguf", "gguf").vectors[3], found.vectors[3])


def test_what_is_no_direction(tmp_path, make_run):
    import torch

    with pytest.raises(BadInputError, match="one width"):
        Directions({1: np.ones(3, "f4"), 2: np.ones(4, "f4")})
    with pytest.raises(BadInputError, match="not finite"):
        Directions({1: np.array([np.nan], "f4")})
    with pytest.raises(BadInputError, match="one vector a layer"):
        Directions({})
    with pytest.raises(BadInputError, match="not directions"):
        export_directions(make_run(), "npz", tmp_path / "v")
    torch.save({"layer_activations": {1: torch.ones(2)}, "layer_type": "mlp"}, tmp_path / "v.pt")
    with pytest.raises(BadInputError, match="another part"):
        read_directions(tmp_path / "v.pt", "steering_vectors")
    torch.save([1], tmp_path / "w.pt")
    with pytest.raises(DamagedRunError, match="no directions"):
        read_directions(tmp_path / "w.pt", "repeng")
    with pytest.raises(BadInputError, match="no such file"):
        read_directions(tmp_path / "x.pt", "repeng")


def test_a_direction_of_half_a_run_is_refused(make_run, tmp_path):
    whole = make_run("whole")
    with ShardStorage(tmp_path).open_run("half", SPEC, PLAN) as writer:
        writer.append(unit_id(0, 4), sample_batch(0, 4), {})
    half = tmp_path / "half"
    for run, minus in ((half, None), (whole, half)):
        with pytest.raises(BadInputError, match="not complete"):
            export_directions(run, "repeng", tmp_path / "v.pt", minus=minus)
    assert not (tmp_path / "v.pt").exists()
