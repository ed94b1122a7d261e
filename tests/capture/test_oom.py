"""Halving: everything runs once, in order, and only what fits nowhere is given up."""

import pytest
import torch

from actscope.capture.oom import Limits, run_halving


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
    failed = [len(c) for c in calls if len(c) > capacity]
    assert len(failed) == len(set(failed))  # no size is tried in vain twice
    assert set(failed) <= set(halved)
    assert all(2 * size > capacity for size in halved)  # never to less than half of what fits


def test_what_failed_is_remembered_for_rows_as_long_and_not_for_shorter_ones():
    limits, calls = Limits(), []

    def run(items):
        calls.append(list(items))
        if sum(items) > 40:
            raise torch.OutOfMemoryError("too large")
        return len(items)

    def of(items):
        calls.clear()
        run_halving(items, run, lambda size: None, tokens=int, limits=limits)
        return [len(items) for items in calls]

    assert of([10] * 8) == [8, 4, 4]
    assert of([10] * 8) == [4, 4]
    assert of([12] * 6) == [3, 3]
    assert of([4] * 8) == [8]
    assert of([30] * 2) == [1, 1]
    assert of([10] * 3 + [50]) == [2, 1, 1]  # too long even alone: that teaches nothing
    assert of([10] * 8) == [4, 4]


def test_a_lone_item_is_tried_again_once_nothing_waits():
    calls, waiting = [], [1]

    def run(items):
        calls.append((len(items), len(waiting)))
        if waiting or 9 in items:
            raise torch.OutOfMemoryError("too large")
        return True

    def relieve():
        relieved = bool(waiting)
        waiting.clear()
        return relieved

    assert run_halving([5], run, lambda size: None, relieve=relieve) == [([5], True)]
    assert calls == [(1, 1), (1, 0)]
    calls.clear()
    waiting.append(1)
    halved = []
    assert run_halving([9], run, halved.append, relieve=relieve) == [([9], None)]
    assert (calls, halved) == ([(1, 1), (1, 0)], [1])


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
