"""The contract suite on every strategy of the room."""

import numpy as np
import pytest

from actscope.strategies import (
    STRATEGIES,
    CLSStrategy,
    CustomStrategy,
    ExpWeightedStrategy,
    PoolerStrategy,
)
from actscope.testing.strategy_contract import StrategyContract

MADE = {
    "cls": lambda: CLSStrategy(strict=False),
    "pooler": lambda: PoolerStrategy(strict=False),
    "custom": lambda: CustomStrategy(lambda h: np.median(h, axis=0)),
    "exp_weighted": lambda: ExpWeightedStrategy(0.067),
}


class TestEveryStrategy(StrategyContract):
    @pytest.fixture(params=STRATEGIES.names())
    def strategy(self, request):
        made = MADE.get(request.param, STRATEGIES.get(request.param))()
        assert made.name == request.param
        return made


class TestCustomOfAnotherWidth(StrategyContract):
    @pytest.fixture
    def strategy(self):
        return CustomStrategy(lambda h: np.linalg.norm(h, axis=0)[:2])
