"""``actscope runs``: what it lists, shows and verifies."""

import pytest

from actscope import ActivationExtractor, DatasetRunner, ShardStorage, wrap_model
from actscope.capture import CaptureOptions
from actscope.testing.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model():
    return wrap_model(tiny_model("llama"), None, name="tiny")


@pytest.fixture
def folder(model, tmp_path):
    """Two runs, one of them with a failure, in two units."""
    options = CaptureOptions(unit_size=2, on_too_long="skip", max_length=5)
    runner = DatasetRunner(
        [[3, 4], [5], [6] * 9], None, ActivationExtractor(model, "all"), ShardStorage(tmp_path),
        options=options,
    )  # fmt: skip
    runner.run(run_id="a")
    DatasetRunner([[3]], 4, ActivationExtractor(model), ShardStorage(tmp_path)).run(run_id="b")
    return tmp_path


def test_list(actscope_cli, folder):
    done = actscope_cli("runs", "list", folder)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines() if str(folder) in line]
    assert [line[0].rpartition("/")[2] for line in lines] == ["a", "b"]
    assert lines[0][1:6] == ["complete", "tiny", "2", "1", "2/2"]
    (folder / "empty").mkdir()
    assert "no runs" in actscope_cli("runs", "list", folder / "empty").output
    assert actscope_cli("runs", "list", folder / "none").exit_code == 2


def test_show(actscope_cli, folder):
    done = actscope_cli("runs", "show", folder / "a")
    assert done.exit_code == 0, done.output
    for text in ("complete", "2 captured, 1 failed", "blocks.2.resid_post", "too_long", "tiny"):
        assert text in done.stdout
    done = actscope_cli("runs", "show", folder)
    assert done.exit_code == 2
    assert "there is no run" in done.stderr


def test_verify(actscope_cli, folder):
    done = actscope_cli("runs", "verify", folder / "a", folder / "b")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("whole") == 2
    shard = next((folder / "a").rglob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    done = actscope_cli("runs", "verify", folder / "b", folder / "a")
    assert done.exit_code == 1
    assert shard.name in done.stderr
    assert f"actscope runs repair {folder / 'a'}" in done.stderr
    assert done.stdout.count("whole") == 1
    assert actscope_cli("runs", "verify", folder).exit_code == 2
    assert actscope_cli("runs", "verify").exit_code == 2


def test_verify_with_a_damaged_head(actscope_cli, folder):
    head = folder / "a" / "run.json"
    head.write_bytes(head.read_bytes().replace(b"tiny", b"huge"))
    done = actscope_cli("runs", "verify", folder / "a")
    assert done.exit_code == 1
    assert "run.json" in done.stderr
    done = actscope_cli("runs", "list", folder)
    assert "damaged" in done.stdout
    assert actscope_cli("runs", "show", folder / "a").exit_code == 1


def test_repair_takes_back_a_damaged_unit_and_resume_captures_it_again(
    actscope_cli, model_folder, tmp_path
):
    out = tmp_path / "r"
    command = ("capture", "--model", model_folder, "--unit-size", "1", "--out", out)
    command += ("--prompt", "w1 w2", "--prompt", "w3", "--prompt", "w4 w5 w6")
    assert actscope_cli(*command).exit_code == 0
    shards = {p.name: p.read_bytes() for p in (out / "shards").iterdir()}
    assert "nothing to repair" in actscope_cli("runs", "repair", out).stdout
    broken = sorted((out / "shards").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:-3])
    done = actscope_cli("runs", "repair", out)
    assert done.exit_code == 0, done.output
    assert "1 unit taken back" in done.stdout
    assert broken.name in done.stderr
    again = actscope_cli(*command)
    assert "captured        1 example," in again.output
    assert actscope_cli("runs", "verify", out).exit_code == 0
    assert {p.name: p.read_bytes() for p in (out / "shards").iterdir()} == shards


def test_repair_of_a_damaged_head_says_that_it_cannot(actscope_cli, folder):
    head = folder / "a" / "run.json"
    head.write_bytes(head.read_bytes().replace(b"tiny", b"huge"))
    done = actscope_cli("runs", "repair", folder / "a")
    assert done.exit_code == 1
    assert "cannot be repaired" in done.stderr


def test_show_gives_no_norms_of_a_pattern(tmp_path):
    from click.testing import CliRunner

    from actscope.cli.main import main

    out = str(tmp_path / "run")
    sites = ["--sites", "pattern,resid_post", "--layers", "1"]
    done = CliRunner().invoke(main, ["capture", "--prompt", "A cat.", *sites, "--out", out])
    assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(main, ["runs", "show", out]).output
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    pattern, stream = rows["blocks.1.pattern"], rows["blocks.1.resid_post"]
    assert pattern[4:6] == ["-", "-"] and float(stream[4]) > 0


def test_what_is_no_run_is_called_what_it_is(actscope_cli, folder, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("x")
    done = actscope_cli("runs", "show", file)
    assert done.exit_code == 2 and "got: a file" in done.stderr, done.stderr
    for verb in ("list", "du"):
        done = actscope_cli("runs", verb, file)
        assert done.exit_code == 2 and "this is a file, not a folder" in done.stderr
    done = actscope_cli("runs", "show", tmp_path / "none")
    assert done.exit_code == 2 and "no such folder" in done.stderr
    done = actscope_cli("runs", "delete", file, "--yes")
    assert done.exit_code == 2 and "got: a file" in done.stderr


def test_show_of_a_collection_says_what_shows_it(actscope_cli, tmp_path):
    collection = tmp_path / "collected"
    collect = ("introspect", "collect", "--num-questions", 1, "--which-questions", "mcq")
    done = actscope_cli(*collect, "--layers", "0", "--output-dir", collection)
    assert done.exit_code == 0, done.output
    for place in (collection, collection / "mcq"):
        done = actscope_cli("runs", "show", place)
        assert done.exit_code == 2
        following = f"actscope introspect inspect --data-dir {place}"
        assert following in done.stderr
        assert actscope_cli(*following.split()[1:], "--no-figure").exit_code == 0
    done = actscope_cli("runs", "show", collection / "none")
    assert done.exit_code == 2 and "introspect" not in done.stderr
