"""Where a run would lie: how much is free there, and whether anything can be written at all."""

import os
from pathlib import Path

import pytest

from actscope import ActivationExtractor, DatasetRunner, ShardStorage
from actscope.capture.disk import free_disk, refuse_unwritable
from actscope.core.errors import OutputFolderError


def test_a_place_that_can_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "deeper"):
        refuse_unwritable(path)
        assert free_disk(path) > 0
    assert list(tmp_path.iterdir()) == []


def test_an_ancestor_that_is_a_file_is_named(tmp_path):
    file = tmp_path / "some.py"
    file.write_text("")
    for path in (file, file / "sub", file / "sub" / "deeper"):
        with pytest.raises(OutputFolderError, match=r"some\.py is a file"):
            refuse_unwritable(path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_a_folder_where_nothing_can_be_made_is_named():
    with pytest.raises(OutputFolderError, match="nothing can be written in /proc\n"):
        refuse_unwritable(Path("/proc/foo/bar"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_of_someone_else_is_named(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    for mode in (0o500, 0o000):
        locked.chmod(mode)
        with pytest.raises(OutputFolderError, match="locked"):
            refuse_unwritable(locked / "run" / "deeper")
    locked.chmod(0o700)


def test_a_run_asks_before_it_compares_sizes(model, tmp_path, monkeypatch):
    file = tmp_path / "some.py"
    file.write_text("")
    monkeypatch.setattr("actscope.capture.job.free_disk", lambda path: 0)
    runner = DatasetRunner(["w1"], None, ActivationExtractor(model), ShardStorage(file))
    with pytest.raises(OutputFolderError, match="is a file"):
        runner.run(run_id="r")
