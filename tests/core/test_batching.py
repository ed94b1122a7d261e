"""Batches: every example once, within the budget, and as cheap as can be."""

from hypothesis import given
from hypothesis import strategies as st

from actscope.core.batching import length_sorted_batches, padding_of

LENGTHS = st.lists(st.integers(1, 40), max_size=9)


def all_cuts(n):
    """Every way to cut n things in a row into batches, as the batches' ends."""
    for mask in range(1 << max(n - 1, 0)):
        yield [i + 1 for i in range(n - 1) if mask >> i & 1] + [n] * bool(n)


@given(LENGTHS, st.integers(1, 90), st.integers(0, 30))
def test_every_example_once_longest_first_within_the_budget(lengths, budget, pass_tokens):
    batches = length_sorted_batches(lengths, batch_tokens=budget, pass_tokens=pass_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in batches:
        assert len(batch) * lengths[batch[0]] <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 90), st.integers(1, 30))
def test_no_other_cut_costs_less(lengths, budget, pass_tokens):
    falling = sorted(lengths, reverse=True)

    def cost(ends):
        total = 0
        for start, end in zip([0, *ends], ends, strict=False):
            padded = (end - start) * falling[start]
            if padded > budget and end - start > 1:
                return None
            total += padded + pass_tokens
        return total

    batches = length_sorted_batches(lengths, batch_tokens=budget, pass_tokens=pass_tokens)
    got = sum(lengths) + padding_of(lengths, batches) + pass_tokens * len(batches)
    every = [cost(ends) for ends in all_cuts(len(lengths))]
    assert got == min(c for c in every if c is not None)


def test_without_the_price_of_a_pass_batches_are_filled():
    assert length_sorted_batches([5, 1, 9, 1], batch_tokens=10) == [[2], [0, 1], [3]]
    assert length_sorted_batches([5, 1, 9, 1], batch_size=3) == [[2, 0, 1], [3]]
    assert length_sorted_batches([], batch_tokens=10, pass_tokens=1) == []
