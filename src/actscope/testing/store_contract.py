"""What every store promises, as a test suite for the stores of this package and of others.

class TestMyStore(StoreContract):
    @pytest.fixture
    def storage(self, tmp_path):
        return MyStorage(tmp_path / "runs")

    def read(self, path):
        return open_run(path)
"""

# ruff: noqa: D102 - the name of a test says what it promises
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actscope.core.activations import ActivationBatch, ExampleFailure, ExampleRecord
from actscope.core.arrays import DTYPES, Array
from actscope.core.errors import (
    BadInputError,
    DuplicateUnitError,
    NumericRangeError,
    OutputFolderError,
    RunMismatchError,
)
from actscope.core.protocols import Storage
from actscope.core.sites import Site
from actscope.core.spec import UnitPlan, unit_id
from actscope.core.text import RESPONSE

__all__ = ["StoreContract", "sample_batch"]

SITES = (Site("resid_post", 0), Site("resid_post", 3), Site("ln_final"))
SPEC: dict[str, Any] = {
    "model": {"name": "none", "n_layers": 4},
    "dataset": "d" * 64,
    "sites": [str(site) for site in SITES],
    "storage_dtype": "native",
    "keep_text": True,
    "max_length": 4,
}
PLAN = UnitPlan(0, 10, 4).to_json()


