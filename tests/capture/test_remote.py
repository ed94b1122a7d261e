"""Capturing to a remote folder, through the public door."""

from __future__ import annotations

import pytest
from remote_folders import data_files, empty_memory

from actscope import ActivationExtractor, DatasetRunner, ShardStorage, load_model, open_run
from actscope.capture import CaptureOptions
from actscope.core.errors import BadInputError, RunError
from actscope.stores import _io, sweep

TEXTS = [f"The cat number {i} sat on the mat{' and slept' * (i % 3)}." for i in range(9)]


@pytest.fixture
def folder():
    with empty_memory() as address:
        yield address


@pytest.fixture(scope="module")
def demo():
    return load_model("demo")


def capture(model, folder, **options):
    runner = DatasetRunner(
        TEXTS, None, ActivationExtractor(model, [0, -1]), ShardStorage(folder),
        options=CaptureOptions(unit_size=2, **options),
    )  # fmt: skip
    return runner.run(run_id="r")


@pytest.mark.parametrize(
    ("point", "units"), [("data.written:3", 2), ("commit.sending:3", 2), ("commit.sent:3", 3)]
)
def test_an_interrupted_capture_resumes(demo, folder, tmp_path, monkeypatch, point, units):
    whole = capture(demo, tmp_path)
    monkeypatch.setattr(_io, "_reached", {})
    monkeypatch.setenv("ACTSCOPE_FAIL_AT", f"{point}:EIO")
    with pytest.raises(RunError):
        capture(demo, folder)
    monkeypatch.delenv("ACTSCOPE_FAIL_AT")
    with open_run(f"{folder}/r") as run:
        assert len(run.units) == units and run.verify().ok
    result = capture(demo, folder)
    assert (result.resumed, result.captured) == (2 * units, 9 - 2 * units)
    assert str(result.path) == f"{folder}/r"
    with result.open() as run:
        assert run.complete and run.verify().ok and [e.text for e in run.examples] == TEXTS
    assert data_files(result.path) == data_files(whole.path)
    assert capture(demo, folder).captured == 0
    sweep(result.path, older_than=0)
    assert open_run(result.path).verify().leftovers == []


def test_a_dry_run_does_not_know_the_free_disk(demo, folder):
    runner = DatasetRunner(TEXTS, None, ActivationExtractor(demo, [0]), ShardStorage(folder))
    dry = runner.dry_run(run_id="r")
    assert dry.free_bytes is None and dry.fits and dry.examples == len(TEXTS)
    with pytest.raises(BadInputError, match="there is no run"):
        open_run(f"{folder}/r")
