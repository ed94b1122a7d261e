"""``actscope runs export | import | formats``."""

from __future__ import annotations

import numpy as np
import pytest

from actscope import ActivationExtractor, DatasetRunner, ShardStorage, open_run, wrap_model
from actscope.formats import FORMATS, read_directions
from actscope.testing.format_contract import same_runs
from actscope.testing.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model():
    return wrap_model(tiny_model("llama"), None, name="tiny")


@pytest.fixture
def run(model, tmp_path):
    extractor = ActivationExtractor(model, "all")
    runner = DatasetRunner([[3, 4], [5], [6, 7, 8]], 2, extractor, ShardStorage(tmp_path))
    runner.run(run_id="run")
    return tmp_path / "run"


@pytest.mark.parametrize("form", ["npz", "npy", "zarr", "pt", "datasets"])
def test_export_and_import(actscope_cli, run, tmp_path, form):
    out, back = tmp_path / "out", tmp_path / "back"
    done = actscope_cli("runs", "export", run, "--to", form, "--out", out)
    assert done.exit_code == 0, done.output
    assert "3 examples" in done.stdout
    done = actscope_cli("runs", "export", run, "--to", form, "--out", out)
    assert done.exit_code == 0 and "there already" in done.stdout
    done = actscope_cli("runs", "import", out, "--from", form, "--out", back)
    assert done.exit_code == 0, done.output
    assert "every tensor is as it was exported" in done.stdout
    same_runs(open_run(run), open_run(back))
    assert actscope_cli("runs", "verify", back).exit_code == 0


def test_sites_layers_and_options(actscope_cli, run, tmp_path):
    done = actscope_cli(
        "runs", "export", run, "--to", "saelens", "--layers", "-1", "--out", tmp_path / "out",
        "--option", "context-size=3",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "does not hold everything" in done.stderr
    done = actscope_cli("runs", "import", tmp_path / "out", "--from", "saelens", "--out",
                        tmp_path / "back")  # fmt: skip
    assert done.exit_code == 0, done.output
    last = open_run(run).sites[-1]
    found = open_run(tmp_path / "back").numpy(last)
    assert np.array_equal(found, open_run(run).numpy(last)[:6])


def test_directions(actscope_cli, run, tmp_path):
    out = tmp_path / "v.gguf"
    done = actscope_cli("runs", "export", run, "--to", "gguf", "--layers", "1", "--out", out)
    assert done.exit_code == 0, done.output
    expected = open_run(run).numpy("resid_post", 1).astype("f8").mean(axis=0)
    found = read_directions(out, "gguf")
    np.testing.assert_allclose(found.vectors[1], expected, rtol=1e-5)
    assert found.model_type == "llama"
    done = actscope_cli("runs", "export", run, "--to", "repeng", "--minus", run, "--out",
                        tmp_path / "zero.pt")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert not read_directions(tmp_path / "zero.pt", "repeng").vectors[1].any()


@pytest.mark.parametrize(("arguments", "says"), [
    (["--to", "npy", "--minus", "RUN"], "only directions take a second run"),
    (["--to", "gguf", "--sites", "ln_final"], "directions are of resid_post"),
    (["--to", "vllm"], "can only be imported"),
    (["--to", "npx"], "did you mean"),
    (["--to", "zarr", "--option", "chunk_rows"], "NAME=VALUE"),
    (["--to", "zarr", "--option", "chunks=3"], "did you mean"),
    (["--to", "csv"], "--pool"),
])  # fmt: skip
def test_what_cannot_be_done(actscope_cli, run, tmp_path, arguments, says):
    given = [str(run) if word == "RUN" else word for word in arguments]
    done = actscope_cli("runs", "export", run, *given, "--out", tmp_path / "out")
    assert done.exit_code == 2 and says in done.stderr, done.output
    assert not (tmp_path / "out").exists()


def test_bfloat16_that_becomes_float32_is_said(actscope_cli, tmp_path):
    import torch

    half = tiny_model("llama").to(torch.bfloat16)
    extractor = ActivationExtractor(wrap_model(half, None, name="tiny"), "all")
    DatasetRunner([[3, 4], [5]], 2, extractor, ShardStorage(tmp_path)).run(run_id="run")
    done = actscope_cli("runs", "export", tmp_path / "run", "--to", "npy", "--out", tmp_path / "o")
    assert done.exit_code == 0
    assert "no bfloat16" in done.stderr and "became float32" in done.stderr
    done = actscope_cli("runs", "export", tmp_path / "run", "--to", "pt", "--out", tmp_path / "p")
    assert "bfloat16" not in done.stderr


def test_the_list_of_formats(actscope_cli):
    done = actscope_cli("runs", "formats")
    assert done.exit_code == 0
    for name in FORMATS.names():
        assert name in done.stdout


def test_capturing_into_padded_layers(actscope_cli, model_folder, prompts, tmp_path):
    done = actscope_cli(
        "capture", "--model", model_folder, "--source", prompts, "--store", "npy_layers",
        "--max-length", "12", "--out", tmp_path / "r",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = open_run(tmp_path / "r")
    assert run.verify().ok and run.complete
    layer = np.load(tmp_path / "r" / "activations_layer_01.npy", mmap_mode="r")
    assert layer.shape[:2] == (6, 12)
    for i in range(6):
        rows = run.get("resid_post", 1, example=i).numpy()
        assert np.array_equal(layer[i, : len(rows)], rows) and not layer[i, len(rows) :].any()
    done = actscope_cli("capture", "--model", model_folder, "--source", prompts, "--store",
                        "pickle", "--out", tmp_path / "p")  # fmt: skip
    assert done.exit_code == 0 and open_run(tmp_path / "p").verify().ok
