"""Runs are found again: by tag, name, spec, model and state."""

from __future__ import annotations

import json
from uuid import uuid4

import numpy as np
import pytest
from click.testing import CliRunner

import actscope
from actscope.cli.main import main
from actscope.core.errors import BadInputError, DamagedRunError, UnknownNameError
from actscope.core.spec import unit_id
from actscope.stores import (
    ShardStorage,
    delete_run,
    disk_usage,
    list_runs,
    open_run,
    read_tags,
    tag_run,
    verify_run,
)
from actscope.testing.store_contract import PLAN, SPEC, sample_batch


@pytest.fixture
def runs(tmp_path):
    """Three runs: a whole one, one with a unit missing, and a bare one."""
    storage = ShardStorage(tmp_path)
    small = {**PLAN, "stop": 4}
    for name, plan, model in (("whole", small, "demo"), ("part", PLAN, "other")):
        spec = {**SPEC, "model": {"name": model, "n_layers": 4, "dtype": "float32"}, "span": "all"}
        with storage.open_run(name, spec, plan) as writer:
            writer.append(unit_id(0, 4), sample_batch(0, 4), {})
    with storage.open_run("bare", None, None) as writer:
        writer.append("x", sample_batch(0, 2), {})
    tag_run(tmp_path / "whole", ["baseline", "paper 2"])
    tag_run(tmp_path / "part", ["baseline"])
    return tmp_path


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("'baseline' in tags", {"whole", "part"}),
        ("'baseline' in tags and state == 'complete'", {"whole"}),
        ("tags == ['baseline', 'paper 2']", {"whole"}),
        ("not 'baseline' in tags", {"bare"}),
        ("model == 'demo'", {"whole"}),
        ("spec.model.dtype == 'float32' and n_examples >= 4", {"whole", "part"}),
        ("span == null", {"bare"}),
        ("name in ['part', 'bare']", {"part", "bare"}),
        ("max_length == 4 and n_units < n_planned", {"part"}),
        ("'blocks.3.resid_post' in sites", {"whole", "part"}),
        ("fingerprint == ''", {"bare"}),
    ],
)
def test_a_condition_chooses_runs(runs, where, names):
    assert {run.name for run in list_runs(runs, where)} == names


def test_a_condition_that_is_none_is_refused(runs):
    with pytest.raises(BadInputError, match="condition on runs"):
        list_runs(runs, "model = 'demo'")
    with pytest.raises(UnknownNameError, match="field of the runs"):
        list_runs(runs, "modle == 'demo'")
    with pytest.raises(BadInputError, match="no fields of its own"):
        list_runs(runs, "model.name == 'demo'")
    assert list_runs(runs / "nothing", "anything == 1") == []


def test_tags_come_and_go(runs):
    before = open_run(runs / "whole").fingerprint
    assert tag_run(runs / "whole", [" new "], ["baseline", "never"]) == ("new", "paper 2")
    with open_run(runs / "whole") as run:
        assert run.tags == ("new", "paper 2") and run.fingerprint == before
        assert run.verify().ok and not run.verify().leftovers
    assert read_tags(runs / "bare") == ()
    usage = disk_usage(runs / "whole")
    assert usage.leftovers == 0
    delete_run(runs / "whole")
    assert not (runs / "whole").exists()


@pytest.mark.parametrize("tag", ["", "  ", "a\nb", "x" * 101])
def test_what_cannot_be_a_tag(runs, tag):
    with pytest.raises(BadInputError, match="cannot be a tag"):
        tag_run(runs / "whole", [tag])
    with pytest.raises(BadInputError, match="no run"):
        tag_run(runs / "nothing", ["fine"])
    assert read_tags(runs / "whole") == ("baseline", "paper 2")


def test_a_damaged_file_of_tags_is_told(runs):
    path = runs / "whole" / "tags.json"
    path.write_bytes(path.read_bytes().replace(b"paper 2", b"paper 3"))
    with pytest.raises(DamagedRunError, match=r"tags\.json"):
        _ = open_run(runs / "whole").tags
    found = {run.name: run for run in list_runs(runs)}
    assert "tags.json" in found["whole"].problem and found["part"].tags == ("baseline",)


