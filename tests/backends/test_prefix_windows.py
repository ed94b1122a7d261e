"""Shared beginnings where attention looks through a window, and passes that leave something out."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PretrainedConfig

from actscope import wrap_model
from actscope.backends.hf.live import live_tolerance
from actscope.core.activations import Batch
from actscope.core.errors import BadInputError
from actscope.core.protocols import Selection
from actscope.core.text import Span
from actscope.strategies import as_strategy
from actscope.testing.tiny_models import tiny_model


def selected(model, sites=("resid_post", "mlp_out")):
    return Selection(model.expand(list(sites)), as_strategy(None), Span.parse("all"))


def moved(model, rows, beginnings):
    """How far sharing moves the values of plain passes, relative to each row's largest."""
    plain = Batch.from_ids(rows)
    worst = 0.0
    with model.open(selected(model)) as session:
        shared = session.run(Batch(plain.rows, shared=beginnings, pass_tokens=2))
        for i, row in enumerate(plain.rows):
            alone = session.run(Batch((row,)))
            for site, want in alone.arrays.items():
                got = shared.arrays[site][shared.offsets[i] : shared.offsets[i + 1]]
                assert got.shape == want.shape
                scale = np.abs(want).max(axis=1, keepdims=True)
                worst = max(worst, float((np.abs(got - want) / scale).max()))
    return worst


@contextmanager
def columns_of_passes(model):
    seen = []
    hook = model.hf.model.layers[0].register_forward_hook(
        lambda m, a, out: seen.append(tuple(a[0].shape[:2]))
    )
    try:
        yield seen
    finally:
        hook.remove()


def wrong_beyond(hf, window):
    """Make a cached pass wrong from the first text that is longer than the window."""
    attention = hf.model.layers[1].self_attn
    inner, lengths = attention.forward, [0]

    def forward(hidden_states, *args, past_key_values=None, **kwargs):
        out = inner(hidden_states, *args, past_key_values=past_key_values, **kwargs)
        now = hidden_states.shape[1]
        if now > 8:  # ends are shorter: this is the pass over the beginnings, or a plain one
            lengths[0] = now
            return out
        wrong = past_key_values is not None and lengths[0] + now > window
        return (out[0] * (1.1 if wrong else 1.0), *out[1:])

    attention.forward = forward


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "cohere2"])
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_beginnings_and_ends_on_either_side_of_a_window(family, data):
    width = {"query_pre_attn_scalar": 8} if family.startswith("gemma") else {}
    model = wrap_model(tiny_model(family, sliding_window=8, **width), None)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    lengths = data.draw(st.lists(st.integers(3, 16), min_size=1, max_size=3))
    heads = [rng.integers(3, 90, p).tolist() for p in lengths]
    chosen = data.draw(st.lists(st.integers(0, len(heads) - 1), min_size=1, max_size=5))
    rows = [heads[h] + rng.integers(3, 90, data.draw(st.integers(1, 9))).tolist() for h in chosen]
    assert not model.prefix_refusal(selected(model))
    assert moved(model, rows, tuple(lengths[h] for h in chosen)) <= live_tolerance("float32")


def test_the_window_of_a_wrapped_text_model_is_crossed_by_the_check():
    class Wrapper(PretrainedConfig):
        def get_text_config(self, *args, **kwargs):
            return text

    hf = tiny_model("mistral", sliding_window=40, max_position_embeddings=256)
    text, hf.config = hf.config, Wrapper()
    wrong_beyond(hf, 40)
    model = wrap_model(hf, None)
    assert "moves" in model.prefix_refusal(selected(model))


def test_texts_longer_than_a_window_the_check_did_not_cross_run_whole():
    hf = tiny_model("mistral", sliding_window=1100, max_position_embeddings=2048)
    wrong_beyond(hf, 1100)
    model = wrap_model(hf, None)
    assert not model.prefix_refusal(selected(model))
    rng = np.random.default_rng(0)
    head = rng.integers(3, 90, 1097).tolist()
    long = [[*head, *rng.integers(3, 90, n).tolist()] for n in (2, 6)]
    assert moved(model, long, 1097) <= live_tolerance("float32")
    with columns_of_passes(model) as seen, model.open(selected(model)) as session:
        session.run(Batch(Batch.from_ids(long).rows, shared=1097))
        assert seen == [(2, 1103)]
        seen.clear()
        short = [row[: 1097 + k] for k, row in enumerate(long, 1)]
        session.run(Batch(Batch.from_ids(short).rows, shared=1097))
        assert seen == [(1, 1097), (2, 2)]


def test_a_window_as_long_as_the_context_stands_in_no_ones_way():
    model = wrap_model(tiny_model("mistral", sliding_window=4096), None)
    head = list(range(5, 55))
    rows = Batch.from_ids([[*head, 60], [*head, 61, 62]]).rows
    assert not model.prefix_refusal(selected(model))
    with columns_of_passes(model) as seen, model.open(selected(model)) as session:
        session.run(Batch(rows, shared=50))
    assert seen == [(1, 50), (2, 2)]


@pytest.mark.parametrize("turn", [0, 1])
def test_a_site_that_one_pass_leaves_out_is_missed(turn):
    """Not only by the last pass: rows of an earlier one would hold what was in memory before."""
    hf = tiny_model("llama")
    model = wrap_model(hf, None)
    selection = selected(model)
    assert not model.prefix_refusal(selection)
    block, passes = hf.model.layers[1], []
    whole, mlp = block.forward, block.mlp

    def forward(hidden_states, *args, **kwargs):
        passes.append(hidden_states.shape)
        if len(passes) - 1 != turn:
            return whole(hidden_states, *args, **kwargs)
        block.mlp = unwatched
        try:
            return whole(hidden_states, *args, **kwargs)
        finally:
            block.mlp = mlp

    class Plain(type(mlp)):
        """Computes the same where nobody looks."""

        def __init__(self):
            super(type(mlp), self).__init__()

        def forward(self, x):
            return mlp.forward(x)

    unwatched = Plain()
    block.forward = forward
    head = list(range(5, 30))
    rows = Batch.from_ids([[*head, 40], [*head, 41, 42, 43, 44, 45], [*head, 50, 51]]).rows
    with model.open(selection) as session:
        with pytest.raises(BadInputError, match=r"never reached blocks\.1\.mlp_out"):
            session.run(Batch(rows, shared=25, pass_tokens=2))
        block.forward = whole
        again = session.run(Batch(rows, shared=25, pass_tokens=2))
        want = session.run(Batch(rows))
    for site, values in want.arrays.items():
        np.testing.assert_allclose(again.arrays[site], values, atol=1e-4, rtol=1e-3)
