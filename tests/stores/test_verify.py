"""Every changed byte is found, named, and never returned as data."""

from __future__ import annotations

import shutil

import pytest
from written_runs import wrong_numbers

from actscope.core.errors import BadInputError, DamagedRunError
from actscope.core.spec import unit_id
from actscope.stores import ShardStorage, list_runs, open_run, repair_run, sweep, verify_run
from actscope.testing.store_contract import PLAN, SITES, SPEC, sample_batch

UNITS = [(0, 4), (4, 8), (8, 10)]
WHOLE = sample_batch(0, 10)


def write(storage, run_id="r", units=UNITS, spec=SPEC, **options):
    writer = storage.open_run(run_id, spec, PLAN)
    for start, stop in units:
        writer.append(unit_id(start, stop), sample_batch(start, stop, **options), {})
    return writer.path


@pytest.fixture
def path(tmp_path):
    return write(ShardStorage(tmp_path))


def the_shard(path, unit=(0, 4)):
    (found,) = (path / "shards").glob(unit_id(*unit) + "*")
    return found


def test_every_bit_of_run_json_counts(path):
    file = path / "run.json"
    before = file.read_bytes()
    for at in range(len(before)):
        file.write_bytes(before[:at] + bytes([before[at] ^ 1 << at % 8]) + before[at + 1 :])
        with pytest.raises(DamagedRunError, match=r"run\.json"):
            open_run(path)


def test_a_damaged_tensor_is_named_and_the_others_still_read(path):
    shard = the_shard(path)
    data = bytearray(shard.read_bytes())
    rows = sample_batch(0, 4).arrays[SITES[1]].tobytes()
    data[data.index(rows) + 7] ^= 4
    shard.write_bytes(data)
    report = open_run(path).verify()
    assert [(p.tensor, p.file) for p in report.problems] == [
        ("blocks.3.resid_post", f"shards/{shard.name}")
    ]
    run = open_run(path)
    with pytest.raises(DamagedRunError, match=r"blocks\.3\.resid_post.*" + shard.name):
        run.get("resid_post", 3, example=0)
    assert run.get("resid_post", 0, example=0).shape == (1, 5)
    assert run.get("resid_post", 3, example=9).shape == (2, 5)


def test_a_missing_shard_is_named(path):
    shard = the_shard(path)
    shard.unlink()
    (problem,) = verify_run(path).problems
    assert shard.name in str(problem) and "missing" in str(problem)
    with pytest.raises(DamagedRunError, match=f"{shard.name} is missing"):
        open_run(path).get("ln_final", example=1)


def test_swapped_shards_are_found(path):
    one, two = the_shard(path), the_shard(path, (4, 8))
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    assert {p.file for p in verify_run(path).problems} == {
        f"shards/{one.name}",
        f"shards/{two.name}",
    }
    assert not wrong_numbers(path, WHOLE)


def test_a_unit_of_another_run_of_equal_shape_is_found(tmp_path, path):
    other = write(ShardStorage(tmp_path), "other", spec={**SPEC, "dataset": "e" * 64})
    for folder in ("shards", "commits"):
        shutil.rmtree(path / folder)
        shutil.copytree(other / folder, path / folder)
    report = verify_run(path)
    assert len(report.problems) == 3 and "another spec" in str(report.problems[0])
    with pytest.raises(DamagedRunError, match="another spec"):
        _ = open_run(path).n_examples


def test_a_renamed_commit_record_is_found(path):
    commits = path / "commits"
    (commits / f"{unit_id(0, 4)}.json").rename(commits / f"{unit_id(1, 4)}.json")
    (problem,) = verify_run(path).problems
    assert "another unit" in problem.what


def test_a_lost_run_json_is_said_and_not_written_anew(tmp_path, path):
    (path / "run.json").unlink()
    with pytest.raises(DamagedRunError, match=r"run\.json is missing"):
        open_run(path)
    with pytest.raises(DamagedRunError, match=r"run\.json is missing"):
        ShardStorage(tmp_path).open_run("r", SPEC, PLAN)
    assert not verify_run(path).ok


