"""``actscope runs merge | diff | delete | du | sweep`` and ``verify --fast``."""

import json
import shutil

import numpy as np
import pytest

from actscope import open_run


@pytest.fixture
def captured(actscope_cli, model_folder, prompts, tmp_path):
    """Capture a range of the six prompts: ``captured("a", 0, 4)``."""

    def capture(name, offset, limit, *more):
        out = tmp_path / name
        command = ("capture", "--model", model_folder, "--source", prompts, "--out", out)
        command += ("--offset", offset, "--limit", limit, "--unit-size", 2, *more)
        done = actscope_cli(*command)
        assert done.exit_code == 0, done.output
        return out

    return capture


def test_merge_of_two_ranges_is_the_whole_capture(actscope_cli, captured, tmp_path):
    parts = [captured("a", 0, 2), captured("b", 2, 4)]
    done = actscope_cli("runs", "merge", *parts, "--out", tmp_path / "all")
    assert done.exit_code == 0, done.output
    assert "3 units copied" in done.stdout and "partial" not in done.stdout
    whole = captured("whole", 0, 6)
    done = actscope_cli("runs", "diff", tmp_path / "all", whole)
    assert done.exit_code == 0, done.output
    assert "the same: 6 examples, every bit" in done.stdout
    shards = [{p.name for p in (out / "shards").iterdir()} for out in (tmp_path / "all", whole)]
    assert shards[0] == shards[1]


def test_a_merged_run_with_a_gap_is_completed_by_the_same_capture(actscope_cli, captured, tmp_path):
    parts = [captured("a", 0, 1), captured("b", 3, 3)]
    done = actscope_cli("runs", "merge", *parts, "--out", tmp_path / "all")
    assert "examples 1 to 2 are in none of the runs" in done.stdout
    assert "partial" in done.stdout
    assert len(open_run(tmp_path / "all")) == 4
    captured("all", 0, 6)
    run = open_run(tmp_path / "all")
    assert run.complete and len(run) == 6
    done = actscope_cli("runs", "diff", "--json", tmp_path / "all", captured("whole", 0, 6))
    found = json.loads(done.stdout)
    others = ("spec", "only_first", "only_second", "records", "failures")
    assert found["examples"] == 6 and not any(found[name] for name in others)
    # units of other sizes are batches of other sizes, which round otherwise
    assert all(site["relative"] < 1e-6 and site["unlike"] == 0 for site in found["sites"].values())


def test_merge_of_two_specs_says_what_differs(actscope_cli, captured, tmp_path):
    parts = [captured("a", 0, 2), captured("b", 2, 4, "--pool", "mean")]
    done = actscope_cli("runs", "merge", *parts, "--out", tmp_path / "all")
    assert done.exit_code == 2
    assert "strategy.name: stored 'none', asked for 'mean'" in done.stderr
    assert not (tmp_path / "all").exists()


def test_diff_prints_what_differs(actscope_cli, captured, tmp_path):
    a, b = captured("a", 0, 4), captured("b", 1, 5, "--storage-dtype", "float16")
    done = actscope_cli("runs", "diff", a, b)
    assert done.exit_code == 1
    for text in ("storage_dtype", "float16", "in both", "1: p0", "2: p4, p5", "3 of 3"):
        assert text in done.stdout
    done = actscope_cli("runs", "diff", a, b, "--json")
    found = json.loads(done.stdout)
    assert found["only_first"] == ["p0"] and not found["same"]
    site = found["sites"]["blocks.2.resid_post"]
    assert site["differing"] == 3
    x = np.concatenate([open_run(a).array("resid_post", 2, example=i) for i in (1, 2, 3)])
    y = np.concatenate([open_run(b).array("resid_post", 2, example=i) for i in (0, 1, 2)])
    assert site["max_abs"] == np.abs(x.astype(np.float64) - y.astype(np.float64)).max() > 0


