"""Nothing that is opened runs code, leaves its folder or takes all memory; refusals are clear."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest
from hostile_files import CORPUS, Calls, command

from actscope.core.errors import ActscopeError, BadInputError
from actscope.core.provenance import sha256_text
from actscope.formats import export_run, import_run
from actscope.stores import PickleStorage, open_run, verify_run
from actscope.stores._records import dump_record
from actscope.testing.store_contract import sample_batch

OPTIONS = {"vllm": {"layer_ids": "1,2"}, "pt_layers": {"site": "resid_post"}}


def test_the_corpus_is_large():
    assert len(CORPUS) >= 40
    assert len({name for name, _, _ in CORPUS}) == len(CORPUS)


@pytest.fixture
def little_memory():
    """Fail rather than allocate gigabytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(("name", "form", "write"), CORPUS, ids=[name for name, _, _ in CORPUS])
def test_refused_without_running_anything(tmp_path, little_memory, name, form, write):
    folder = tmp_path / "in"
    folder.mkdir()
    sentinel = tmp_path / "code-was-run"
    source = write(folder, sentinel)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ActscopeError) as caught:
        import_run(source, form, tmp_path / "out" / "run", options=OPTIONS.get(form))
    assert not sentinel.exists()
    assert caught.value.next_step or caught.value.expected, str(caught.value)
    assert len(str(caught.value)) < 2000
    assert set(tmp_path.rglob("*")) == before, "it left something behind"


ONE_A_FORMAT = list({form: (name, form, write) for name, form, write in CORPUS}.values())


@pytest.mark.parametrize(("name", "form", "write"), ONE_A_FORMAT)
def test_the_command_says_what_to_do(tmp_path, name, form, write):
    """Exit code 1 or 2, no traceback."""
    from click.testing import CliRunner

    from actscope.cli.main import main

    folder = tmp_path / "in"
    folder.mkdir()
    source = write(folder, tmp_path / "code-was-run")
    given = [f"--option={k}={v}" for k, v in OPTIONS.get(form, {}).items()]
    arguments = ["runs", "import", str(source), "--from", form, "--out", str(tmp_path / "r")]
    done = CliRunner().invoke(main, [*arguments, *given])
    assert done.exit_code in (1, 2) and "Traceback" not in done.output
    assert not (tmp_path / "code-was-run").exists()


# -- exports that were tampered with --------------------------------------------------------------


def tampered(make_run, tmp_path, form="npz"):
    export_run(make_run(), form, tmp_path / "out")
    return tmp_path / "out"


def refused_or_right(out, form, tmp_path):
    """The digests were forged too: what comes in may only be what was exported."""
    try:
        back = import_run(out, form, tmp_path / "back")
    except ActscopeError as error:
        assert error.next_step or error.expected
        return
    run = open_run(back.path)
    expected = sample_batch(0, 10).arrays
    assert all(np.array_equal(run.numpy(site), expected[site]) for site in run.sites)


@pytest.mark.parametrize("field", ["to", "sites", "units", "spec", "plan"])
@pytest.mark.parametrize("value", ["../../x", 1 << 60, {"a": {}}])
def test_a_manifest_that_lies(make_run, tmp_path, field, value):
    out = tampered(make_run, tmp_path)
    manifest = json.loads((out / "actscope.json").read_text())
    del manifest["digest"]
    (out / "actscope.json").write_bytes(dump_record({**manifest, field: value}))
    refused_or_right(out, "npz", tmp_path)


@pytest.mark.parametrize(("field", "value"), [
    ("unit", "../../up"), ("shapes", {"ln_final": [1 << 40, 1 << 40]}), ("shapes", {"x": [-1]}),
    ("dtypes", {"ln_final": "object"}), ("dtypes", {"ln_final": "O"}), ("dtypes", {}),
    ("sites", [{"kind": "module", "layer": None, "path": "../../x", "pooled": False}]),
    ("sites", [{"kind": "nothing"}]), ("xxh3", {}), ("ends", {"rows.offsets": -5}), ("marks", None),
])  # fmt: skip
@pytest.mark.parametrize("form", ["npz", "npy"])
def test_a_line_of_a_unit_that_lies(make_run, tmp_path, form, field, value):
    out = tampered(make_run, tmp_path, form)
    lines = (out / "actscope.units.jsonl").read_text().splitlines()
    data = json.loads(lines[1])["unit"]
    data[field] = {**data[field], **value} if isinstance(value, dict) and value else value
    text = json.dumps(data)
    lines[1] = f'{{"sha256": "{sha256_text(text)}", "unit": {text}}}'
    (out / "actscope.units.jsonl").write_text("\n".join(lines) + "\n")
    refused_or_right(out, form, tmp_path)
    assert not list(tmp_path.parent.glob("up*"))


