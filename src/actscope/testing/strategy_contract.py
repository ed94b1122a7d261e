"""What every pooling strategy promises, as a test suite for those of this package and of others.

class TestMyStrategy(StrategyContract):
    @pytest.fixture
    def strategy(self):
        return MyStrategy()
"""

# ruff: noqa: D102 - the name of a test says what it promises
from __future__ import annotations

import json

import pytest
import torch

from actscope.core.errors import BadInputError
from actscope.core.protocols import Strategy

__all__ = ["StrategyContract"]

D_MODEL = 6
MASKS = {
    "full": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right padding": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
    "left padding": [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]],
    "holes": [[0, 1, 0, 1, 1], [1, 0, 1, 0, 0]],
    "one token": [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]],
}


def _mask(name: str) -> torch.Tensor:
    return torch.tensor(MASKS[name], dtype=torch.bool)


def _hidden(n: int, pos: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, pos, D_MODEL, generator=torch.Generator().manual_seed(seed)) * 3


class StrategyContract:
    """Subclass it and give it a ``strategy`` fixture. It needs a CPU only."""

    @pytest.fixture
    def strategy(self) -> Strategy:
        """The strategy; override this."""
        raise NotImplementedError("a strategy's test overrides the fixture `strategy`")

    def pooled(self, strategy: Strategy, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the strategy makes of it; a strategy that keeps every token is left out."""
        if not strategy.pools:
            pytest.skip("it keeps every token")
        return strategy.pool(hidden, mask)

    def test_it_is_a_strategy(self, strategy: Strategy) -> None:
        assert isinstance(strategy, Strategy)
        assert isinstance(strategy.name, str) and strategy.name.isidentifier()
        assert isinstance(strategy.pools, bool)

    def test_parameters_are_json_and_do_not_change(self, strategy: Strategy) -> None:
        first = json.dumps(dict(strategy.params), allow_nan=False)
        assert json.dumps(dict(strategy.params), allow_nan=False) == first

    def test_one_that_keeps_every_token_refuses_to_pool(self, strategy: Strategy) -> None:
        if strategy.pools:
            pytest.skip("it pools")
        with pytest.raises(BadInputError):
            strategy.pool(_hidden(1, 2), torch.ones(1, 2, dtype=torch.bool))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("case", MASKS)
    def test_one_float32_row_an_example(
        self, strategy: Strategy, case: str, dtype: torch.dtype
    ) -> None:
        rows = self.pooled(strategy, _hidden(2, 5).to(dtype), _mask(case))
        assert rows.dtype == torch.float32 and rows.device.type == "cpu"
        assert rows.ndim == 2 and len(rows) == 2 and bool(rows.isfinite().all())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_narrow_dtype_is_widened_before_anything_is_computed(
        self, strategy: Strategy, dtype: torch.dtype
    ) -> None:
        narrow = _hidden(2, 5).to(dtype)
        wide = self.pooled(strategy, narrow.float(), _mask("holes"))
        assert torch.equal(self.pooled(strategy, narrow, _mask("holes")), wide)

    @pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 1e38])
    @pytest.mark.parametrize("case", MASKS)
    def test_what_is_masked_does_not_leak(
        self, strategy: Strategy, case: str, garbage: float
    ) -> None:
        hidden, mask = _hidden(2, 5), _mask(case)
        clean = self.pooled(strategy, hidden, mask)
        dirty = hidden.masked_fill(~mask.unsqueeze(-1), garbage)
        assert torch.equal(self.pooled(strategy, dirty, mask), clean)

    @pytest.mark.parametrize("case", MASKS)
    def test_padding_and_holes_make_no_difference(self, strategy: Strategy, case: str) -> None:
        hidden, mask = _hidden(2, 5), _mask(case)
        rows = self.pooled(strategy, hidden, mask)
        for example, kept, row in zip(hidden, mask, rows, strict=True):
            tokens = example[kept].unsqueeze(0)
            alone = self.pooled(strategy, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
            torch.testing.assert_close(alone[0], row, rtol=1e-5, atol=1e-6)

    def test_the_order_of_the_batch_is_kept(self, strategy: Strategy) -> None:
        hidden, mask = _hidden(4, 5), torch.cat([_mask("holes"), _mask("left padding")])
        rows = self.pooled(strategy, hidden, mask)
        flipped = self.pooled(strategy, hidden.flip(0), mask.flip(0))
        torch.testing.assert_close(flipped.flip(0), rows, rtol=1e-5, atol=1e-6)

    def test_what_it_is_given_is_left_alone(self, strategy: Strategy) -> None:
        hidden, mask = _hidden(2, 5), _mask("holes")
        before = hidden.clone(), mask.clone()
        self.pooled(strategy, hidden, mask).zero_()
        assert torch.equal(hidden, before[0]) and torch.equal(mask, before[1])

    def test_memory_layout_makes_no_difference(self, strategy: Strategy) -> None:
        hidden, mask = _hidden(2, 5), _mask("right padding")
        strided = hidden.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        torch.testing.assert_close(
            self.pooled(strategy, strided, mask), self.pooled(strategy, hidden, mask)
        )
