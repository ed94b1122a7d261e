"""Texts that begin alike: the beginning computed once gives the rows of plain passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Cache, MambaConfig, MambaForCausalLM

from actscope import ActivationExtractor, Add, DatasetRunner, ShardStorage, wrap_model
from actscope.backends.hf.live import live_tolerance
from actscope.capture import CaptureOptions
from actscope.core.activations import Batch
from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.prefixes import SHORTEST_SHARED, end_passes, shared_batches
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
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    lengths = data.draw(st.lists(st.integers(5, 20), min_size=1, max_size=3))
    heads = [rng.integers(3, 90, p).tolist() for p in lengths]
    chosen = data.draw(st.lists(st.integers(0, len(heads) - 1), min_size=1, max_size=5))
    rows = [heads[h] + rng.integers(3, 90, data.draw(st.integers(1, 9))).tolist() for h in chosen]
    plain = Batch.from_ids(rows)
    beginnings = tuple(lengths[h] for h in chosen)
    shared = Batch(plain.rows, shared=beginnings, pass_tokens=data.draw(st.integers(0, 4)))
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


def test_ends_of_a_length_share_a_pass_and_beginnings_are_padded_once(models):
    model, seen = models["llama"], []
    selection = selected(model)
    assert not model.prefix_refusal(selection)
    hook = model.hf.model.layers[0].register_forward_hook(
        lambda m, a, out: seen.append(tuple(a[0].shape[:2]))
    )
    one, other = list(range(5, 45)), list(range(3, 40))
    ends = [[50] * 3, [51] * 20]
    rows = Batch.from_ids([[*head, *end] for head in (one, other) for end in ends]).rows
    with model.open(selection) as session:
        session.run(Batch(rows, shared=(40, 40, 37, 37), pass_tokens=8))
    hook.remove()
    assert seen == [(2, 40), (2, 20), (2, 3)]


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_text"])
def test_a_cache_that_is_not_repeated_serves_every_pass_unchanged(family, monkeypatch):
    """One end a beginning, in their order, three times over: no pass needs a copy of the cache."""
    narrow = {"sliding_window": 8} if family in ("mistral", "gemma2", "gemma3_text") else {}
    model, copied = wrap_model(tiny_model(family, **narrow), None), []
    selection = selected(model)
    assert not model.prefix_refusal(selection)
    reorder = Cache.reorder_cache
    monkeypatch.setattr(
        Cache, "reorder_cache", lambda self, rows: (copied.append(1), reorder(self, rows))
    )
    rng = np.random.default_rng(3)
    heads = [rng.integers(3, 90, p).tolist() for p in (14, 11, 17)]
    rows = [head + rng.integers(3, 90, n).tolist() for n in (2, 5, 9) for head in heads]
    plain = Batch.from_ids(rows)
    shared = Batch(plain.rows, shared=(14, 11, 17) * 3, pass_tokens=1)
    with model.open(selection) as session:
        agree(session.run(plain), session.run(shared), live_tolerance("float32"))
    assert not copied


def test_beginnings_of_one_length_where_padding_them_goes_wrong():
    """Distances that stretch where rows are at different places: only even beginnings are right."""
    hf = tiny_model("llama")
    model, inner = wrap_model(hf, None), hf.model.rotary_emb.forward

    def stretched(x, position_ids):
        if position_ids.shape[0] > 1 and (position_ids[:, -1] != position_ids[0, -1]).any():
            position_ids = 2 * position_ids
        return inner(x, position_ids)

    hf.model.rotary_emb.forward = stretched
    selection = selected(model)
    assert not model.prefix_refusal(selection)
    [check] = model.prefix_checks.values()
    assert not check.uneven
    head = list(range(5, 35))
    rows = [[*head, 40, 41], [*head, 42], [*head[3:], 40, 41], [*head[3:], 43, 44, 45]]
    plain = Batch.from_ids(rows)
    with model.open(selection) as session:
        want = [session.run(Batch((row,))) for row in plain.rows]
        got = session.run(Batch(plain.rows, shared=(30, 30, 27, 27)))
    for site, array in got.arrays.items():
        whole = np.concatenate([one.arrays[site] for one in want])
        assert np.abs(array - whole).max() <= 1e-3 * np.abs(whole).max()


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
    for shared, said in ((2, "of its own"), ((0,), "of its own"), ((1, 1), "all rows or none")):
        with pytest.raises(BadInputError, match=said):
            Batch(Batch.from_ids([[1, 2]]).rows, shared=shared)


def test_a_recurrent_state_is_no_cache_of_tokens():
    config = MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = wrap_model(MambaForCausalLM(config).eval(), None)
    assert "cache" in model.prefix_refusal(selected(model, sites=["resid_post"]))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), max_size=9))
def test_batches_share_what_is_equal(spec):
    heads = [list(range(40)), list(range(40, 80)), [7] * 9]
    texts = [np.array(heads[h] + [90 + i] * n) for i, (h, n) in enumerate(spec)]
    batches = shared_batches(texts, 200, 12)
    places = [place for batch in batches for group in batch for place in group.members]
    assert len(places) == len(set(places))
    for group in (group for batch in batches for group in batch):
        assert group.prefix >= SHORTEST_SHARED
        assert len({tuple(texts[i][: group.prefix]) for i in group.members}) == 1
        assert all(len(texts[i]) > group.prefix for i in group.members)
    if [h for h, _ in spec].count(0) >= 3 and max([n for _, n in spec]) <= 5:
        assert {i for i, (h, _) in enumerate(spec) if h == 0} <= set(places)


def test_known_groups_are_shared_where_that_saves():
    """Three prompts a question: the stem once, ends of a length together, passes within budget."""
    rng = np.random.default_rng(1)
    texts, groups = [], []
    for stem in (52, 61, 48, 55, 50, 58):
        head = rng.integers(0, 90, stem).tolist()
        groups.append(range(len(texts), len(texts) + 3))
        texts += [np.array([*head, 100 + k] + [200 + k] * n) for k, n in enumerate((12, 28, 40))]
    batches = shared_batches(texts, 256, 16, groups)
    members = [group.members for batch in batches for group in batch]
    assert sorted(members) == [tuple(group) for group in groups]
    for batch in batches:
        ends = sum(13 + 29 + 41 for _ in batch)
        assert max(group.prefix for group in batch) * len(batch) + ends <= 4 * 256
        for group in batch:
            assert len(texts[group.members[0]]) == group.prefix + 13
    assert not shared_batches(
        texts[:3], 256, 1000, groups[:1]
    )  # passes that cost more than they save
    assert not shared_batches([text[-20:] for text in texts], 256, 16, groups)
    assert shared_batches(texts[:1], 256, 16, [[0]]) == []


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(0, 40),
)
def test_ends_are_cut_so_that_padding_and_passes_cost_least(lengths, pass_tokens):
    def cost(passes):
        padded = sum(len(part) * max(lengths[i] for i in part) for part in passes)
        return padded + pass_tokens * len(passes)

    found = end_passes(lengths, pass_tokens)
    assert sorted(i for part in found for i in part) == list(range(len(lengths)))
    if not pass_tokens:
        assert len(found) == 1
        return
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for cuts in range(2 ** min(len(order) - 1, 6)):  # every way to cut the longest seven
        passes, part = [], [order[0]]
        for place, i in enumerate(order[1:]):
            if cuts >> place & 1:
                passes.append(part)
                part = []
            part.append(i)
        assert cost(found) <= cost([*passes, part])


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


def test_site_words_in_place_of_a_selection(models):
    model = models["llama"]
    assert model.prefix_refusal("resid_post") == ""
    assert model.prefix_refusal(["resid_post[0,-1]", "blocks.1.mlp_out"]) == ""
    for words in ("pattern", ["resid_post", "pattern"], model.expand("pattern", [1])[0]):
        assert "attention" in model.prefix_refusal(words)
    with pytest.raises(UnknownNameError, match="resid_pots"):
        model.prefix_refusal("resid_pots")
    with pytest.raises(BadInputError, match="sites are a name"):
        model.prefix_refusal(5)
