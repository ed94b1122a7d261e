"""Experts by router logits: against loops, and against what Hugging Face's own blocks choose."""

from __future__ import annotations

from typing import Any

import coverage_models
import numpy as np
import pytest
import torch

from actscope import wrap_model
from actscope.analysis.experts import chosen_experts, expert_counts, load_balance
from actscope.core.errors import BadInputError, SiteUnavailableError
from actscope.testing.tiny_models import tiny_model


def test_against_loops() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 6))
    chosen = chosen_experts(logits, 2)
    counts = [0] * 6
    for row, found in zip(logits, chosen, strict=True):
        order = sorted(range(6), key=lambda e: -row[e])[:2]
        assert found.tolist() == order
        for expert in order:
            counts[expert] += 1
    assert expert_counts(logits, 2).tolist() == counts
    assert sum(counts) == 100


def test_load_balance() -> None:
    assert load_balance([5, 5, 5, 5]) == pytest.approx(1)
    assert load_balance([9, 0, 0]) == 0
    shares = np.array([0.5, 0.3, 0.2])
    expected = -(shares * np.log(shares)).sum() / np.log(3)
    assert load_balance([50, 30, 20]) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_they_are_the_experts_that_the_model_uses(name: str) -> None:
    """The numbers that the type's own block hands to its experts."""
    hf = coverage_models.tiny_model(name)
    model = wrap_model(hf)
    ids = [list(range(10, 22)), [9, 30, 41]]
    experts = model.experts(-1)
    assert experts.largest and experts.n_experts > experts.top_k >= 1
    batch = model.capture(ids, "router", [-1])
    for row, text in zip(batch["router", -1], ids, strict=True):
        handed: list[torch.Tensor] = []

        def keep(module: Any, args: Any, kwargs: Any, into: list[torch.Tensor] = handed) -> None:
            values = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            into += [x for x in values if not x.is_floating_point() and x.ndim == 2]

        block = model.hf.model.layers[-1]
        hooks = [
            m.register_forward_pre_hook(keep, with_kwargs=True) for m in block.modules()
            if type(m).__name__.endswith("Experts")
        ]  # fmt: skip
        with torch.no_grad():
            hf(torch.tensor([text]))
        for hook in hooks:
            hook.remove()
        (numbers,) = handed
        ours = chosen_experts(row.numpy(), experts.top_k)
        assert np.array_equal(np.sort(ours, 1), np.sort(numbers.numpy(), 1))
        assert row.shape[1] == experts.n_experts


def test_bad_input() -> None:
    logits = np.zeros((2, 4))
    for top_k in (0, 5):
        with pytest.raises(BadInputError, match="no such number of experts"):
            chosen_experts(logits, top_k)
    for wrong in (np.zeros(4), np.full((2, 4), np.nan)):
        with pytest.raises(BadInputError, match="finite rows"):
            expert_counts(wrong, 1)
    for counts in ([], [1], [0, 0], [-1, 2]):
        with pytest.raises(BadInputError, match="at least two experts"):
            load_balance(counts)
    with pytest.raises(SiteUnavailableError, match="router"):
        wrap_model(tiny_model("llama")).experts(0)
