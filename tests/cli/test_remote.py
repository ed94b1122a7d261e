"""``actscope capture --out`` and ``actscope runs`` with addresses."""

from __future__ import annotations

import pytest
from remote_folders import empty_memory

from actscope import open_run


@pytest.fixture
def folder():
    with empty_memory() as address:
        yield address


@pytest.fixture
def server(folder, monkeypatch):
    """The memory of this process stands for a server: its files outlast a command of the tests."""
    monkeypatch.setattr("actscope.cli._folders.GONE_WITH_THE_PROCESS", ())
    return folder


def test_capture_list_show_and_verify(actscope_cli, model_folder, server):
    out = f"{server}/first"
    asked = ("--model", model_folder, "--prompt", "w1 w2 w3", "--prompt", "w4", "--layers", "0,-1")
    dry = actscope_cli("capture", *asked, "--out", out, "--dry-run")
    assert dry.exit_code == 0 and "unknown" in dry.stdout, dry.output
    done = actscope_cli("capture", *asked, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"actscope runs show {out}" in done.stdout
    with open_run(out) as run:
        assert len(run) == 2 and run.layers == [0, 2]
    again = actscope_cli("capture", *asked, "--out", out)
    assert again.exit_code == 0 and "2 examples" in again.stdout
    listed = actscope_cli("runs", "list", server)
    assert listed.exit_code == 0 and out in listed.stdout and "complete" in listed.stdout
    shown = actscope_cli("runs", "show", out)
    assert shown.exit_code == 0 and "2 captured" in shown.stdout and out in shown.stdout
    verified = actscope_cli("runs", "verify", out)
    assert verified.exit_code == 0 and f"{out}: whole" in verified.stdout
    assert actscope_cli("runs", "du", server).exit_code == 0
    assert actscope_cli("runs", "diff", out, out).exit_code == 0


def test_what_cannot_be_done_is_said(actscope_cli, model_folder, server):
    asked = ("--model", model_folder, "--prompt", "w1")
    for address, store, says in (
        ("memmory://b/r", "shards", "did you mean 'memory'"),
        (f"{server}/r", "npy_layers", "local disks alone"),
        ("memory://bucket", "shards", "plain name"),
    ):
        done = actscope_cli("capture", *asked, "--out", address, "--store", store)
        assert done.exit_code == 2 and says in done.stderr, done.output
    done = actscope_cli("runs", "list", f"{server}/none")
    assert done.exit_code == 2 and "no such folder" in done.stderr
    assert actscope_cli("capture", *asked, "--out", f"{server}/r").exit_code == 0
    done = actscope_cli("runs", "delete", f"{server}/r")
    assert done.exit_code == 2 and "recursive=True" in done.stderr
    done = actscope_cli("runs", "export", f"{server}/r", "--to", "npz", "--out", f"{server}/x")
    assert done.exit_code == 2 and "no local path" in done.stderr


def test_a_command_writes_nothing_that_ends_with_it(actscope_cli, model_folder, folder, tmp_path):
    run = tmp_path / "run"
    asked = ("capture", "--model", model_folder, "--prompt", "w1 w2")
    assert actscope_cli(*asked, "--out", run).exit_code == 0
    export = ("runs", "export", run, "--to", "npz", "--out", tmp_path / "npz")
    assert actscope_cli(*export).exit_code == 0
    for command in (
        asked,
        (*asked, "--dry-run"),
        ("runs", "merge", run),
        ("runs", "import", tmp_path / "npz", "--from", "npz"),
    ):
        done = actscope_cli(*command, "--out", f"{folder}/r")
        assert done.exit_code == 2, done.output
        assert f"{folder}/r lasts only as long as this command" in done.stderr
        assert "s3://bucket" in done.stderr and "ShardStorage" in done.stderr
        assert not done.stdout
    listed = actscope_cli("runs", "list", folder)
    assert "no such folder" in listed.stderr


def test_a_collection_lies_on_this_machine(actscope_cli, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    collect = ("introspect", "collect", "--num-questions", "1", "--output-dir", f"{folder}/c")
    for more in ((), ("--dry-run",)):
        done = actscope_cli(*collect, *more)
        assert done.exit_code == 2 and "no local path" in done.stderr, done.output
    assert not list(tmp_path.iterdir())
