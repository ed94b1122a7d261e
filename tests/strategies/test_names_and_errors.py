"""From what a user writes to a strategy, and what is refused."""

import functools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import actscope.strategies as room
from actscope.core.activations import TokenRow
from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.protocols import SiteStatus
from actscope.core.sites import Site
from actscope.strategies import (
    STRATEGIES,
    CLSStrategy,
    CustomStrategy,
    ExpWeightedStrategy,
    MeanStrategy,
    NoneStrategy,
    PoolerStrategy,
    as_strategy,
)

ONES = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    "name", [n for n in STRATEGIES.names() if n not in ("custom", "exp_weighted")]
)
def test_by_name(name):
    assert type(as_strategy(name)) is STRATEGIES.get(name)
    assert as_strategy(name).name == name


@pytest.mark.parametrize(
    ("text", "f"),
    [
        ("exp_977", 0.023),
        ("exp_933", 0.067),
        ("exp-841", 0.159),
        ("exp_weighted:0.25", 0.25),
        ("exp-weighted:1e-2", 0.01),
    ],
)
def test_exponential_weights_by_name(text, f):
    strategy = as_strategy(text)
    assert isinstance(strategy, ExpWeightedStrategy) and strategy.params == {"f": f}


def test_what_is_a_strategy_stays_one():
    mean = MeanStrategy()
    assert as_strategy(mean) is mean
    assert isinstance(as_strategy(MeanStrategy), MeanStrategy)
    assert isinstance(as_strategy(None), NoneStrategy)
    assert isinstance(as_strategy(np.median), CustomStrategy)


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("meen", UnknownNameError, "did you mean 'mean'"),
        ("custom", UnknownNameError, "unknown strategy 'custom'"),
        ("", UnknownNameError, "one of"),
        ("mean:3", BadInputError, "takes no argument"),
        ("exp_weighted", BadInputError, "needs its half-life"),
        ("exp_weighted:much", BadInputError, "takes a number"),
        ("exp_weighted:0", BadInputError, "positive"),
        ("exp_weighted:-1", BadInputError, "positive"),
        ("exp_weighted:nan", BadInputError, "positive"),
        ("exp_weighted:inf", BadInputError, "positive"),
        (3, BadInputError, "got: int"),
    ],
)
def test_what_is_refused(value, error, says):
    with pytest.raises(error, match=says):
        as_strategy(value)


def test_the_room_is_open_without_torch():
    script = (
        "import actscope.strategies as s, sys; s.as_strategy('mean'); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


def test_every_strategy_is_exported():
    for name in STRATEGIES.names():
        assert STRATEGIES.get(name).__name__ in room.__all__


# -- models that cannot be pooled so ------------------------------------------------------------


def model(cls_token_id=None, first=7, pooler=None):
    status = (
        {} if pooler is None else {Site("pooler"): SiteStatus(Site("pooler"), pooler, "because")}
    )
    return SimpleNamespace(
        cls_token_id=cls_token_id,
        identity=SimpleNamespace(name="some/model"),
        encode=lambda example, chat=False: TokenRow.from_ids(example.id, [first, 3]),
        sites=lambda: status,
    )


def test_cls_wants_a_cls_token_in_first_place():
    CLSStrategy().check(model(cls_token_id=7))
    with pytest.raises(BadInputError, match=r"some/model has no CLS token(.|\n)*strict=False"):
        CLSStrategy().check(model())
    with pytest.raises(BadInputError, match="does not write the CLS token first"):
        CLSStrategy().check(model(cls_token_id=9))
    CLSStrategy(strict=False).check(model())
    assert CLSStrategy().params != CLSStrategy(strict=False).params


def test_pooler_wants_a_verified_pooler():
    PoolerStrategy().check(model(pooler=True))
    with pytest.raises(BadInputError, match="because"):
        PoolerStrategy().check(model(pooler=False))
    with pytest.raises(BadInputError, match="has no pooler"):
        PoolerStrategy().check(model())
    PoolerStrategy(strict=False).check(model())


def test_none_pools_nothing():
    with pytest.raises(BadInputError, match="keeps every token"):
        NoneStrategy().pool(torch.zeros(2, 3, 4), ONES)


# -- a user's own function ----------------------------------------------------------------------


def test_a_custom_function_gets_float32_numpy_of_the_kept_tokens_only():
    seen = []

    def watch(tokens):
        seen.append(tokens.copy())
        tokens[:] = 0  # its own copy
        return np.zeros(1)

    hidden = torch.randn(2, 3, 4).to(torch.bfloat16)
    before = hidden.clone()
    mask = torch.tensor([[True, False, True], [False, True, False]])
    CustomStrategy(watch).pool(hidden, mask)
    assert torch.equal(hidden, before)
    assert [s.dtype for s in seen] == [np.float32] * 2
    np.testing.assert_array_equal(seen[0], hidden[0, [0, 2]].float().numpy())
    np.testing.assert_array_equal(seen[1], hidden[1, [1]].float().numpy())


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda h: h, r"shape \[3, 4\]"),
        (lambda h: h.mean(), r"shape \[\]"),
        (lambda h: None, r"shape \[\]"),
        (lambda h: h[0, :0], r"shape \[0\]"),
        (lambda h: ["a", "b"], "dtype <U1"),
        (lambda h: [1j], "dtype complex128"),
        (lambda h: [[1.0], [1.0, 2.0]], "got: list"),
        (lambda h: {"a": 1}, r"shape \[\]"),
    ],
)
def test_a_custom_function_that_returns_no_vector(function, got):
    with pytest.raises(BadInputError, match=rf"must return one vector(.|\n)*{got}(.|\n)*next: "):
        CustomStrategy(function).pool(torch.ones(2, 3, 4), ONES)


