"""``actscope capture --out`` and ``actscope runs`` with addresses."""

from __future__ import annotations

import pytest
from remote_folders import empty_memory

from actscope import open_run


@pytest.fixture
def folder():
    with empty_memory() as address:
        yield address


def test_capture_list_show_and_verify(actscope_cli, model_folder, folder):
    out = f"{folder}/first"
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
    listed = actscope_cli("runs", "list", folder)
    assert listed.exit_code == 0 and out in listed.stdout and "complete" in listed.stdout
    shown = actscope_cli("runs", "show", out)
    assert shown.exit_code == 0 and "2 captured" in shown.stdout and out in shown.stdout
    verified = actscope_cli("runs", "verify", out)
    assert verified.exit_code == 0 and f"{out}: whole" in verified.stdout
    assert actscope_cli("runs", "du", folder).exit_code == 0
    assert actscope_cli("runs", "diff", out, out).exit_code == 0


def test_what_cannot_be_done_is_said(actscope_cli, model_folder, folder):
    asked = ("--model", model_folder, "--prompt", "w1")
    for address, store, says in (
        ("memmory://b/r", "shards", "did you mean 'memory'"),
        (f"{folder}/r", "npy_layers", "local disks alone"),
        ("memory://bucket", "shards", "plain name"),
    ):
        done = actscope_cli("capture", *asked, "--out", address, "--store", store)
        assert done.exit_code == 2 and says in done.stderr, done.output
    done = actscope_cli("runs", "list", f"{folder}/none")
    assert done.exit_code == 2 and "no such folder" in done.stderr
    assert actscope_cli("capture", *asked, "--out", f"{folder}/r").exit_code == 0
    done = actscope_cli("runs", "delete", f"{folder}/r")
    assert done.exit_code == 2 and "recursive=True" in done.stderr
    done = actscope_cli("runs", "export", f"{folder}/r", "--to", "npz", "--out", f"{folder}/x")
    assert done.exit_code == 2 and "no local path" in done.stderr
