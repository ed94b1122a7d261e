"""The extractor on a tiny synthetic model: strategies, layer selectors, edge cases, no residue."""

import numpy as np
import pytest
import torch
from torch import nn

import actscope
from actscope import ActivationExtractor, Batch, wrap_model
from actscope.core.errors import BadInputError, ExampleError, ModelLoadError, UnknownNameError

VOCAB, WIDTH = 40, 12
IDS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]


class Block(nn.Module):
    """What a token sees (the mean of its past, in place of attention), then an MLP."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
        seen = x.cumsum(1) / steps[None, :, None]
        return x + self.down(torch.tanh(self.up(seen)))


class TinyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return TinyModel().eval()


@pytest.fixture
def model(plain):
    return wrap_model(plain, None)


def by_hand(plain, ids, depth):
    """The residual stream after ``depth`` blocks, one example at a time."""
    with torch.no_grad():
        x = plain.embed(torch.tensor([ids]))
        for block in plain.blocks[:depth]:
            x = block(x)
    return x[0]


POOLED = {
    "last": lambda h: h[-1],
    "first": lambda h: h[0],
    "mean": lambda h: h.mean(0),
    "max": lambda h: h.max(0).values,
}


@pytest.mark.parametrize("strategy", POOLED)
def test_strategies_pool_only_the_real_tokens_of_mixed_lengths(plain, model, strategy):
    found = ActivationExtractor(model, layers=[0, 1], strategy=strategy).extract(IDS)
    for layer in (0, 1):
        want = torch.stack([POOLED[strategy](by_hand(plain, ids, layer + 1)) for ids in IDS])
        got = found["resid_post", layer]
        assert got.shape == (len(IDS), WIDTH)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_no_trace_in_what_comes_back(model, side):
    extractor = ActivationExtractor(model, layers=[0])
    alone = ActivationExtractor(model, layers=[0], strategy="mean").extract([IDS[1]])
    rows = extractor.extract(Batch.from_ids([IDS[1], IDS[1]], padding_side=side))
    assert [len(x) for x in rows["resid_post", 0]] == [2, 2]
    torch.testing.assert_close(rows["resid_post", 0][0].mean(0), alone["resid_post", 0][0])


def test_without_a_strategy_row_i_is_token_i(plain, model):
    found = ActivationExtractor(model, layers=[1]).extract(IDS)
    assert [record.n_tokens for record in found.examples] == [5, 2, 3]
    for ids, rows in zip(IDS, found["resid_post", 1], strict=True):
        torch.testing.assert_close(rows, by_hand(plain, ids, 2))


def test_strategy_objects_and_functions(plain, model):
    mean = ActivationExtractor(model, [1], actscope.MeanStrategy()).extract(IDS)
    own = ActivationExtractor(model, [1], lambda h: h.mean(axis=0)).extract(IDS)
    np.testing.assert_allclose(mean.numpy("resid_post", 1), own.numpy("resid_post", 1), rtol=1e-5)


def test_layers_by_index_name_key_and_module(plain, model):
    same = [-1, 1, "blocks.1", "blocks.1.resid_post", plain.blocks[1]]
    want = torch.stack([by_hand(plain, ids, 2)[-1] for ids in IDS])
    for selector in same:
        extractor = ActivationExtractor(model, layers=[selector], strategy="last")
        (site,) = extractor.sites
        torch.testing.assert_close(extractor.extract(IDS)[site], want)


def test_several_layers_of_different_kinds_at_once(plain, model):
    extractor = ActivationExtractor(model, layers=[0, -1, "blocks.0.down"])
    assert [str(s) for s in extractor.sites] == [
        "blocks.0.down",
        "blocks.0.resid_post",
        "blocks.1.resid_post",
    ]
    found = extractor.extract(IDS)
    for example, ids in enumerate(IDS):
        before, after = by_hand(plain, ids, 0), by_hand(plain, ids, 1)
        added = found[extractor.sites[0]][example]
        torch.testing.assert_close(before + added, after)


def test_sites_at_layers(model):
    extractor = ActivationExtractor(model, [0, -1], sites=["resid_pre", "resid_post"])
    assert [str(s) for s in extractor.sites] == [
        "blocks.0.resid_post",
        "blocks.1.resid_post",
        "blocks.0.resid_pre",
        "blocks.1.resid_pre",
    ]
    assert len(ActivationExtractor(model, "all").sites) == 2
    with pytest.raises(BadInputError, match="with sites, layers are indices"):
        ActivationExtractor(model, ["blocks.0"], sites="resid_pre")


@pytest.mark.parametrize("layers", [[1, 1], [1, -1], ["blocks.0", "blocks.0"]])
def test_duplicates_are_refused(model, layers):
    with pytest.raises(BadInputError, match="twice"):
        ActivationExtractor(model, layers=layers)


@pytest.mark.parametrize("layers", [[0, 0], [0, -2], "0,0", "1, -1"])
@pytest.mark.parametrize("sites", ["resid_post", ["resid_post"], "embed,resid_pre"])
def test_duplicate_indices_are_refused_with_sites_too(model, sites, layers):
    with pytest.raises(BadInputError, match=r"layer [01] was asked for twice"):
        ActivationExtractor(model, layers, sites=sites)


@pytest.mark.parametrize("sites", ["resid_post[1,0]", "resid_post.1,resid_post.0", "resid_post"])
def test_sites_have_one_order_however_they_were_asked_for(model, sites):
    layers = [1, 0] if sites == "resid_post" else "all"
    wanted = ActivationExtractor(model, "all").sites
    assert ActivationExtractor(model, layers, sites=sites).sites == wanted
    assert ActivationExtractor(model, [1, 0]).sites == wanted


@pytest.mark.parametrize("layer", [2, -3, 99])
def test_a_layer_out_of_range_says_which_there_are(model, layer):
    with pytest.raises(BadInputError, match="out of range") as caught:
        ActivationExtractor(model, layers=[layer])
    assert "2 layers" in str(caught.value)


def test_unknown_names_say_what_may_be_meant(model):
    with pytest.raises(UnknownNameError, match=r"did you mean 'blocks\.1'"):
        ActivationExtractor(model, layers=["block.1"])
    with pytest.raises(UnknownNameError, match="did you mean 'resid_post'"):
        ActivationExtractor(model, sites="resid_pots")
    with pytest.raises(BadInputError, match="not part of this model"):
        ActivationExtractor(model, layers=[nn.Linear(2, 2)])
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        ActivationExtractor(model, strategy="meen")


def hooks(plain):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in plain.modules()
    )


def test_hooks_live_as_long_as_the_context(plain, model):
    extractor = ActivationExtractor(model, layers=[0, 1])
    assert hooks(plain) == 0
    with extractor:
        assert hooks(plain) == 2
        first = extractor.extract(IDS)
        assert hooks(plain) == 2
        with pytest.raises(BadInputError, match="open already"), extractor:
            pass
        assert hooks(plain) == 2
    assert hooks(plain) == 0
    again = extractor.extract(IDS)  # opens and closes for this one call
    assert hooks(plain) == 0
    np.testing.assert_array_equal(first.numpy("resid_post", 1), again.numpy("resid_post", 1))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_exception(plain, model, error):
    with pytest.raises(error), ActivationExtractor(model):
        raise error
    assert hooks(plain) == 0

    def broken(h):
        raise error

    with pytest.raises(error):
        ActivationExtractor(model, strategy=broken).extract(IDS)
    assert hooks(plain) == 0


def test_two_extractors_can_be_open_together(plain, model):
    with ActivationExtractor(model, [0]) as one, ActivationExtractor(model, [1]) as two:
        shallow, deep = one.extract(IDS), two.extract(IDS)
    torch.testing.assert_close(shallow["resid_post", 0][0], by_hand(plain, IDS[0], 1))
    torch.testing.assert_close(deep["resid_post", 1][0], by_hand(plain, IDS[0], 2))
    assert hooks(plain) == 0


def test_the_models_output_is_unchanged(plain, model):
    ids = torch.tensor([IDS[0]])
    with torch.no_grad():
        before = plain(ids)
        with ActivationExtractor(model, "all") as extractor:
            extractor.extract(IDS)
            during = plain(ids)
    assert torch.equal(before, during)


def test_spans(plain, model):
    found = ActivationExtractor(model, [0], span="last:2").extract(IDS)
    torch.testing.assert_close(found["resid_post", 0][0], by_hand(plain, IDS[0], 1)[-2:])
    with pytest.raises(ExampleError) as caught:
        ActivationExtractor(model, [0], span="2:").extract(IDS)
    assert "'1'" in str(caught.value)


def test_bad_inputs(model):
    extractor = ActivationExtractor(model)
    with pytest.raises(BadInputError, match="no inputs"):
        extractor.extract([])
    with pytest.raises(ExampleError, match="no tokens"):
        extractor.extract([[]])
    with pytest.raises(BadInputError, match="no tokenizer"):
        extractor.extract(["text"])
    with pytest.raises(ExampleError, match=str(VOCAB)):
        extractor.extract([[VOCAB]])


def test_cls_needs_an_encoder(model):
    with pytest.raises(BadInputError):
        ActivationExtractor(model, strategy="cls")
    fallback = ActivationExtractor(model, strategy=actscope.CLSStrategy(strict=False))
    first = ActivationExtractor(model, strategy="first")
    torch.testing.assert_close(
        fallback.extract(IDS)["resid_post", 1], first.extract(IDS)["resid_post", 1]
    )


def test_a_device_mismatch_says_which_tensor_is_where(plain):
    plain.head.to("meta")
    with pytest.raises(ModelLoadError) as caught:
        wrap_model(plain, None)
    message = str(caught.value)
    assert "head.weight is on meta" in message
    assert "embed.weight is on cpu" in message
    assert "model.to(device)" in message


def test_a_prompt_over_the_context_is_named():
    from actscope.testing.tiny_models import tiny_model

    model = wrap_model(tiny_model("llama"), None)
    with pytest.raises(ExampleError, match="'0' has 70 tokens; the context holds 64"):
        ActivationExtractor(model).extract([[3] * 70])