def test_a_custom_function_whose_size_varies():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.raises(BadInputError, match=r"1 numbers(.|\n)*expected: 3"):
        CustomStrategy(lambda h: h[:, 0]).pool(torch.ones(2, 3, 4), mask)


def test_what_a_custom_function_raises_comes_out():
    def broken(tokens):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        CustomStrategy(broken).pool(torch.ones(2, 3, 4), ONES)
    with pytest.raises(BadInputError, match="needs a function"):
        CustomStrategy("mean")


def code_of(function):
    return CustomStrategy(function).params["code"]


def scaled(k, other=None):
    def pool(tokens):
        return tokens.mean(0) * k

    return pool


class Scaled:
    def __init__(self, k):
        self.k = k

    def __call__(self, tokens):
        return tokens.mean(0) * self.k

    def pool(self, tokens):
        return tokens.mean(0) * self.k


def two(tokens, k=2):
    return tokens.mean(0) * k


def test_a_changed_function_is_noticed():
    functions = [
        scaled(2),
        scaled(3),
        scaled(np.ones(4)),
        scaled(np.zeros(4)),
        scaled(torch.ones(3)),
        scaled(torch.zeros(3)),
        lambda h: h[0],
        lambda h: h[1],
        lambda h: list(map(lambda x: x + 1, h[0])),  # noqa: C417 - a lambda in a lambda
        functools.partial(two, k=3),
        functools.partial(two, k=4),
        two,
        Scaled(1),
        Scaled(2),
        Scaled(1).pool,
        Scaled(2).pool,
        np.median,
    ]
    codes = [code_of(f) for f in functions]
    assert len(set(codes)) == len(codes)
    assert [code_of(f) for f in functions] == codes
    assert code_of(scaled(2)) == code_of(scaled(2))
    assert code_of(Scaled(1)) == code_of(Scaled(1))


def test_a_function_over_something_large_or_over_itself_is_hashed_at_once():
    import numpy

    def around(module, function):
        return lambda h: module.median(h, 0) if function else around(module, function)

    assert code_of(around(numpy, two)) == code_of(around(numpy, two))
    assert code_of(around(torch.nn.Linear(2, 2), two))


def test_a_function_written_where_there_is_no_source():
    space = {}
    exec("def f(h, deep=lambda h: h): return (lambda x: x[0])(h)", space)
    again = {}
    exec("def f(h, deep=lambda h: h): return (lambda x: x[0])(h)", again)
    other = {}
    exec("def f(h, deep=lambda h: h): return (lambda x: x[1])(h)", other)
    assert code_of(space["f"]) == code_of(again["f"]) != code_of(other["f"])


def test_a_function_is_called_by_its_name():
    assert CustomStrategy(two).params["function"].endswith("test_names_and_errors.two")
    assert CustomStrategy(functools.partial(two, k=1)).params["function"].endswith(".two")
    assert CustomStrategy(Scaled(1)).params["function"].endswith(".Scaled")
    assert CustomStrategy(np.median).params["function"] == "numpy.median"
