"""What every loaded model promises, as a test suite for the backends of this package and of others.

class TestMyBackend(BackendContract):
    @pytest.fixture
    def model(self):
        return MyBackend().load_model("something small")
"""

# ruff: noqa: D102 - the name of a test says what it promises
from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from actscope.core.activations import ActivationBatch, Batch
from actscope.core.errors import ActscopeError, BadInputError, ExampleError
from actscope.core.protocols import BackendModel, Selection
from actscope.core.sites import SITE_KINDS, Site
from actscope.core.text import Example, Span

__all__ = ["BackendContract", "KeepAll"]


class KeepAll:
    """The plainest strategy: every token."""

    name: ClassVar[str] = "none"
    pools: ClassVar[bool] = False

    @property
    def params(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    def check(self, model: BackendModel) -> None:
        """Any model will do."""

    def pool(self, hidden: Any, mask: Any) -> Any:
        """Never called."""
        raise AssertionError("a strategy that does not pool was asked to")


class BackendContract:
    """Promises of ``BackendModel``; override the fixture ``model``."""

    @pytest.fixture
    def model(self) -> BackendModel:
        raise AssertionError("override the fixture `model`")

    def ids(self, model: BackendModel, *lengths: int) -> Batch:
        """A batch of token ids that any vocabulary of more than 40 tokens has."""
        rng = np.random.default_rng(0)
        return Batch.from_ids([rng.integers(10, 40, size=n).tolist() for n in lengths])

    def run(self, model: BackendModel, batch: Batch, *sites: Site, **span: Any) -> ActivationBatch:
        """One forward pass."""
        with model.open(Selection(sites, KeepAll(), Span(**span))) as session:
            return session.run(batch)

    def test_it_says_who_it_is(self, model: BackendModel) -> None:
        identity = model.identity
        assert identity.name and identity.revision and identity.dtype == model.dtype
        assert (identity.n_layers, identity.d_model) == (model.n_layers, model.d_model)

    def test_every_site_of_the_table_has_a_status_and_a_reason(self, model: BackendModel) -> None:
        statuses = model.sites()
        expected = {
            Site(kind.name, layer)
            for kind in SITE_KINDS.values()
            for layer in (range(model.n_layers) if kind.per_layer else [None])
        }
        assert set(statuses) == expected
        assert all(status.reason and status.site == site for site, status in statuses.items())

    def test_verified_sites_give_finite_rows_and_the_others_a_clear_error(
        self, model: BackendModel
    ) -> None:
        batch = self.ids(model, 5, 2)
        for site, status in model.sites().items():
            if not status.verified:
                with pytest.raises(BadInputError):
                    self.run(model, batch, site)
                continue
            array = self.run(model, batch, site).arrays[site]
            width = model.width(site)
            shapes = {
                "rows": (7, width),
                "example": (2, width),
                "blocks": (width * (5 * 5 + 2 * 2),),
            }
            assert array.shape == shapes[site.layout]
            assert np.isfinite(array.astype(np.float32)).all()

    def test_patterns_are_blocks_of_probabilities(self, model: BackendModel) -> None:
        batch = self.ids(model, 5, 2)
        known = model.sites().items()
        for site in [s for s, status in known if s.kind == "pattern" and status.verified]:
            got = self.run(model, batch, site)
            whole, last = got[site], self.run(model, batch, site, kind="last", start=1)[site]
            assert [tuple(b.shape) for b in whole] == [(got.heads[site], n, n) for n in (5, 2)]
            for block, one in zip(whole, last, strict=True):
                sums = block.sum(-1).numpy()
                assert np.all(sums <= 1 + 1e-2) and np.all(sums > 0)
                assert np.allclose(block[:, -1:], one, atol=1e-6)

    def test_chosen_heads_and_neurons_are_columns_of_the_whole(self, model: BackendModel) -> None:
        batch = self.ids(model, 5, 2)
        for site, status in model.sites().items():
            word = SITE_KINDS[site.kind].part
            if not status.verified or site.layout != "rows" or not word:
                continue
            got = self.run(model, batch, site)
            whole = got.arrays[site].reshape(7, got.heads.get(site) or model.width(site), -1)
            some = Site.parse(f"{site}.{word}[1]")
            assert str(some) == f"{site}.{word}[1]"
            array = self.run(model, batch, some).arrays[some]
            assert array.shape == (7, model.width(some))
            assert np.array_equal(array, whole[:, 1])
            with pytest.raises(BadInputError, match=f"{word} out of range"):
                model.expand(f"{site}.{word}[{whole.shape[1]}]")

    def test_the_residual_chain_is_bitwise(self, model: BackendModel) -> None:
        sites = [
            Site(kind, i) for i in range(model.n_layers) for kind in ("resid_pre", "resid_post")
        ]
        arrays = self.run(model, self.ids(model, 6, 3), *sites).arrays
        for layer in range(1, model.n_layers):
            before = arrays[Site("resid_post", layer - 1)]
            assert np.array_equal(before, arrays[Site("resid_pre", layer)])

    def test_asking_for_more_sites_changes_no_number(self, model: BackendModel) -> None:
        batch = self.ids(model, 6, 3)
        site = Site("resid_post", model.n_layers - 1)
        several = [s for s, status in model.sites().items() if status.verified]
        alone = self.run(model, batch, site).arrays[site]
        assert np.array_equal(alone, self.run(model, batch, *several).arrays[site])

    def test_rows_are_the_tokens_of_the_span(self, model: BackendModel) -> None:
        batch = self.ids(model, 6, 3)
        site = Site("resid_post", 0)
        full = self.run(model, batch, site)
        last = self.run(model, batch, site, kind="last", start=2)
        assert full.offsets.tolist() == [0, 6, 9]
        assert last.offsets.tolist() == [0, 2, 4]
        assert last.positions.tolist() == [4, 5, 1, 2]
        assert np.array_equal(last.arrays[site], full.arrays[site][[4, 5, 7, 8]])
        assert full.token_ids.tolist() == [int(i) for row in batch.rows for i in row.token_ids]

    def test_an_example_without_tokens_in_the_span_is_a_failure_and_the_rest_goes_on(
        self, model: BackendModel
    ) -> None:
        got = self.run(model, self.ids(model, 6, 3), Site("resid_post", 0), kind="range", start=4)
        assert [f.kind for f in got.failures] == ["empty_span"]
        assert [(r.index, r.n_tokens) for r in got.examples] == [(0, 6)]
        assert got.offsets.tolist() == [0, 2]

    def test_padding_changes_nothing_beyond_rounding(self, model: BackendModel) -> None:
        batch = self.ids(model, 9, 2)
        site = Site("resid_post", model.n_layers - 1)
        together = self.run(model, batch, site).arrays[site]
        alone = self.run(model, Batch(batch.rows[1:]), site).arrays[site]
        a, b = together[9:].astype(np.float64), alone.astype(np.float64)
        tolerance = 1e-4 if model.dtype == "float32" else 0.1
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()

    def test_token_ids_are_encoded_as_they_are_and_bad_ones_refused(
        self, model: BackendModel
    ) -> None:
        row = model.encode(Example("a", token_ids=(11, 12, 13)))
        assert (row.id, row.token_ids.tolist()) == ("a", [11, 12, 13])
        with pytest.raises(ExampleError):
            model.encode(Example("b", token_ids=(10**9,)))
        with pytest.raises(ExampleError):
            model.encode(Example("c", token_ids=()))

    def test_layers_by_index_from_either_end(self, model: BackendModel) -> None:
        first, last = model.resolve_layers([0, -1])
        assert (first, last) == (Site("resid_post", 0), Site("resid_post", model.n_layers - 1))
        for wrong in ([model.n_layers], [0, -model.n_layers], ["no.such.module"], [], [1.5]):
            with pytest.raises(ActscopeError):
                model.resolve_layers(wrong)