def test_a_damaged_run_json_is_not_resumed(tmp_path, path):
    file = path / "run.json"
    file.write_bytes(file.read_bytes().replace(b"native", b"nativf"))
    with pytest.raises(DamagedRunError, match="digest"):
        ShardStorage(tmp_path).open_run("r", SPEC, PLAN)


def test_the_list_of_runs(tmp_path, path):
    storage = ShardStorage(tmp_path)
    write(storage, "group/partial", UNITS[:1])
    damaged = write(storage, "damaged")
    the_shard(damaged).unlink()
    broken = write(storage, "broken")
    (broken / "run.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    rows = {row.path.name: row for row in list_runs(tmp_path)}
    assert {name: row.state for name, row in rows.items()} == {
        "r": "complete",
        "partial": "partial",
        "damaged": "damaged",
        "broken": "damaged",
    }
    assert (rows["r"].n_units, rows["r"].n_planned, rows["r"].n_examples) == (3, 3, 10)
    assert rows["partial"].n_examples == 4 and rows["r"].model == "none"
    assert "missing" in rows["damaged"].problem and rows["r"].bytes > 0
    assert [row.path for row in list_runs(path)] == [path]
    assert list_runs(tmp_path / "nowhere") == []


def test_repair_takes_damaged_units_back(tmp_path, path):
    shard = the_shard(path)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert not repair_run(path).ok
    run = open_run(path)
    assert run.pending == (unit_id(0, 4),) and run.verify().ok
    assert [p.name for p in (path / "damaged").iterdir()] == [unit_id(0, 4) + ".json"]
    write(ShardStorage(tmp_path))
    assert open_run(path).complete and verify_run(path).ok and not wrong_numbers(path, WHOLE)
    assert repair_run(path).ok


def test_sweep_removes_what_killed_writers_left_and_nothing_else(path):
    stray = path / "shards" / "000000000-000000004-0123456789abcdef.safetensors"
    temp = path / "commits" / ".tmp-commit-1-ab"
    stray.write_bytes(b"x")
    temp.write_bytes(b"x")
    assert sorted(verify_run(path).leftovers) == [
        "commits/.tmp-commit-1-ab",
        f"shards/{stray.name}",
    ]
    assert verify_run(path).ok and sweep(path) == []  # a writer may own a fresh file
    assert sorted(sweep(path, older_than=0)) == sorted([stray, temp])
    assert verify_run(path).leftovers == [] and open_run(path).complete


def test_there_is_no_run(tmp_path, path):
    with pytest.raises(BadInputError, match="no run at"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="did you mean"):
        open_run(tmp_path)


def test_a_run_of_a_later_version_is_not_guessed_at(path, monkeypatch):
    from actscope.stores import _records

    monkeypatch.setattr(_records, "FORMAT_VERSION", 0)
    with pytest.raises(BadInputError, match="newer actscope"):
        open_run(path)


def test_sweep_leaves_what_no_writer_made(tmp_path):
    """People put plots, notes and exports beside the data of a run."""
    path = write(ShardStorage(tmp_path))
    kept = [path / "plots" / "a.png", path / "shards" / "notes.txt", path / "notes.md"]
    kept += [path / "export" / ".tmp-mine", path / "deep" / "er" / "x.safetensors"]
    for file in kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    stray = path / "shards" / "stray-0.safetensors"
    stray.write_bytes(b"x")
    assert verify_run(path).leftovers == ["shards/stray-0.safetensors"]
    assert sweep(path, older_than=0) == [stray]
    assert all(file.is_file() for file in kept)


def test_no_run_is_neither_whole_nor_damaged(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        for function in (verify_run, repair_run):
            with pytest.raises(BadInputError, match="no run"):
                function(folder)
    assert not (tmp_path / "nothing").exists()


def test_sweep_does_not_follow_a_link_out_of_the_run(tmp_path):
    path = write(ShardStorage(tmp_path))
    outside = tmp_path / "outside"
    (path / "shards").rename(outside)
    (path / "shards").symlink_to(outside)
    stray = outside / "stray-0.safetensors"
    stray.write_bytes(b"x")
    assert sweep(path, older_than=0) == [] and stray.is_file()
