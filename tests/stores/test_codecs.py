"""Coded tensors: what comes back, what that costs, and what is refused."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as shapes

import actscope
from actscope.cli.main import main
from actscope.core.coding import CODEC_NAMES, coded_share
from actscope.core.errors import BadInputError, DamagedRunError, UnknownNameError
from actscope.core.sites import Site
from actscope.core.spec import UnitPlan, unit_id
from actscope.formats import export_run, import_run
from actscope.stores import STORES, _codecs, disk_usage, merge_runs, open_run
from actscope.testing.store_contract import PLAN, SITES, SPEC, sample_batch

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
TAKING = [name for name in STORES.names() if STORES.get(name).takes_codecs]


def arrays(dtypes=("<f4", "<f2", "<f8", "<i4", "|u1")):
    return st.sampled_from(dtypes).flatmap(
        lambda dtype: shapes.arrays(dtype, shapes.array_shapes(min_dims=1, max_dims=3))
    )


def mxint8(values):
    """A block of the standard, value by value: the exponent of the largest, then integers."""
    largest = max(abs(v) for v in values)
    if largest == 0:
        return [0.0] * len(values)
    step = 2.0 ** max(math.floor(math.log2(largest)) - 6, -127)
    return [max(-127, min(127, round(v / step))) * step for v in values]  # round: half to even


@given(arrays())
def test_zstd_gives_every_bit_back(array):
    data, back, coding = _codecs.coded("zstd", array)
    assert back.tobytes() == array.tobytes() and back.dtype == array.dtype
    assert (coding.bytes, coding.max_error, coding.rms_error) == (len(data), 0.0, 0.0)
    planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(data.tobytes()), np.uint8)
    first = array.reshape(-1).view(np.uint8)[:: array.itemsize]
    assert np.array_equal(planes[: array.size], first)


@given(
    st.sampled_from(range(3)),
    shapes.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 70)),
        elements=st.floats(-6e4, 6e4, width=16),
    ),
)
def test_int8_is_the_standards_format(kind, array):
    array = array.astype(DTYPES[kind])
    data, back, coding = _codecs.coded("int8", array)
    width = array.shape[1]
    assert len(data) == coding.bytes == len(array) * (width + math.ceil(width / 32))
    for row, found in zip(array, back, strict=True):
        plain = [float(v) for v in row]
        wanted = [v for at in range(0, width, 32) for v in mxint8(plain[at : at + 32])]
        assert [float(v) for v in found] == wanted
    gap = array.astype(np.float64) - back.astype(np.float64)
    assert coding.max_error == np.abs(gap).max()
    size = np.linalg.norm(array.astype(np.float64))
    assert coding.rms_error == pytest.approx(np.linalg.norm(gap) / size if size else 0.0)


@given(
    shapes.arrays(np.float32, (2, 40), elements=st.floats(-(2.0**127), 2.0**127, width=32)),
    st.sampled_from(range(3)),
)
@example(np.full((2, 40), [1.0] * 32 + [1e-44] * 8, np.float32), 0)
def test_coding_what_was_read_back_changes_nothing(array, kind):
    with np.errstate(over="ignore"):
        array = array.astype(DTYPES[kind])
    first = _codecs.coded("int8", array)
    if first is None:
        assert not np.isfinite(array.astype(np.float32)).all()
        return
    data, back, _ = first
    assert np.isfinite(back.astype(np.float32)).all()
    again, twice, coding = _codecs.coded("int8", back)
    assert twice.tobytes() == back.tobytes() and coding.max_error == 0.0
    empty = not all(block.any(axis=1).all() for block in (back[:, :32], back[:, 32:]))
    assert again.tobytes() == data.tobytes() or empty  # an exponent of nothing is any exponent


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_leaves_what_it_cannot_keep(bad, tmp_path):
    batch = sample_batch(0, 4, width=64)
    batch.arrays[SITES[0]][2, 3] = bad
    with STORES.get("shards")(tmp_path).open_run("r", {**SPEC, "codec": "int8"}, PLAN) as writer:
        writer.append(unit_id(0, 4), batch, {})
    run = open_run(tmp_path / "r")
    entry = run.stored_units[0].commit.tensors
    assert entry[str(SITES[0])].coding is None and entry[str(SITES[1])].coding is not None
    assert run.numpy(SITES[0]).tobytes() == batch.arrays[SITES[0]].tobytes()
    assert run.verify().ok


@pytest.fixture(params=TAKING)
def store(request):
    return STORES.get(request.param)


def write(store, folder, codec, width=64, dtype="float32", units=((0, 4), (4, 8))):
    plan = {**PLAN, "stop": units[-1][1]}
    with store(folder).open_run("r", {**SPEC, "codec": codec}, plan) as writer:
        for start, stop in units:
            writer.append(unit_id(start, stop), sample_batch(start, stop, width=width), {})
    return folder / "r"


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_every_store_reads_values_back(store, codec, tmp_path):
    path = write(store, tmp_path, codec)
    whole = sample_batch(0, 8, width=64)
    with open_run(path) as run:
        assert run.verify().ok
        for site in SITES:
            found, wanted = run.numpy(site), whole.arrays[site]
            if codec == "zstd":
                assert found.tobytes() == wanted.tobytes()
            else:
                blocks = wanted.astype(np.float64).reshape(-1, 32)
                exact = np.array([mxint8(list(block)) for block in blocks])
                assert np.array_equal(found.reshape(-1, 32), exact)
            one = run.get(site, example=3)
            one[:] = 0  # the caller's own
            assert np.array_equal(run.array(site, example=3), found[whole.offsets[3] :][: len(one)])
            assert not run.array(site, example=3).flags.writeable
        summary = run.summary().sites[str(SITES[0])]
    if codec == "int8":
        assert summary.coded.ratio == pytest.approx(64 * 4 / 66)
        assert 0 < summary.coded.rms_error <= summary.coded.highest_rms_error < 0.01
        assert disk_usage(path).sites[str(SITES[0])] == summary.coded.bytes


def test_the_same_unit_again_is_the_same_whatever_the_library_makes_of_it(tmp_path, monkeypatch):
    batch = sample_batch(0, 4, width=64)
    batch = replace(batch, arrays={site: np.zeros_like(a) for site, a in batch.arrays.items()})
    with STORES.get("shards")(tmp_path).open_run("r", {**SPEC, "codec": "zstd"}, PLAN) as writer:
        writer.append(unit_id(0, 4), batch, {})
        monkeypatch.setattr(_codecs, "_LEVEL", 19)
        writer.append(unit_id(0, 4), batch, {})
    assert open_run(tmp_path / "r").verify().ok


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_runs_cut_elsewhere_merge_to_the_same_values(codec, tmp_path):
    whole = write(STORES.get("shards"), tmp_path / "a", codec)
    plan = {**PLAN, "stop": 4}
    rest = {**PLAN, "start": 4}
    for name, part, bounds in (("b", plan, (0, 4)), ("c", rest, (4, 8))):
        storage = STORES.get("shards")(tmp_path / name)
        with storage.open_run("r", {**SPEC, "codec": codec}, part) as writer:
            writer.append(unit_id(*bounds), sample_batch(*bounds, width=64), {})
    merge_runs([tmp_path / "b/r", tmp_path / "c/r"], tmp_path / "merged")
    with open_run(whole) as a, open_run(tmp_path / "merged") as b:
        assert all(a.numpy(site).tobytes() == b.numpy(site).tobytes() for site in SITES)
        assert b.verify().ok


def test_an_export_holds_the_values(tmp_path):
    path = write(STORES.get("shards"), tmp_path, "int8")
    export_run(open_run(path), "npy", tmp_path / "out")
    with open_run(path) as run:
        files = {f.name: np.load(f) for f in (tmp_path / "out").rglob("*.npy")}
        wanted = run.numpy(SITES[0])
    assert any(a.shape == wanted.shape and np.array_equal(a, wanted) for a in files.values())


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_any_flipped_byte_is_found(codec, tmp_path):
    path = write(STORES.get("shards"), tmp_path, codec, units=((0, 4),))
    data = next((path / "shards").iterdir())
    good = data.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(good), 60).tolist():
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        data.write_bytes(bad)
        with open_run(path) as run:
            assert not run.verify().ok
            for site in SITES:
                try:
                    found = run.numpy(site)
                except DamagedRunError:
                    continue
                data.write_bytes(good)
                with open_run(path) as whole:
                    assert found.tobytes() == whole.numpy(site).tobytes()
                data.write_bytes(bad)


def test_a_frame_that_claims_more_is_not_unpacked():
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    with pytest.raises(ValueError, match="16777216 bytes for 16"):
        _codecs._from_zstd(np.frombuffer(bomb, np.uint8), np.dtype(np.float32), (4,))


def test_what_is_not_there_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="int8"):
        STORES.get("shards")(tmp_path).open_run("r", {**SPEC, "codec": "int4"}, PLAN)
    with pytest.raises(BadInputError, match="plain values only"):
        STORES.get("npy_layers")(tmp_path).open_run("r", {**SPEC, "codec": "zstd"}, PLAN)
    path = write(STORES.get("shards"), tmp_path, "zstd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(BadInputError, match=r"actscope\[zstd\]"):
        STORES.get("shards")(tmp_path).open_run("s", {**SPEC, "codec": "zstd"}, PLAN)
    with open_run(path) as run, pytest.raises(BadInputError, match=r"actscope\[zstd\]"):
        run.numpy(SITES[0])


def test_a_capture_says_what_it_cost(tmp_path):
    base = [
        "capture",
        "--prompt",
        "The ferry leaves at nine.",
        "--prompt",
        "No.",
        "--layers",
        "0,1",
    ]
    runner = CliRunner()
    for codec in ("int8", "zstd"):
        made = runner.invoke(main, [*base, "--codec", codec, "--out", str(tmp_path / codec)])
        assert made.exit_code == 0, made.output
    assert runner.invoke(main, [*base, "--out", str(tmp_path / "plain")]).exit_code == 0
    shown = runner.invoke(main, ["runs", "show", str(tmp_path / "int8")]).output
    assert "Codecs" in shown and "int8" in shown
    assert "Codecs" not in runner.invoke(main, ["runs", "show", str(tmp_path / "plain")]).output
    with (
        open_run(tmp_path / "plain") as plain,
        open_run(tmp_path / "int8") as small,
        open_run(tmp_path / "zstd") as packed,
    ):
        assert len({run.fingerprint for run in (plain, small, packed)}) == 3
        for layer in (0, 1):
            wanted = plain.numpy("resid_post", layer).astype(np.float64)
            assert np.array_equal(packed.numpy("resid_post", layer), wanted)
            gap = np.linalg.norm(small.numpy("resid_post", layer) - wanted)
            told = small.summary().sites[f"blocks.{layer}.resid_post"].coded
            assert told.rms_error == pytest.approx(gap / np.linalg.norm(wanted), rel=1e-6)
            assert 0 < told.rms_error < 0.02


def test_a_store_without_codecs_is_refused_before_anything_runs(tmp_path):
    words = ["capture", "--prompt", "No.", "--store", "npy_layers", "--codec", "int8"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "r")])
    assert done.exit_code == 2 and not (tmp_path / "r").exists()
    assert "plain values only" in done.output + (done.stderr or "")


def test_a_dry_run_counts_coded_bytes(tmp_path):
    model = actscope.load_model("demo")
    extractor = actscope.ActivationExtractor(model, [0])
    options = actscope.capture.options.CaptureOptions(codec="int8")
    runner = actscope.DatasetRunner(
        ["The ferry leaves at nine.", "No."],
        None,
        extractor,
        actscope.ShardStorage(tmp_path),
        options=options,
    )
    dry = runner.dry_run()
    made = runner.run(run_id="r")
    site = Site("resid_post", 0)
    with open_run(made.path) as run:
        assert dry.bytes_by_site[site] == run.summary().sites[str(site)].coded.bytes
    assert coded_share("int8", "float32", 64) == 66 / 256
    assert coded_share("zstd", "float32", 64) == coded_share("int8", "int64", 64) == 1.0


def with_pattern(start, stop, *, bad=()):
    """Examples of a pattern of three heads besides, some with a NaN in the first site."""
    rng = np.random.default_rng(7)
    whole = sample_batch(0, 8, width=64)
    values = (rng.random(3 * int(whole.block_offsets[-1])) ** 8).astype(np.float32)
    batch = sample_batch(start, stop, width=64)
    low, high = (3 * whole.block_offsets[[start, stop]]).tolist()
    pattern = Site("pattern", 1)
    arrays = {**batch.arrays, pattern: values[low:high]}
    batch = replace(batch, arrays=arrays, heads={pattern: 3})
    for index in bad:
        if start <= index < stop:
            batch.arrays[SITES[0]][batch.offsets[index - start], 3] = np.nan
    return batch


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_a_unit_that_is_cut_by_a_merge_keeps_values_and_errors(codec, tmp_path):
    """Plain values stay plain, blocks of a pattern are not rounded twice, errors stay on record."""
    paths = []
    for name, start, stop in (("a", 0, 4), ("b", 2, 8)):
        plan = UnitPlan(start, stop, 8).to_json()
        with STORES.get("shards")(tmp_path).open_run(name, {**SPEC, "codec": codec}, plan) as w:
            w.append(unit_id(start, stop), with_pattern(start, stop, bad=[2]), {})
        paths.append(w.path)
    assert merge_runs(paths, tmp_path / "all", keep_first=True).cut == 1
    with open_run(paths[1]) as b, open_run(tmp_path / "all") as merged:
        assert merged.verify().ok and merged.units[1] == unit_id(4, 8)
        for site in (*SITES, Site("pattern", 1)):
            for i in range(4, 8):
                found, wanted = merged.array(site, example=i), b.array(site, example=i - 2)
                assert found.tobytes() == wanted.tobytes(), (site, i)
        was, now = (run.stored_units[-1].commit.tensors for run in (b, merged))
        assert was[str(SITES[0])].coding is None or codec == "zstd"
        before, after = was[str(SITES[1])].coding, now[str(SITES[1])].coding
        assert (after.max_error, after.rms_error) == (before.max_error, before.rms_error)
        assert (before.rms_error > 0) == (codec == "int8")


@pytest.mark.parametrize("form", ["npz", "npy", "datasets"])
def test_what_a_codec_cost_is_on_record_after_export_and_import(form, tmp_path):
    path = write(STORES.get("shards"), tmp_path, "int8")
    export_run(open_run(path), form, tmp_path / "out")
    import_run(tmp_path / "out", form, tmp_path / "back")
    with open_run(path) as run, open_run(tmp_path / "back") as back:
        for site in SITES:
            assert back.numpy(site).tobytes() == run.numpy(site).tobytes()
        assert back.summary().sites == run.summary().sites
        assert back.summary().sites[str(SITES[0])].coded.rms_error > 0


def test_statistics_are_of_the_values_that_are_read(tmp_path):
    path = write(STORES.get("shards"), tmp_path, "int8")
    with open_run(path) as run:
        for site in SITES:
            values, told = run.numpy(site).astype(np.float64), run.summary().sites[str(site)]
            assert told.absmax == np.abs(values).max()
            assert told.norms.mean == pytest.approx(np.linalg.norm(values, axis=1).mean(), rel=1e-9)
