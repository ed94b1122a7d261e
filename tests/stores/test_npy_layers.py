"""The padded layers: what numpy alone sees, and what a changed byte in the padding does."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest

from actscope.core.activations import ExampleFailure
from actscope.core.errors import BadInputError, DamagedRunError, DiskFullError
from actscope.core.spec import UnitPlan, unit_id
from actscope.stores import NpyLayersStorage, open_run, sweep, verify_run
from actscope.testing.store_contract import PLAN, SITES, SPEC, sample_batch

UNITS = [(0, 4), (4, 8), (8, 10)]


def write(storage, units=UNITS, **options):
    writer = storage.open_run("r", SPEC, PLAN)
    for start, stop in units:
        writer.append(unit_id(start, stop), sample_batch(start, stop, **options), {})
    return writer.path


@pytest.mark.parametrize("order", [UNITS, UNITS[::-1]])
def test_numpy_alone_reads_the_layers(tmp_path, order):
    path = write(NpyLayersStorage(tmp_path), order)
    whole = sample_batch(0, 10)
    names = {0: "activations_layer_00.npy", 1: "activations_layer_03.npy", 2: "ln_final.npy"}
    for number, name in names.items():
        layer = np.load(path / name, mmap_mode="r")
        assert layer.shape == (10, 4, 5) and layer.dtype == np.float32
        for i in range(10):
            n = i % 4 + 1
            start = whole.offsets[i]
            assert np.array_equal(layer[i, :n], whole.arrays[SITES[number]][start : start + n])
            assert not layer[i, n:].any()


def test_pooled_layers_have_no_token_axis(tmp_path):
    path = write(NpyLayersStorage(tmp_path), pooled=True)
    layer = np.load(path / "activations_layer_03.npy")
    assert np.array_equal(layer, sample_batch(0, 10, pooled=True).arrays[SITES[1]])


def test_the_disk_is_used_once(tmp_path):
    """The file has its full size from the first unit on, and every later one fills it in place."""
    storage = NpyLayersStorage(tmp_path)
    path = write(storage, UNITS[1:2])
    layer = path / "activations_layer_00.npy"
    before = layer.stat()
    assert before.st_size == 128 + 10 * 4 * 5 * 4
    write(storage)
    after = layer.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert sorted(p.name for p in path.glob("*.npy")) == [
        "activations_layer_00.npy", "activations_layer_03.npy", "ln_final.npy",
    ]  # fmt: skip


def test_every_bit_of_the_padding_and_the_header_is_checked(tmp_path):
    path = write(NpyLayersStorage(tmp_path))
    file = path / "activations_layer_00.npy"
    whole = file.read_bytes()
    assert len(whole) == 128 + 10 * 4 * 5 * 4
    rng = np.random.default_rng(0)
    places = [*range(128), *rng.integers(128, len(whole), 200).tolist()]
    for at in places:
        data = bytearray(whole)
        data[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        assert not verify_run(path).ok, at
    file.write_bytes(whole[:-1])
    with pytest.raises(DamagedRunError, match="size"):
        open_run(path).numpy("resid_post", 0)
    file.write_bytes(whole)
    assert verify_run(path).ok


def test_a_failed_example_leaves_an_empty_slot(tmp_path):
    writer = NpyLayersStorage(tmp_path).open_run("r", SPEC, PLAN)
    kept = sample_batch(1, 4)
    failure = ExampleFailure("ex-0", 0, "empty_span", "no token is left")
    writer.append(unit_id(0, 4), replace(kept, failures=(failure,)), {})
    layer = np.load(writer.path / "activations_layer_00.npy")
    assert not layer[0].any() and layer[1].any()
    run = open_run(writer.path)
    assert run.n_examples == 3 and np.array_equal(run.numpy("resid_post", 0), kept.arrays[SITES[0]])
    layer = np.load(writer.path / "activations_layer_00.npy", mmap_mode="r+")
    layer[0, 0, 0] = 1
    layer.flush()
    assert not verify_run(writer.path).ok


def test_a_unit_that_was_half_written_is_written_again(tmp_path, monkeypatch):
    storage = NpyLayersStorage(tmp_path)
    path = write(storage, UNITS[:1])
    monkeypatch.setenv("ACTSCOPE_FAIL_AT", "data.slots-written:2:EIO")
    with pytest.raises(Exception, match="disk failed"):
        write(storage, UNITS[1:2], seed=9)
    monkeypatch.delenv("ACTSCOPE_FAIL_AT")
    assert open_run(path).units == (unit_id(0, 4),)
    write(storage)
    assert verify_run(path).ok
    assert np.array_equal(open_run(path).numpy("ln_final"), sample_batch(0, 10).arrays[SITES[2]])


def test_a_full_disk_shows_before_the_work(tmp_path, monkeypatch):
    import errno
    import os

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFullError):
        write(NpyLayersStorage(tmp_path), UNITS[:1])


def test_a_file_system_without_allocation(tmp_path, monkeypatch):
    import errno
    import os

    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert verify_run(write(NpyLayersStorage(tmp_path))).ok


def test_sweeping_leaves_the_layers_alone(tmp_path):
    path = write(NpyLayersStorage(tmp_path))
    (path / "units" / "stray.npz").write_bytes(b"x")
    sweep(path, older_than=0)
    assert verify_run(path).ok and len(list(path.glob("*.npy"))) == 3


def test_what_does_not_fit_a_slot_is_refused(tmp_path):
    writer = NpyLayersStorage(tmp_path, seq_len=3).open_run("r", SPEC, PLAN)
    with pytest.raises(BadInputError, match="'ex-3' has more rows"):
        writer.append(unit_id(0, 4), sample_batch(0, 4), {})
    assert writer.committed() == set() and not list(writer.path.glob("*.npy"))
    spec = {k: v for k, v in SPEC.items() if k != "max_length"}
    writer = NpyLayersStorage(tmp_path).open_run("no-limit", spec, PLAN)
    with pytest.raises(BadInputError, match="--max-length"):
        writer.append(unit_id(0, 4), sample_batch(0, 4), {})
    answers = {**spec, "max_length": 2, "generation": {"max_new_tokens": 2}}
    writer = NpyLayersStorage(tmp_path).open_run("answers", answers, PLAN)
    writer.append(unit_id(0, 4), sample_batch(0, 4), {})
    assert np.load(writer.path / "ln_final.npy").shape == (10, 4, 5)


def test_two_answers_to_one_prompt_are_refused(tmp_path):
    batch = sample_batch(0, 4)
    twice = tuple(replace(record, index=0) for record in batch.examples)
    writer = NpyLayersStorage(tmp_path).open_run("r", SPEC, PLAN)
    with pytest.raises(BadInputError, match="share an index"):
        writer.append(unit_id(0, 4), replace(batch, examples=twice), {})


def test_a_unit_of_another_dtype_is_refused(tmp_path):
    storage = NpyLayersStorage(tmp_path)
    path = write(storage, UNITS[:1])
    with pytest.raises(BadInputError, match="another shape or dtype"):
        write(storage, UNITS[1:2], dtype="float64")
    assert open_run(path).units == (unit_id(0, 4),)


def _fill(path, units):
    write(NpyLayersStorage(path), units)


def test_two_workers_fill_one_run(tmp_path):
    context = multiprocessing.get_context("fork")
    shares = (UNITS, UNITS[::-1])
    workers = [context.Process(target=_fill, args=(tmp_path, share)) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    run = open_run(tmp_path / "r")
    assert run.complete and run.verify().ok
    assert np.array_equal(run.numpy("ln_final"), sample_batch(0, 10).arrays[SITES[2]])


def test_a_table_of_places_that_lies_is_damage(tmp_path):
    path = write(NpyLayersStorage(tmp_path))
    file = next((path / "units").glob(unit_id(0, 4) + "*"))
    data = file.read_bytes()
    text = json.dumps({"sites": 1}).encode()
    at = data.index(b'{"sites"')
    file.write_bytes(data[:at] + text + data[at + len(text) :])
    with pytest.raises(DamagedRunError):
        open_run(path).numpy("ln_final")


def test_a_range_that_does_not_begin_at_zero(tmp_path):
    plan = UnitPlan(4, 10, 4)
    writer = NpyLayersStorage(tmp_path).open_run("r", SPEC, plan.to_json())
    for start, stop in plan.units():
        writer.append(unit_id(start, stop), sample_batch(start, stop), {})
    assert len(np.load(writer.path / "ln_final.npy")) == 6
    expected = sample_batch(4, 10).arrays[SITES[2]]
    assert np.array_equal(open_run(writer.path).numpy("ln_final"), expected)
