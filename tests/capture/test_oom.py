"""Halving: everything runs once, in order, and only what fits nowhere is given up."""

import pytest
import torch

from actscope.capture.oom import run_halving


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 8, 100])
def test_ever_smaller_batches_until_they_fit(capacity):
    calls, halved = [], []

    def run(items):
        calls.append(list(items))
        if len(items) > capacity:
            raise torch.OutOfMemoryError("too large")
        return sum(items)

    done = run_halving(list(range(13)), run, halved.append)
    assert [i for items, _ in done for i in items] == list(range(13))
    assert all(result == sum(items) for items, result in done)
    assert halved == [len(c) for c in calls if len(c) > capacity]


def test_one_item_that_fits_nowhere_is_given_back():
    def run(items):
        if 3 in items:
            raise torch.OutOfMemoryError("too large")
        return len(items)

    done = run_halving([1, 2, 3, 4], run, lambda size: None)
    assert [(list(items), result) for items, result in done] == [([1, 2], 2), ([3], None), ([4], 1)]


def test_the_cpu_allocators_complaint_counts_too():
    def run(items):
        if len(items) > 1:
            torch.empty(1 << 60)
        return len(items)

    assert len(run_halving([1, 2], run, lambda size: None)) == 2


def test_other_errors_are_not_swallowed():
    def run(items):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_halving([1, 2], run, lambda size: None)