def test_a_manifest_that_is_a_bomb(make_run, tmp_path):
    out = tampered(make_run, tmp_path)
    (out / "actscope.json").write_text('{"a":' * 100_000)
    with pytest.raises(ActscopeError, match="not as it was written"):
        import_run(out, "npz", tmp_path / "back")
    (out / "actscope.units.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(ActscopeError):
        import_run(out, "npz", tmp_path / "back")


@pytest.mark.parametrize("change", ["codecs", "zarr_format", "storage_transformers", "shape"])
def test_zarr_metadata_that_asks_for_more(make_run, tmp_path, change):
    out = tampered(make_run, tmp_path, "zarr")
    path = out / "activations.zarr" / "ln_final" / "zarr.json"
    data = json.loads(path.read_text())
    data[change] = {
        "codecs": [{"name": "numcodecs.pickle", "configuration": {}}],
        "zarr_format": 2,
        "storage_transformers": [{"name": "evil"}],
        "shape": [1 << 40, 5],
    }[change]
    path.write_text(json.dumps(data))
    with pytest.raises(ActscopeError, match="not the Zarr array"):
        import_run(out, "zarr", tmp_path / "back")


def test_a_run_whose_units_are_hostile_pickles(tmp_path):
    """The store's own reader is the plain one, whatever lies in the run's folder."""
    writer = PickleStorage(tmp_path).open_run("r")
    writer.append("u", sample_batch(0, 4), {})
    (unit,) = (writer.path / "units").iterdir()
    size = unit.stat().st_size
    evil = pickle.dumps(Calls(os.system, command(tmp_path / "code-was-run")))
    unit.write_bytes(evil + b"\0" * (size - len(evil)))
    with pytest.raises(ActscopeError, match="no pickle of plain containers"):
        open_run(writer.path).numpy("ln_final")
    assert not verify_run(writer.path).ok
    assert not (tmp_path / "code-was-run").exists()


def test_formulas_stay_text_in_a_spreadsheet(tmp_path, make_run):
    from dataclasses import replace

    from actscope.stores import ShardStorage

    batch = sample_batch(0, 4, pooled=True)
    names = ["=1+1", "+A1", "-2", "@SUM(A1)"]
    records = tuple(replace(r, id=n) for r, n in zip(batch.examples, names, strict=True))
    writer = ShardStorage(tmp_path).open_run("r")
    writer.append("u", replace(batch, examples=records), {})
    export_run(writer.path, "csv", tmp_path / "out")
    lines = (tmp_path / "out" / "ln_final.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["'" + name for name in names]
    back = open_run(import_run(tmp_path / "out", "csv", tmp_path / "back").path)
    assert [record.id for record in back.examples] == names


def test_no_reader_unpickles():
    """No file of the package calls an unpickler, an unsafe loader or an evaluator."""
    code = (
        "import ast, pathlib, actscope\n"
        "bad = {'pickle.load', 'pickle.loads', 'pickle.Unpickler', 'yaml.load', 'eval', 'exec'}\n"
        "for path in pathlib.Path(actscope.__file__).parent.rglob('*.py'):\n"
        "    for node in ast.walk(ast.parse(path.read_text())):\n"
        "        if isinstance(node, ast.Call) and ast.unparse(node.func) in bad:\n"
        "            raise SystemExit(f'{path}:{node.lineno}')\n"
        "        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'torch.load':\n"
        "            assert any(k.arg == 'weights_only' for k in node.keywords), path\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_format_names_the_known_ones(make_run, tmp_path):
    with pytest.raises(BadInputError, match=r"did you mean 'parquet'\?"):
        export_run(make_run(), "parket", tmp_path / "out")


ARMED = {
    "os_system": pickle.load,
    "os_system_protocol_0": pickle.load,
    "os_system_protocol_2_inside_a_dictionary": pickle.load,
    "builtins_eval": pickle.load,
    "instance_opcode": pickle.load,
    "object_opcode": pickle.load,
    "numpy_object_array": pickle.load,
    "torch_legacy_pickle": pickle.load,
    "npy_object_array": lambda file: np.load(file, allow_pickle=True),
    "npz_object_array": lambda file: dict(np.load(file, allow_pickle=True)),
}


@pytest.mark.parametrize("name", ARMED)
def test_the_corpus_is_armed(tmp_path, name):
    """What is refused above does run code where a trusting reader opens it."""
    (write,) = [write for found, _, write in CORPUS if found == name]
    with write(tmp_path, tmp_path / "code-was-run").open("rb") as file:
        ARMED[name](file)
    assert (tmp_path / "code-was-run").exists()
