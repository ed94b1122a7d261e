"""Files that are lost, altered or left behind are noticed, and never turned into zeros."""

import json
from dataclasses import replace

import numpy as np
import pytest

import actscope
from actscope.core.errors import DamagedRunError
from actscope.studies.introspection.collect import collect, dry_run
from actscope.studies.introspection.data import open_collection
from actscope.studies.introspection.inspection import inspect_pass
from actscope.studies.introspection.merging import merge
from actscope.studies.introspection.params import CollectParams
from actscope.studies.introspection.passes import PASSES


@pytest.fixture(scope="module")
def model():
    return actscope.load_model("demo")


@pytest.fixture
def params(model, tmp_path):
    """A collection of three units, on the disk."""
    found = CollectParams(tmp_path / "run", num_questions=6, unit_size=2)
    collect(model, found)
    return found


def rows_of(params, folder):
    return json.loads((params.output_dir / folder / "metadata.json").read_text())


def alter(params, start, change):
    """Change the rows of the unit that begins at a question."""
    [path] = (params.output_dir / "units").glob(f"{start:09d}-*.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_lost_layer_file_is_not_made_anew_as_zeros(model, params):
    lost = params.output_dir / "self_conf" / "activations_layer_02.npy"
    lost.unlink()
    with pytest.raises(DamagedRunError, match=r"activations_layer_02\.npy is missing") as error:
        collect(model, params)
    assert "put it back" in str(error.value)
    assert not lost.exists()


def test_metadata_is_that_of_all_units_after_a_stop_a_finish_and_a_kill(model, params):
    """Ctrl-C wrote metadata.json of two units; a kill came after the last unit's record."""
    whole = {which.folder: rows_of(params, which.folder) for which in PASSES}
    for folder, rows in whole.items():
        (params.output_dir / folder / "metadata.json").write_text(json.dumps(rows[:4]))
    done = collect(model, params)
    assert (done.captured, done.resumed) == (0, 6)
    for folder, rows in whole.items():
        assert len(rows) == 6 and rows_of(params, folder) == rows


def test_a_dry_run_times_what_is_missing(model, params):
    assert dry_run(model, params).seconds is None
    whole = dry_run(model, replace(params, output_dir=params.output_dir.with_name("new")))
    assert whole.seconds is not None and whole.done == 0
    (params.output_dir / "units" / "000000002-000000004.json").unlink()
    part = dry_run(model, params)
    assert (part.done, part.units) == (2, 3) and part.seconds is not None
    assert part.to_write * 3 == part.total_bytes == whole.to_write


def test_altered_activations_are_found(model, params):
    whole = open_collection(params.output_dir)[0]
    assert inspect_pass(whole, whole["mcq"]).problems == []
    mapped = np.load(params.output_dir / "mcq" / "activations_layer_03.npy", mmap_mode="r+")
    mapped[3, -2, 7] += np.float16(0.25)
    mapped.flush()
    broken = open_collection(params.output_dir)[0]
    found = inspect_pass(broken, broken["mcq"])
    assert [state.layer for state in found.layers if state.altered] == [3]
    [said] = found.problems
    assert said == "layer 3 has 1 units whose bytes are not those that were written"
    assert inspect_pass(broken, broken["other_confidence"]).problems == []


def test_a_merged_collection_has_checksums_too(model, tmp_path):
    for name, offset in (("a", 0), ("b", 3)):
        collect(model, CollectParams(tmp_path / name, offset=offset, num_questions=3))
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    whole = open_collection(tmp_path / "all")[0]
    assert inspect_pass(whole, whole["mcq"]).problems == []
    mapped = np.load(tmp_path / "all" / "mcq" / "activations_layer_01.npy", mmap_mode="r+")
    mapped[5, -1, 0] += np.float16(0.25)
    mapped.flush()
    [said] = inspect_pass(open_collection(tmp_path / "all")[0], whole["mcq"]).problems
    assert "layer 1 has 1 units" in said


@pytest.mark.parametrize("field", ["entropy", "logits", "correct_answer_letter", "is_correct"])
def test_rows_without_a_field_are_counted(params, field):
    alter(params, 2, lambda record: record["rows"]["mcq"][0].pop(field))
    broken = open_collection(params.output_dir)[0]
    said = inspect_pass(broken, broken["mcq"]).problems
    assert f"1 rows lack {field}" in said, said


def test_numbers_that_are_not_finite_are_counted(params):
    def spoil(record):
        for row in record["rows"]["self_conf"]:
            row["self_confidence"] = row["entropy"] = float("nan")

    for start in (0, 2, 4):
        alter(params, start, spoil)
    broken = open_collection(params.output_dir)[0]
    found = inspect_pass(broken, broken["self_confidence"])
    assert "6 rows have entropy not finite" in found.problems
    assert "6 rows have self_confidence not finite" in found.problems
    assert found.stated is None and found.entropy == ()


def test_questions_that_are_asked_twice_under_two_ids_are_named(model, tmp_path):
    rows = [
        {"id": f"q{i}", "question": text, "correct": "x", "distractors": ["y", "z", "w"]}
        for i, text in enumerate(["Which town?", "Who was it?", "which  town?"])
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    collect(model, CollectParams(tmp_path / "run", dataset=str(tmp_path / "q.jsonl")))
    whole = open_collection(tmp_path / "run")[0]
    found = inspect_pass(whole, whole["mcq"])
    assert found.duplicates == {}
    assert found.repeated == (("q0", "q2"),)
    assert found.problems == ["the questions q0, q2 have the same text"]


def test_a_configuration_or_record_that_is_not_whole_is_damaged(model, params):
    path = params.output_dir / "run_config.json"
    whole = path.read_text()
    config = json.loads(whole)
    del config["plan"], config["seq_len"]
    path.write_text(json.dumps(config))
    for use in (lambda: open_collection(params.output_dir), lambda: collect(model, params)):
        with pytest.raises(DamagedRunError, match="is not whole") as error:
            use()
        assert "no seq_len, plan" in str(error.value)
    path.write_text(whole)
    alter(params, 2, lambda record: record.pop("rows"))
    with pytest.raises(DamagedRunError, match=r"000000002-000000004\.json is not whole"):
        open_collection(params.output_dir)


def test_a_pass_is_opened_from_inside_its_folder(params, monkeypatch):
    monkeypatch.chdir(params.output_dir / "other_conf")
    for name in (".", "../other_conf", "../other_conf/."):
        found, chosen = open_collection(name)
        assert chosen is not None and chosen.name == "other_confidence"
        assert len(found["mcq"]) == 6
