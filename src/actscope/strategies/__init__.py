"""Pooling strategies: from the kept tokens of an example to one row. One file per strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.protocols import Strategy
from actscope.core.registry import Registry
from actscope.strategies.cls import CLSStrategy
from actscope.strategies.custom import CustomStrategy
from actscope.strategies.exp_weighted import ALIASES, ExpWeightedStrategy
from actscope.strategies.first import FirstTokenStrategy
from actscope.strategies.last import LastTokenStrategy
from actscope.strategies.max import MaxStrategy
from actscope.strategies.mean import MeanStrategy
from actscope.strategies.none import NoneStrategy
from actscope.strategies.pooler import PoolerStrategy

__all__ = [
    "STRATEGIES",
    "CLSStrategy",
    "CustomStrategy",
    "ExpWeightedStrategy",
    "FirstTokenStrategy",
    "LastTokenStrategy",
    "MaxStrategy",
    "MeanStrategy",
    "NoneStrategy",
    "PoolerStrategy",
    "as_strategy",
]

STRATEGIES: Registry[type[Strategy]] = Registry("actscope.strategies", "STRATEGY", "strategy")


def as_strategy(value: str | Strategy | Callable[..., Any] | None) -> Strategy:
    """A strategy from what a user wrote.

    Args:
        value: A strategy or its class; a name (``mean``; ``exp_weighted:0.067``, or its aliases
            ``exp_977``, ``exp_933``, ``exp_841``); a function ``[L_i, d] -> array``; None keeps
            every token.

    Raises:
        UnknownNameError: no such strategy.
        BadInputError: an argument that the strategy does not take.
    """
    if value is None:
        return NoneStrategy()
    if isinstance(value, str):
        return _by_name(value)
    if isinstance(value, type) and callable(getattr(value, "pool", None)):
        value = value()  # MeanStrategy written without parentheses
    if isinstance(value, Strategy):
        return value
    if callable(value):
        return CustomStrategy(value)
    raise BadInputError(
        "a strategy is a name, a strategy object or a function", got=type(value).__name__
    )


def _by_name(text: str) -> Strategy:
    name, _, argument = text.strip().partition(":")
    name = name.replace("-", "_")
    if name in ALIASES:
        return ExpWeightedStrategy(ALIASES[name])
    names = [n for n in STRATEGIES.names() if n != "custom"]
    if name not in names:
        raise UnknownNameError("strategy", name, [*names, *ALIASES])
    kind: Any = STRATEGIES.get(name)
    if not argument:
        if name == "exp_weighted":
            raise BadInputError(
                "exp_weighted needs its half-life", expected="for example exp_weighted:0.067"
            )
        return kind()
    if name != "exp_weighted":
        raise BadInputError(f"the strategy {name!r} takes no argument", got=argument)
    try:
        f = float(argument)
    except ValueError:
        raise BadInputError(
            "exp_weighted takes a number", got=argument, expected="for example exp_weighted:0.067"
        ) from None
    return ExpWeightedStrategy(f)
