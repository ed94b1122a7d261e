"""What every format that holds whole runs promises, as a test suite for this package's and others.

class TestMyFormat(FormatContract):
    @pytest.fixture
    def form(self):
        return MyFormat()

    def export(self, run, form, out, **options): ...   # returns a report with `notes`
    def restore(self, source, form, out): ...          # returns the path of a native run
    def write(self, path, batches, spec, plan): ...    # returns the path of a native run
    def read(self, path): ...                          # opens a run
"""

# ruff: noqa: D102 - the name of a test says what it promises
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actscope.core.activations import ActivationBatch, ExampleFailure
from actscope.core.errors import ActscopeError, BadInputError, OutputFolderError
from actscope.core.sites import Site
from actscope.core.spec import UnitPlan, unit_id
from actscope.testing.store_contract import PLAN, SITES, SPEC, UNITS, sample_batch

__all__ = ["FormatContract", "same_runs"]


def same_runs(one: Any, two: Any) -> None:
    """Whether two runs hold the same, bit by bit: units, tensors, records, spec, plan, failures."""
    assert one.spec == two.spec and one.plan == two.plan and one.units == two.units
    assert one.sites == two.sites and one.failures == two.failures
    assert list(one.examples) == list(two.examples)
    for a, b in zip(one.stored_units, two.stored_units, strict=True):
        sums = [{k: t.xxh3 for k, t in u.commit.tensors.items() if k != "layers"} for u in (a, b)]
        assert sums[0] == sums[1]
        assert a.commit.timings == b.commit.timings and a.commit.metadata == b.commit.metadata
        assert a.commit.sites == b.commit.sites


