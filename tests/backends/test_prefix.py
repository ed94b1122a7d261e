"""Texts that begin alike: the beginning computed once gives the rows of plain passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MambaConfig, MambaForCausalLM

from actscope import ActivationExtractor, Add, DatasetRunner, ShardStorage, wrap_model
from actscope.backends.hf.live import live_tolerance
from actscope.capture import CaptureOptions
from actscope.core.activations import Batch
from actscope.core.errors import BadInputError
from actscope.core.prefixes import SHORTEST_SHARED, shared_batches
from actscope.core.protocols import Selection
from actscope.core.text import Span
from actscope.strategies import as_strategy
from actscope.testing.tiny_models import tiny_model

FAMILIES = ["llama", "gpt2", "gpt_neox", "qwen3", "gemma2", "opt", "bloom", "mistral"]


@pytest.fixture(scope="module")
def models():
    return {family: wrap_model(tiny_model(family), None) for family in FAMILIES}


def selected(model, strategy=None, span="all", sites=("resid_post", "mlp_out")):
    return Selection(model.expand(list(sites)), as_strategy(strategy), Span.parse(span))


def agree(plain, shared, tolerance):
    assert list(plain.arrays) == list(shared.arrays)
    np.testing.assert_array_equal(plain.offsets, shared.offsets)
    np.testing.assert_array_equal(plain.positions, shared.positions)
    for site, want in plain.arrays.items():
        got = shared.arrays[site]
        assert want.shape == got.shape and want.size
        scale = np.abs(want).max(axis=1, keepdims=True)
        assert (np.abs(want - got) / scale).max() <= tolerance, site


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_shared_rows_are_plain_rows(models, family, data):
    model = models[family]
    strategy = data.draw(st.sampled_from([None, "last", "mean", "max"]))
    span = data.draw(st.sampled_from(["all", "last:3", "2:5"]))
    selection = selected(model, strategy, span)
    refusal = model.prefix_refusal(selection)
    assert not refusal, refusal
    p = data.draw(st.integers(5, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    heads = rng.integers(3, 90, (data.draw(st.integers(1, 3)), p)).tolist()
    rows = [
        heads[data.draw(st.integers(0, len(heads) - 1))]
        + rng.integers(3, 90, data.draw(st.integers(1, 9))).tolist()
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    plain, shared = Batch.from_ids(rows), Batch.from_ids(rows)
    shared = Batch(shared.rows, shared=p)
    with model.open(selection) as session:
        agree(session.run(plain), session.run(shared), live_tolerance("float32"))


def test_the_beginning_is_computed_once(models):
    model, seen = models["llama"], []
    hook = model.hf.model.layers[0].register_forward_hook(
        lambda m, a, out: seen.append(a[0].shape[:2].numel())
    )
    head = list(range(5, 45))
    rows = Batch.from_ids([head + [50 + k] * 5 for k in range(3)]).rows
    selection = selected(model)
    assert not model.prefix_refusal(selection)
    seen.clear()
    with model.open(selection) as session:
        session.run(Batch(rows, shared=40))
    hook.remove()
    assert seen == [40, 15]


def test_a_model_whose_cache_moves_its_values_is_refused():
    hf = tiny_model("llama")
    model, inner = wrap_model(hf, None), hf.model.layers[1].self_attn.forward

    def off(*args, past_key_values=None, **kwargs):
        out = inner(*args, past_key_values=past_key_values, **kwargs)
        return (out[0] * (1.0 if past_key_values is None else 1.1), *out[1:])

    hf.model.layers[1].self_attn.forward = off
    assert "moves" in model.prefix_refusal(selected(model))
    with model.open(selected(model)) as session, pytest.raises(BadInputError, match="share"):
        session.run(Batch(Batch.from_ids([[5, 6, 7], [5, 6, 8]]).rows, shared=2))


def test_what_cannot_share_says_why(models):
    encoder = wrap_model(tiny_model("bert"), None)
    assert "not causal" in encoder.prefix_refusal(selected(encoder, sites=["resid_post"]))
    model = models["llama"]
    assert "attention" in model.prefix_refusal(selected(model, sites=["pattern"]))
    with model.intervene(Add(np.ones(model.d_model), layer=1, strength=1.0)):
        assert "intervention" in model.prefix_refusal(selected(model))
    with pytest.raises(BadInputError, match="of its own"):
        Batch(Batch.from_ids([[1, 2]]).rows, shared=2)


def test_a_recurrent_state_is_no_cache_of_tokens():
    config = MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = wrap_model(MambaForCausalLM(config).eval(), None)
    assert "cache" in model.prefix_refusal(selected(model, sites=["resid_post"]))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), max_size=9))
def test_batches_share_what_is_equal(spec):
    heads = [list(range(40)), list(range(40, 80)), [7] * 9]
    texts = [np.array(heads[h] + [90 + i] * n) for i, (h, n) in enumerate(spec)]
    batches = shared_batches(texts, 200)
    places = [place for _, members in batches for place in members]
    assert len(places) == len(set(places))
    for prefix, members in batches:
        assert prefix >= SHORTEST_SHARED
        beginnings = {tuple(texts[i][:prefix]) for i in members}
        assert len(beginnings) < len(members)
        assert all(len(texts[i]) > prefix for i in members)


def test_a_run_that_shares_is_the_run_that_does_not(models, tmp_path):
    model = models["llama"]
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(6):
        head = rng.integers(3, 90, 40).tolist()
        texts += [head + rng.integers(3, 90, n).tolist() for n in (4, 9, 6)]
    texts += [rng.integers(3, 90, 12).tolist()]
    runs = {}
    for way in ("off", "auto"):
        options = CaptureOptions(share_prefix=way, unit_size=10)
        extractor = ActivationExtractor(model, "all")
        result = DatasetRunner(texts, None, extractor, ShardStorage(tmp_path),
                               options=options).run(run_id=way)  # fmt: skip
        runs[way] = result.open()
        assert runs[way].plan.share_prefix == (way == "auto")
        assert not result.notices
    for layer in range(3):
        a, b = (runs[way].numpy("resid_post", layer) for way in ("off", "auto"))
        assert (np.abs(a - b) / np.abs(a).max(1, keepdims=True)).max() < 1e-3
        assert not np.array_equal(a, b) or layer < 3
    again = DatasetRunner(texts, None, ActivationExtractor(model, "all"), ShardStorage(tmp_path),
                          options=CaptureOptions(unit_size=10)).run(run_id="auto")  # fmt: skip
    assert again.resumed == len(texts)