def sample_batch(
    start: int,
    stop: int,
    *,
    pooled: bool = False,
    dtype: str = "float32",
    width: int = 5,
    seed: int = 0,
) -> ActivationBatch:
    """A batch of made-up activations for the examples of a range.

    Example i has ``i % 4`` tokens of prompt and one of response, and rows for all of them; its
    values depend on nothing but its index, the width and the seed.
    """
    lengths = [i % 4 + 1 for i in range(start, stop)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    counts = [1] * len(lengths) if pooled else lengths

    def rows(layer: int) -> Array:
        parts = [
            np.random.default_rng([seed, layer, i]).standard_normal((n, width))
            for i, n in zip(range(start, stop), counts, strict=True)
        ]
        return np.concatenate([np.zeros((0, width)), *parts]).astype(DTYPES[dtype])

    def joined(parts: list[Array], kind: Any) -> Array:
        return np.concatenate([np.zeros(0, kind), *parts]).astype(kind)

    return ActivationBatch(
        arrays={site: rows(i) for i, site in enumerate(SITES)},
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        positions=joined([] if pooled else [np.arange(n) for n in lengths], np.int32),
        examples=tuple(
            ExampleRecord(f"ex-{i}", i, n, n - 1, f"text {i} \ud83d \0 é", None, {"place": i})
            for i, n in zip(range(start, stop), lengths, strict=True)
        ),
        token_ids=joined(
            [np.arange(n) + 10 * i for i, n in zip(range(start, stop), lengths, strict=True)],
            np.int64,
        ),
        token_offsets=offsets,
        phase=joined([np.arange(n) == n - 1 for n in lengths], np.uint8) * RESPONSE,
        pooled=pooled,
    )


def _write_all(storage: Storage, run_id: str, units: list[tuple[int, int]], **options: Any) -> Path:
    writer = storage.open_run(run_id, SPEC, PLAN)
    for start, stop in units:
        writer.append(unit_id(start, stop), sample_batch(start, stop, **options), {})
    writer.close()
    return writer.path


def _with_heads(batch: ActivationBatch, z: Site, pattern: Site) -> ActivationBatch:
    """The batch with two heads of three in ``z``, and three heads of a pattern if not pooled."""
    rng = np.random.default_rng(len(batch))
    arrays: dict[Site, Array] = {z: rng.standard_normal((int(batch.offsets[-1]), 6))}
    if not batch.pooled:
        arrays[pattern] = rng.random(3 * int(batch.block_offsets[-1]))
    given = {site: array.astype(np.float32) for site, array in arrays.items()}
    return replace(batch, arrays=given, heads={z: 2, pattern: 3})


UNITS = [(0, 4), (4, 8), (8, 10)]


class StoreContract:
    """Subclass it, give it a ``storage`` fixture and ``read``."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        """An empty storage; override this."""
        raise NotImplementedError("a store's test overrides the fixture `storage`")

    def read(self, path: Path) -> Any:
        """Open a run for reading; override this."""
        raise NotImplementedError("a store's test overrides `read`")

    # -- what goes in comes out -------------------------------------------------------------

    @pytest.mark.parametrize("pooled", [False, True])
    def test_round_trip(self, storage: Storage, pooled: bool) -> None:
        run = self.read(_write_all(storage, "r", UNITS, pooled=pooled))
        whole = sample_batch(0, 10, pooled=pooled)
        assert run.complete and run.n_examples == 10 and run.sites == SITES
        assert run.spec == SPEC and run.layers == [0, 3]
        assert run.offsets.tolist() == whole.offsets.tolist()
        assert [record.id for record in run.examples] == [f"ex-{i}" for i in range(10)]
        assert run.examples[7] == replace(whole.examples[7])
        for site in SITES:
            assert np.array_equal(run.numpy(site), whole.arrays[site])
            assert np.array_equal(run.stack(site).numpy(), whole.arrays[site])
            for i in (0, 5, 9, -1):
                start, stop = whole.offsets[i % 10 : i % 10 + 2].tolist()
                rows = whole.arrays[site][start:stop]
                expected = rows[0] if pooled else rows
                assert np.array_equal(run.get(site, example=i).numpy(), expected)

    @pytest.mark.parametrize("pooled", [False, True])
    def test_heads_and_patterns_round_trip(self, storage: Storage, pooled: bool) -> None:
        z, some = Site("z", 1), Site("pattern", 1, parts=(0, 2, 5))
        writer = storage.open_run("r")
        whole: list[Any] = []
        for start, stop in UNITS:
            batch = _with_heads(sample_batch(start, stop, pooled=pooled), z, some)
            writer.append(unit_id(start, stop), batch, {})
            whole += list(zip(batch[z], [None] * 4 if pooled else batch[some], strict=False))
        run = self.read(writer.path)
        assert run.site("pattern", 1) == some if not pooled else run.sites == (z,)
        for i in (0, 3, 6, 9, -1):
            rows, block = whole[i]
            assert run.get("z", 1, example=i).equal(rows)
            assert rows.shape[-2:] == (2, 3)
            if block is not None:
                n = run.examples[i].n_tokens
                assert run.get(some, example=i).equal(block) and block.shape == (3, n, n)
                assert np.array_equal(run.array(some, example=i), block.numpy())
        assert run.stack("z", 1).shape == (10 if pooled else len(run.numpy(z)), 6)
        assert run.verify().ok
        if not pooled:
            with pytest.raises(BadInputError, match="example=i"):
                run.stack(some)
            assert run.summary().sites[str(some)].bytes == 4 * sum(b.numel() for _, b in whole)

    def test_a_pattern_of_another_size_is_refused(self, storage: Storage) -> None:
        z, some = Site("z", 1), Site("pattern", 1, parts=(0, 2, 5))
        batch = _with_heads(sample_batch(0, 4), z, some)
        batch.arrays[some] = batch.arrays[some][:-1]
        with pytest.raises(BadInputError, match="does not fit together"):
            storage.open_run("r").append("u", batch, {})

    def test_tokens_phases_and_positions(self, storage: Storage) -> None:
        run = self.read(_write_all(storage, "r", UNITS))
        assert run.tokens(6).tolist() == [60, 61, 62]
        assert run.phase(6).tolist() == [0, 0, RESPONSE]
        assert run.positions(6).tolist() == [0, 1, 2]

    def test_bfloat16_is_kept_or_widened_never_rounded(self, storage: Storage) -> None:
        run = self.read(_write_all(storage, "r", UNITS, dtype="bfloat16"))
        given = sample_batch(0, 10, dtype="bfloat16").arrays[SITES[1]]
        name = str(run.stack("resid_post", 3).dtype).removeprefix("torch.")
        assert name == ("bfloat16" if storage.keeps_bfloat16 else "float32")
        assert np.array_equal(run.numpy("resid_post", 3), given.astype(np.float32))

    def test_special_values_survive(self, storage: Storage) -> None:
        values = np.array(
            [[-0.0, np.nan, np.inf, -np.inf, 1e-45], [3.4e38, -3.4e38, 1e-38, 0.0, 5e-324]],
            np.float32,
        )
        batch = sample_batch(1, 2)
        batch.arrays = {SITES[0]: values}
        writer = storage.open_run("r")
        writer.append("one", batch, {})
        stored = self.read(writer.path).get("resid_post", 0, example=0).numpy()
        assert stored.tobytes() == values.tobytes()

    def test_what_was_read_is_the_callers_own(self, storage: Storage) -> None:
        run = self.read(_write_all(storage, "r", UNITS))
        before = run.get("resid_post", 3, example=2).clone()
        run.get("resid_post", 3, example=2).zero_()
        run.stack("resid_post", 3).zero_()
        assert run.get("resid_post", 3, example=2).equal(before)
        assert run.verify().ok

    def test_the_callers_arrays_are_left_alone(self, storage: Storage) -> None:
        batch = sample_batch(0, 4)
        before = {site: array.copy() for site, array in batch.arrays.items()}
        storage.open_run("r").append("u", batch, {})
        assert all(np.array_equal(batch.arrays[site], before[site]) for site in SITES)

    def test_examples_come_in_dataset_order(self, storage: Storage) -> None:
        run = self.read(_write_all(storage, "r", UNITS[::-1]))
        assert [record.index for record in run.examples] == list(range(10))
        assert np.array_equal(run.numpy("ln_final"), sample_batch(0, 10).arrays[SITES[2]])

    def test_an_empty_dataset_makes_a_complete_run(self, storage: Storage) -> None:
        plan = UnitPlan(0, 0, 4).to_json()
        run = self.read(storage.open_run("r", SPEC, plan).path)
        assert run.complete and run.units == () and run.n_examples == 0
        assert list(run.examples) == [] and run.sites == SITES and run.verify().ok
        assert run.offsets.tolist() == [0]

    def test_a_unit_without_examples_keeps_its_failures(self, storage: Storage) -> None:
        failure = ExampleFailure("ex-0", 0, "empty_span", "no token is left")
        batch = replace(sample_batch(0, 0), failures=(failure,))
        writer = storage.open_run("r")
        writer.append("u", batch, {"errors": [failure.to_json()], "timings": {"forward": 1.5}})
        run = self.read(writer.path)
        assert run.failures == (failure,) and run.n_examples == 0
        assert run.summary().errors == {"empty_span": 1}
        assert run.summary().timings == {"forward": 1.5}

    def test_without_text(self, storage: Storage) -> None:
        writer = storage.open_run("r", {**SPEC, "keep_text": False}, PLAN)
        writer.append(unit_id(0, 4), sample_batch(0, 4), {})
        run = self.read(writer.path)
        assert run.examples[1].text is None and run.examples[1].n_tokens == 2
        with pytest.raises(BadInputError, match="keeps no texts"):
            run.tokens(0)

    # -- units ----------------------------------------------------------------------------

    def test_what_was_appended_is_committed(self, storage: Storage) -> None:
        writer = storage.open_run("r", SPEC, PLAN)
        assert writer.committed() == set()
        writer.append(unit_id(4, 8), sample_batch(4, 8), {})
        assert writer.committed() == {unit_id(4, 8)}
        again = storage.open_run("r", SPEC, PLAN)
        assert again.committed() == {unit_id(4, 8)}
        run = self.read(writer.path)
        assert run.pending == (unit_id(0, 4), unit_id(8, 10)) and not run.complete

    def test_the_same_unit_again_does_nothing(self, storage: Storage) -> None:
        path = _write_all(storage, "r", UNITS)
        before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.rglob("*.*")}
        assert _write_all(storage, "r", UNITS) == path
        assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.rglob("*.*")} == before

    def test_a_unit_with_other_content_is_refused(self, storage: Storage) -> None:
        writer = storage.open_run("r")
        writer.append("u", sample_batch(0, 4), {})
        with pytest.raises(DuplicateUnitError, match="other content"):
            writer.append("u", sample_batch(0, 4, seed=1), {})
        run = self.read(writer.path)
        assert np.array_equal(run.numpy("ln_final"), sample_batch(0, 4).arrays[SITES[2]])

    def test_any_text_is_a_unit_id(self, storage: Storage) -> None:
        ids = ["a", "A", "a/b", "../up", "a.b", "a%2eb", ".", "é", "\0", "x" * 500, "x" * 501, "%"]
        writer = storage.open_run("r")
        for i, name in enumerate(ids):
            writer.append(name, sample_batch(i, i + 1), {})
        assert storage.open_run("r").committed() == set(ids)
        run = self.read(writer.path)
        assert list(run.units) == ids and run.n_examples == len(ids)

    def test_content_that_does_not_fit_together_is_refused(self, storage: Storage) -> None:
        writer = storage.open_run("r")
        good = sample_batch(0, 4)
        short = replace(good, arrays={SITES[0]: good.arrays[SITES[0]][:-1]})
        for bad in (short, replace(good, offsets=good.offsets[:-1])):
            with pytest.raises(BadInputError, match="does not fit together"):
                writer.append("u", bad, {})
        assert writer.committed() == set()

    def test_a_unit_the_plan_does_not_have_is_refused(self, storage: Storage) -> None:
        with pytest.raises(BadInputError, match="has no unit"):
            storage.open_run("r", SPEC, PLAN).append("other", sample_batch(0, 4), {})

    # -- what does not fit is refused ------------------------------------------------------

    def test_float16_on_request(self, storage: Storage) -> None:
        writer = storage.open_run("r", {**SPEC, "storage_dtype": "float16"}, PLAN)
        writer.append(unit_id(0, 4), sample_batch(0, 4), {})
        run = self.read(writer.path)
        plain = sample_batch(0, 4).arrays[SITES[2]].astype(np.float16)
        assert run.stack("ln_final").numpy().tobytes() == plain.tobytes()

    def test_float16_overflow_stops_before_writing(self, storage: Storage) -> None:
        batch = sample_batch(0, 4)
        batch.arrays[SITES[1]][4, 2] = -70000.0
        writer = storage.open_run("r", {**SPEC, "storage_dtype": "float16"}, PLAN)
        with pytest.raises(NumericRangeError) as caught:
            writer.append(unit_id(0, 4), batch, {})
        for part in ("blocks.3.resid_post", "'ex-2'", "position 1", "70000", "--dtype float32"):
            assert part in str(caught.value)
        assert writer.committed() == set()

    def test_another_spec_is_refused(self, storage: Storage) -> None:
        path = _write_all(storage, "r", UNITS[:1])
        with pytest.raises(RunMismatchError) as caught:
            storage.open_run("r", {**SPEC, "model": {"name": "other", "n_layers": 4}}, PLAN)
        assert caught.value.differences == [("model.name", "none", "other")]
        with pytest.raises(RunMismatchError):
            storage.open_run("r")
        assert self.read(path).verify().ok

    def test_another_plan_is_refused_and_none_keeps_the_stored_one(self, storage: Storage) -> None:
        _write_all(storage, "r", UNITS[:1])
        with pytest.raises(RunMismatchError) as caught:
            storage.open_run("r", SPEC, {**PLAN, "unit_size": 5})
        assert caught.value.differences == [("plan.unit_size", 4, 5)]
        storage.open_run("r", SPEC).append(unit_id(4, 8), sample_batch(4, 8), {})

    def test_a_folder_with_something_else_is_left_alone(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        folder = storage.open_run("probe").path.parent / "mine"
        folder.mkdir()
        (folder / "thesis.txt").write_bytes(b"years of work")
        with pytest.raises(OutputFolderError, match=r"thesis\.txt"):
            storage.open_run("mine", SPEC, PLAN)
        assert [p.name for p in folder.iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize(
        "run_id", ["", ".", "..", "../x", "a/../../x", "/etc/x", "a\0b", "a\\b", "x" * 300, "a//b"]
    )
    def test_a_run_cannot_leave_its_folder(self, storage: Storage, run_id: str) -> None:
        with pytest.raises(BadInputError, match="plain name"):
            storage.open_run(run_id)

    def test_a_closed_writer_takes_no_more(self, storage: Storage) -> None:
        writer = storage.open_run("r")
        writer.close()
        with pytest.raises(BadInputError, match="closed"):
            writer.append("u", sample_batch(0, 1), {})

    # -- what is damaged is found ----------------------------------------------------------

    @pytest.mark.parametrize("seed", range(3))
    def test_a_flipped_bit_is_reported_and_never_returned(
        self, storage: Storage, seed: int
    ) -> None:
        path = _write_all(storage, "r", UNITS)
        rng = np.random.default_rng(seed)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        for _ in range(20):
            file = files[rng.integers(len(files))]
            before = file.read_bytes()
            at, bit = int(rng.integers(len(before))), int(rng.integers(8))
            file.write_bytes(_flipped(before, at, bit))
            assert not _verify(self.read, path)
            assert _reads_right_or_raises(self.read, path)
            file.write_bytes(before)
        assert self.read(path).verify().ok


def _flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def _verify(read: Callable[[Path], Any], path: Path) -> bool:
    """Whether everything is said to be whole."""
    try:
        return read(path).verify().ok
    except Exception:
        return False


def _reads_right_or_raises(read: Callable[[Path], Any], path: Path) -> bool:
    """Whether no wrong number comes out."""
    try:
        run = read(path)
        found = [run.numpy(site) for site in SITES]
    except Exception:
        return True
    whole = sample_batch(0, 10)
    return all(np.array_equal(a, whole.arrays[s]) for a, s in zip(found, SITES, strict=True))