def test_at_the_command_line(runs, tmp_path):
    def call(*words):
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    call("capture", "--prompt", "The ferry.", "--layers", 0, "--tag", "ferry", "--tag", "first",
         "--out", runs / "captured")  # fmt: skip
    assert open_run(runs / "captured").tags == ("ferry", "first")
    listed = call("runs", "list", runs, "--where", "model == 'demo' and 'ferry' in tags")
    assert "captured" in listed and "ferry, first" in listed and "whole" not in listed
    as_json = json.loads(call("runs", "list", runs, "--where", "'ferry' in tags", "--json"))
    assert [run["name"] for run in as_json] == ["captured"]
    assert as_json[0]["spec"]["model"]["name"] == "demo"
    assert "ferry, first" in call("runs", "tag", runs / "captured")
    assert "no tags" in call("runs", "tag", runs / "captured", "--remove", "ferry", "--remove",
                             "first")  # fmt: skip
    assert "no runs" in call("runs", "list", runs, "--where", "'ferry' in tags")
    assert json.loads(call("runs", "show", runs / "whole", "--json"))["tags"] == [
        "baseline", "paper 2",
    ]  # fmt: skip


def test_the_runner_tags_what_it_writes(tmp_path):
    extractor = actscope.ActivationExtractor(actscope.load_model("demo"), [0], "last")
    runner = actscope.DatasetRunner(["One.", "Two."], None, extractor, ShardStorage(tmp_path))
    first = runner.run(run_id="r", tags=["a"])
    runner.run(run_id="r", tags=["b"])
    assert read_tags(first.path) == ("a", "b")


def test_a_run_on_a_server_has_tags_and_codecs_too():
    folder = f"memory://tags-{uuid4().hex}"
    with ShardStorage(folder).open_run("r", {**SPEC, "codec": "int8"}, PLAN) as writer:
        writer.append(unit_id(0, 4), sample_batch(0, 4, width=64), {})
    assert tag_run(f"{folder}/r", ["far"]) == ("far",)
    [found] = list_runs(folder, "'far' in tags")
    assert (found.name, found.state) == ("r", "partial")
    json.dumps(found.to_json(), default=str)
    with open_run(f"{folder}/r") as run:
        assert run.tags == ("far",) and run.verify().ok
        site = run.sites[0]
        coded = run.summary().sites[str(site)].coded
        assert coded is not None and coded.codec == "int8"
        wanted = sample_batch(0, 4, width=64).arrays[site]
        assert np.abs(run.numpy(site) - wanted).max() == pytest.approx(coded.max_error)


def test_damaged_tags_are_verified_and_repaired(runs):
    """They are no reason to lose the run, nor to be told that all is well."""
    path = runs / "whole" / "tags.json"
    path.write_bytes(path.read_bytes()[:-4])

    def call(*words):
        return CliRunner().invoke(main, ["runs", *(str(word) for word in words)])

    assert [p.file for p in verify_run(runs / "whole", fast=True).problems] == ["tags.json"]
    told = call("verify", runs / "whole")
    assert told.exit_code == 1 and "tags.json" in told.output
    mended = call("repair", runs / "whole")
    assert mended.exit_code == 0 and "tags are taken back" in mended.output
    assert verify_run(runs / "whole").ok and read_tags(runs / "whole") == ()
    assert call("show", runs / "whole").exit_code == 0
    assert tag_run(runs / "whole", ["again"]) == ("again",)
    assert open_run(runs / "whole").complete
    delete_run(runs / "whole")


def test_the_tags_of_no_run_are_an_error(runs):
    done = CliRunner().invoke(main, ["runs", "tag", str(runs / "nothing")])
    assert done.exit_code == 2 and "there is no run" in done.output
    done = CliRunner().invoke(main, ["runs", "tag", str(runs)])
    assert done.exit_code == 2 and "did you mean" in done.output


def test_a_condition_on_what_is_none_or_asks_for_nothing(runs):
    assert {run.name for run in list_runs(runs, "span == None")} == {"bare"}
    with pytest.raises(BadInputError, match="no field"):
        list_runs(runs, "'baseline'")
    deep = "(" * 150 + "n_units == 1" + ")" * 150
    with pytest.raises(BadInputError):
        list_runs(runs, "not " * 2400 + deep)
    nobody = open_run(runs / "whole").where("index < 0")
    assert len(nobody) == 0 and len(nobody.where("n_tokens > 3 or place == 1")) == 0


def test_a_word_that_is_no_tag_is_refused_before_anything_is_written(tmp_path):
    words = ["capture", "--prompt", "No.", "--layers", "0", "--tag", "fine", "--tag", " "]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "r")])
    assert done.exit_code == 2 and "cannot be a tag" in done.output + (done.stderr or "")
    assert not (tmp_path / "r").exists()