def test_verify_fast_and_full(actscope_cli, captured):
    out = captured("a", 0, 6)
    done = actscope_cli("runs", "verify", "--fast", out)
    assert done.exit_code == 0 and "whole" not in done.stdout
    assert "records and sizes of 3 units agree; bytes not read (--full reads them)" in done.stdout
    shard = next((out / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert actscope_cli("runs", "verify", "--fast", out).exit_code == 0
    assert actscope_cli("runs", "verify", "--full", out).exit_code == 1
    shard.write_bytes(data[:-1])
    done = actscope_cli("runs", "verify", "--fast", out)
    assert done.exit_code == 1 and shard.name in done.stderr


def test_delete_asks_first(actscope_cli, captured, tmp_path):
    from click.testing import CliRunner

    from actscope.cli.main import main

    a, b = captured("a", 0, 2), captured("b", 2, 4)
    done = CliRunner().invoke(main, ["runs", "delete", str(a), str(b)], input="n\ny\n")
    assert done.exit_code == 0, done.output
    assert "a is kept" in done.output and "b is deleted" in done.output
    assert a.exists() and not b.exists()
    assert actscope_cli("runs", "delete", a).exit_code == 1  # nobody answers
    assert a.exists()
    assert actscope_cli("runs", "delete", a, "--yes").exit_code == 0
    assert not a.exists()
    for place in (a, tmp_path):
        done = actscope_cli("runs", "delete", place, "--yes")
        assert done.exit_code == 2 and "no run" in done.stderr
    assert (tmp_path / "prompts.jsonl").exists()


def test_du(actscope_cli, captured, tmp_path):
    a = captured("a", 0, 2)
    captured("b", 2, 4)
    done = actscope_cli("runs", "du", tmp_path, "--sites")
    assert done.exit_code == 0, done.output
    assert done.stdout.count(str(a)) == 1 + len(open_run(a).sites)
    total = sum(p.stat().st_size for p in tmp_path.glob("[ab]/**/*") if p.is_file())
    assert total > 1000 and "together" in done.stdout
    (tmp_path / "empty").mkdir()
    assert "no runs" in actscope_cli("runs", "du", tmp_path / "empty").stdout
    assert actscope_cli("runs", "du", tmp_path / "nowhere").exit_code == 2


def test_sweep(actscope_cli, captured):
    out = captured("a", 0, 2)
    stray = out / "shards" / ".tmp-data-1-ab"
    stray.write_bytes(b"x")
    assert "1 leftover file" in actscope_cli("runs", "verify", out).stdout
    done = actscope_cli("runs", "sweep", out)
    assert "0 leftover files removed" in done.stdout and stray.exists()
    done = actscope_cli("runs", "sweep", out, "--older-than", 0)
    assert "1 leftover file removed" in done.stdout and not stray.exists()
    assert actscope_cli("runs", "sweep", out.parent).exit_code == 2


def test_show_prints_what_numpy_says_of_the_values(actscope_cli, captured):
    out = captured("a", 0, 6, "--on-too-long", "skip", "--max-length", 6)
    run = open_run(out)
    done = actscope_cli("runs", "show", out)
    lines = [line.split() for line in done.stdout.splitlines()]
    for site in run.sites:
        (line,) = [line for line in lines if line[:1] == [str(site)]]
        rows = run.numpy(site).astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        assert line[1:4] == [f"{len(rows):,}", str(rows.shape[1]), "float32"]
        assert line[4:] == [
            f"{norms.mean():.4g}", f"{norms.std(ddof=1):.3g}", f"{np.abs(rows).max():.4g}", "0",
        ]  # fmt: skip
    failed = [record.kind for record in run.failures]
    assert failed == ["too_long"] * len(failed) and failed
    assert ["too_long", str(len(failed))] in lines


def test_brackets_in_the_names_of_runs_are_printed_as_they_are(actscope_cli, captured, tmp_path):
    """Not read as markup, which would swallow them or end in an error."""
    folder = tmp_path / "of [bold]2026[" / "a]"
    shutil.copytree(captured("first", 0, 2), folder)
    other = shutil.copytree(captured("second", 2, 2, "--pool", "mean"), tmp_path / "[old]")
    shown = actscope_cli("runs", "show", folder)
    assert shown.exit_code == 0, shown.output
    assert "of[bold]2026[/a]" in "".join(shown.stdout.split())
    differ = actscope_cli("runs", "diff", folder, other)
    printed = "".join(differ.stdout.split())
    assert differ.exit_code == 1 and "[old]" in printed and "of[bold]2026[/a]" in printed
    assert not differ.stderr


def test_a_tag_that_was_not_there_is_said(actscope_cli, captured):
    out = captured("a", 0, 2, "--tag", "draft")
    done = actscope_cli("runs", "tag", out, "--remove", "draft", "--remove", "nothere", "kept")
    assert done.exit_code == 0, done.output
    assert "had no tag 'nothere'" in done.stderr and "'draft'" not in done.stderr
    assert f"{out}: kept" in done.stdout