class FormatContract:
    """Subclass it; override the fixture and the four methods."""

    pooled: bool = False
    """Whether the format holds pooled runs only."""

    @pytest.fixture
    def form(self) -> Any:
        """The format; override this."""
        raise NotImplementedError("a format's test overrides the fixture `form`")

    def export(self, run: Path, form: Any, out: Path, **options: Any) -> Any:
        """Export a run; override this."""
        raise NotImplementedError("a format's test overrides `export`")

    def restore(self, source: Path, form: Any, out: Path) -> Path:
        """Import an export; override this."""
        raise NotImplementedError("a format's test overrides `restore`")

    def write(
        self,
        path: Path,
        batches: Sequence[tuple[str, ActivationBatch]],
        spec: dict[str, Any] | None = SPEC,
        plan: dict[str, Any] | None = PLAN,
    ) -> Path:
        """Write a native run; override this."""
        raise NotImplementedError("a format's test overrides `write`")

    def read(self, path: Path) -> Any:
        """Open a run; override this."""
        raise NotImplementedError("a format's test overrides `read`")

    def sample(self, path: Path, **options: Any) -> Path:
        """A run of three units."""
        return self.write(path, self.units(**options))

    def units(self, **options: Any) -> list[tuple[str, ActivationBatch]]:
        """Three units, pooled where the format holds no others."""
        options.setdefault("pooled", self.pooled)
        return [(unit_id(a, b), sample_batch(a, b, **options)) for a, b in UNITS]

    def there_and_back(self, run: Path, form: Any, tmp_path: Path, **options: Any) -> Any:
        """Export a run, import it, and return it opened."""
        self.export(run, form, tmp_path / "out", **options)
        return self.read(self.restore(tmp_path / "out", form, tmp_path / "back"))

    # -- everything comes back ------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_everything_comes_back(self, form: Any, tmp_path: Path, dtype: str) -> None:
        spec = {**SPEC, "storage_dtype": "float16" if dtype == "float16" else "native"}
        run = self.write(tmp_path / "run", self.units(dtype=dtype), spec)
        same_runs(self.read(run), self.there_and_back(run, form, tmp_path))

    def test_a_pooled_run_comes_back(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run", pooled=True)
        same_runs(self.read(run), self.there_and_back(run, form, tmp_path))

    def test_a_bare_run_of_bfloat16_comes_back(self, form: Any, tmp_path: Path) -> None:
        run = self.write(tmp_path / "run", self.units(dtype="bfloat16"), None, None)
        again = self.there_and_back(run, form, tmp_path)
        assert str(again.stack("ln_final").dtype) == "torch.bfloat16"
        same_runs(self.read(run), again)

    def test_bfloat16_is_kept_or_widened_and_said(self, form: Any, tmp_path: Path) -> None:
        run = self.write(tmp_path / "run", self.units(dtype="bfloat16"), None, None)
        notes = " ".join(self.export(run, form, tmp_path / "out").notes)
        assert ("bfloat16" in notes and "float32" in notes) is not form.keeps_bfloat16
        assert "float16:" not in notes.replace("bfloat16:", "")

    def test_special_values_come_back(self, form: Any, tmp_path: Path) -> None:
        values = np.array(
            [[-0.0, np.nan, np.inf, -np.inf, 1e-45], [3.4e38, -3.4e38, 1e-38, 0.0, 5e-324]],
            np.float32,
        )
        batch = sample_batch(1, 3 if self.pooled else 2, pooled=self.pooled)
        batch.arrays = {SITES[0]: values}
        run = self.write(tmp_path / "run", [("one", batch)], None, None)
        same_runs(self.read(run), self.there_and_back(run, form, tmp_path))

    def test_minus_zero_alone_comes_back(self, form: Any, tmp_path: Path) -> None:
        batch = sample_batch(0, 4, pooled=self.pooled)
        batch.arrays = {SITES[0]: np.full_like(batch.arrays[SITES[0]], -0.0)}
        run = self.write(tmp_path / "run", [("u", batch)], None, None)
        same_runs(self.read(run), self.there_and_back(run, form, tmp_path))

    def test_heads_and_patterns_come_back(self, form: Any, tmp_path: Path) -> None:
        z, pattern = Site("z", 1), Site("pattern", 1, parts=(0, 2, 5))
        units: list[tuple[str, ActivationBatch]] = []
        for name, batch in self.units():
            rng = np.random.default_rng(len(units))
            arrays = {z: rng.standard_normal((int(batch.offsets[-1]), 6)).astype(np.float32)}
            if not self.pooled:
                pairs = 3 * int(batch.block_offsets[-1])
                arrays[pattern] = rng.random(pairs).astype(np.float32)
            units.append((name, replace(batch, arrays=arrays, heads={z: 2, pattern: 3})))
        run = self.write(tmp_path / "run", units, None, None)
        again = self.there_and_back(run, form, tmp_path)
        same_runs(self.read(run), again)
        assert again.get("z", 1, example=2).shape[-2:] == (2, 3)

    def test_whole_numbers_come_back(self, form: Any, tmp_path: Path) -> None:
        batch = sample_batch(0, 4, pooled=self.pooled)
        rows = len(batch.arrays[SITES[0]])
        numbers = np.arange(rows * 2, dtype=np.int64).reshape(rows, 2) + 2**53
        batch.arrays = {Site.module("model.chosen"): numbers, SITES[2]: numbers % 2 == 0}
        run = self.write(tmp_path / "run", [("u", batch)], None, None)
        same_runs(self.read(run), self.there_and_back(run, form, tmp_path))

    def test_without_text(self, form: Any, tmp_path: Path) -> None:
        run = self.write(tmp_path / "run", self.units(), {**SPEC, "keep_text": False})
        again = self.there_and_back(run, form, tmp_path)
        same_runs(self.read(run), again)
        with pytest.raises(BadInputError, match="keeps no texts"):
            again.tokens(0)

    def test_failures_and_units_without_examples_come_back(self, form: Any, tmp_path: Path) -> None:
        failure = ExampleFailure("ex-0", 0, "empty_span", "no token is left")
        nothing = replace(sample_batch(0, 0, pooled=self.pooled), failures=(failure,))
        units = [(unit_id(0, 4), nothing), *self.units()[1:]]
        run = self.write(tmp_path / "run", units)
        again = self.there_and_back(run, form, tmp_path)
        same_runs(self.read(run), again)
        assert again.failures == (failure,)

    def test_an_empty_run_comes_back(self, form: Any, tmp_path: Path) -> None:
        run = self.write(tmp_path / "run", [], SPEC, UnitPlan(0, 0, 4).to_json())
        same_runs(self.read(run), self.there_and_back(run, form, tmp_path))

    def test_odd_names_stay_inside_the_folder(self, form: Any, tmp_path: Path) -> None:
        names = ["../../up", "/etc/x", "a\0b", "=1+1", "\ud800", 'a"b\nc,d', "x" * 400]
        batch = sample_batch(0, len(names), pooled=self.pooled)
        records = [replace(r, id=n) for r, n in zip(batch.examples, names, strict=True)]
        site = Site.module("../../up/down")
        batch = replace(batch, examples=tuple(records), arrays={site: batch.arrays[SITES[0]]})
        run = self.write(tmp_path / "run", [("../up", batch)], None, None)
        before = {p for p in tmp_path.rglob("*") if run not in p.parents}
        again = self.there_and_back(run, form, tmp_path)
        assert [record.id for record in again.examples] == names
        new = {p for p in tmp_path.rglob("*") if run not in p.parents} - before
        inside = {tmp_path / "out", tmp_path / "back"}
        assert new and all(inside & {p, *p.parents} for p in new)
        same_runs(self.read(run), again)

    # -- a part of it ------------------------------------------------------------------------------

    def test_some_sites(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run")
        again = self.there_and_back(run, form, tmp_path, sites="resid_post", layers="-1")
        assert again.sites == (SITES[1],) and again.spec["sites"] == [str(SITES[1])]
        assert np.array_equal(again.numpy(SITES[1]), self.read(run).numpy(SITES[1]))

    def test_a_site_that_was_not_captured(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run")
        with pytest.raises(BadInputError, match="attn_out"):
            self.export(run, form, tmp_path / "out", sites="attn_out")
        assert not (tmp_path / "out").exists()

    # -- what is there is left alone, what was stopped goes on -----------------------------

    def test_the_same_export_again_does_nothing(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run")
        self.export(run, form, tmp_path / "out")
        before = _stamps(tmp_path / "out")
        assert self.export(run, form, tmp_path / "out").resumed == len(UNITS)
        assert _stamps(tmp_path / "out") == before

    def test_another_export_is_refused(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run")
        self.export(run, form, tmp_path / "out", sites="ln_final")
        before = _stamps(tmp_path / "out")
        with pytest.raises(OutputFolderError, match="in the way"):
            self.export(run, form, tmp_path / "out")
        other = self.sample(tmp_path / "other", seed=1)
        with pytest.raises(OutputFolderError, match="in the way"):
            self.export(other, form, tmp_path / "out", sites="ln_final")
        assert _stamps(tmp_path / "out") == before

    def test_a_folder_with_something_else_is_left_alone(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")
        with pytest.raises(OutputFolderError, match="in the way"):
            self.export(run, form, tmp_path / "out")
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]

    def test_a_partial_run_is_refused(self, form: Any, tmp_path: Path) -> None:
        run = self.write(tmp_path / "run", self.units()[:2])
        with pytest.raises(BadInputError, match="not complete"):
            self.export(run, form, tmp_path / "out")

    @pytest.mark.parametrize(("point", "nth"), [("half-written", 2), ("unit-written", 2)])
    def test_a_full_disk_leaves_nothing_under_the_name_and_the_same_export_goes_on(
        self, form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, nth: int
    ) -> None:
        run = self.sample(tmp_path / "run")
        monkeypatch.setenv("ACTSCOPE_FAIL_AT", f"export.{point}:{nth}:ENOSPC:{tmp_path}")
        with pytest.raises(ActscopeError, match="free some space"):
            self.export(run, form, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        monkeypatch.delenv("ACTSCOPE_FAIL_AT")
        self.export(run, form, tmp_path / "out")
        self.export(run, form, tmp_path / "whole")
        assert _content(tmp_path / "out").keys() == _content(tmp_path / "whole").keys()
        again = self.read(self.restore(tmp_path / "out", form, tmp_path / "back"))
        same_runs(self.read(run), again)

    def test_a_stopped_export_of_another_run_is_not_mixed_in(
        self, form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, other = self.sample(tmp_path / "run"), self.sample(tmp_path / "other", seed=1)
        monkeypatch.setenv("ACTSCOPE_FAIL_AT", f"export.unit-on-record:2:EIO:{tmp_path}")
        with pytest.raises(ActscopeError, match="disk failed"):
            self.export(run, form, tmp_path / "out")
        monkeypatch.delenv("ACTSCOPE_FAIL_AT")
        with pytest.raises(OutputFolderError, match="was stopped"):
            self.export(other, form, tmp_path / "out")

    def test_importing_again_does_nothing(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run")
        self.there_and_back(run, form, tmp_path)
        before = _stamps(tmp_path / "back")
        self.restore(tmp_path / "out", form, tmp_path / "back")
        assert _stamps(tmp_path / "back") == before

    def test_the_run_is_left_alone(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run")
        before = _stamps(run)
        self.there_and_back(run, form, tmp_path)
        assert _stamps(run) == before

    # -- what is damaged is found ----------------------------------------------------------

    def test_a_changed_byte_is_never_imported(self, form: Any, tmp_path: Path) -> None:
        """Whatever byte of whatever file: the import is refused, or gives the very same run."""
        run = self.sample(tmp_path / "run")
        self.export(run, form, tmp_path / "out")
        rng = np.random.default_rng(0)
        files = sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file())
        refused = 0
        for number in range(12):
            file = files[rng.integers(len(files))]
            before = file.read_bytes()
            if not before:
                continue
            at = int(rng.integers(len(before)))
            changed = before[:at] + bytes([before[at] ^ (1 << int(rng.integers(8)))])
            file.write_bytes(changed + before[at + 1 :])
            try:
                back = self.restore(tmp_path / "out", form, tmp_path / f"back-{number}")
            except ActscopeError:
                refused += 1
            else:
                same_runs(self.read(run), self.read(back))
            file.write_bytes(before)
        assert refused

    def test_a_file_that_is_gone_or_cut(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run")
        self.export(run, form, tmp_path / "out")
        files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
        largest = max(files, key=lambda p: (p.stat().st_size, p.name))
        before = largest.read_bytes()
        largest.write_bytes(before[: len(before) // 2])
        with pytest.raises(ActscopeError):
            self.restore(tmp_path / "out", form, tmp_path / "cut")
        largest.unlink()
        with pytest.raises(ActscopeError):
            self.restore(tmp_path / "out", form, tmp_path / "gone")
        (tmp_path / "elsewhere").write_bytes(before)
        largest.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ActscopeError):
            self.restore(tmp_path / "out", form, tmp_path / "link")

    def test_an_unknown_option(self, form: Any, tmp_path: Path) -> None:
        run = self.sample(tmp_path / "run")
        with pytest.raises(BadInputError, match="option"):
            self.export(run, form, tmp_path / "out", options={"colour": "red"})


def _content(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def _stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.read_bytes())
        for p in folder.rglob("*")
        if p.is_file()
    }
