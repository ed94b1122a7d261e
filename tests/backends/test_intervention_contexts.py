"""The context: what is refused, what is left behind (nothing), nesting, threads, the record."""

from __future__ import annotations

import json
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from model_state import state_of
from torch import nn

import actscope
from actscope import Ablate, Add, Batch, Clamp, Patch, wrap_model
from actscope.backends.hf import HFModel
from actscope.core.errors import BadInputError, RunError, RunMismatchError, SiteUnavailableError
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.strategies import NoneStrategy
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

V = np.random.default_rng(0).standard_normal(32)
FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox", "cohere", "bloom", "opt"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    hf = tiny_model(request.param, vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    return wrap_model(hf, tiny_tokenizer())


@pytest.fixture(scope="module")
def llama() -> Any:
    hf = tiny_model("llama", vocab_size=BYTE_VOCAB)
    hf.generation_config.eos_token_id = None
    return wrap_model(hf, tiny_tokenizer())


def test_nothing_is_left_whatever_happens(model: HFModel) -> None:
    before = state_of(model.hf)
    plain = model.capture(["a prompt"], sites="logits")["logits"][0]
    add = Add(V, layer=1, strength=3.0)
    with model.intervene(add):
        model.capture(["a prompt"], layers=1)  # stopped early, right after the change
        model.generate(["a prompt"], max_new_tokens=3)
    assert state_of(model.hf) == before
    for raised in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(raised), model.intervene(add), model.intervene(Ablate(layer=0)):
            raise raised("planted")
        assert state_of(model.hf) == before
    with pytest.raises(KeyboardInterrupt), model.intervene(_Interrupting(layer=1)):
        model.capture(["a prompt"])
    assert state_of(model.hf) == before
    assert torch.equal(model.capture(["a prompt"], sites="logits")["logits"][0], plain)
    assert model.identity.interventions == ()


class _Interrupting(Ablate):
    """Ctrl-C in the middle of a forward pass."""

    def change(self, rows: Any, places: Any, columns: Any) -> Any:
        raise KeyboardInterrupt


def test_an_entry_that_fails_leaves_nothing(llama: HFModel, monkeypatch: Any) -> None:
    before = state_of(llama.hf)
    with llama.intervene(Add(V, layer=0, strength=2.0)):
        inside = state_of(llama.hf)
        want = llama.capture(["x"], sites="logits")["logits"][0]
        with pytest.raises(RuntimeError, match="planted"):
            llama.intervene(Patch(_Broken("p", text="y"), layer=1)).__enter__()
        assert state_of(llama.hf) == inside
        assert torch.equal(llama.capture(["x"], sites="logits")["logits"][0], want)
        from actscope.backends.hf import intervening

        def broken(*args: Any) -> None:
            args[2].append(llama.hf.register_forward_hook(lambda *a: None))
            raise RuntimeError("planted")

        whole = intervening.install
        calls = iter([broken, whole])
        monkeypatch.setattr(intervening, "install", _following(calls))
        with pytest.raises(RuntimeError, match="planted"):
            llama.intervene(Ablate(layer=1)).__enter__()
        assert state_of(llama.hf) == inside
    assert state_of(llama.hf) == before


def _following(calls: Any) -> Any:
    def call(*args: Any) -> Any:
        return next(calls)(*args)

    return call


class _Broken(actscope.Example):
    @property
    def text(self) -> str:  # type: ignore[override]
        raise RuntimeError("planted")

    @text.setter
    def text(self, value: str) -> None:
        pass


def test_nested_contexts_and_sessions_in_either_order(llama: HFModel) -> None:
    batch = Batch.from_ids([[5, 6, 7, 8]])
    selection = Selection((Site("resid_post", 0), Site("resid_post", 2)), NoneStrategy())
    a, b = Add(V, layer=0, strength=2.0), Ablate(layer=1, site="mlp_out")
    with llama.intervene(a, b), llama.open(selection) as session:
        want = session.run(batch)
    with llama.open(selection) as session:
        plain = session.run(batch)
        with llama.intervene(a) as outer:
            half = session.run(batch)
            with llama.intervene(b) as inner:
                both = session.run(batch)
            again = session.run(batch)
        after = session.run(batch)
    for site in selection.sites:
        assert torch.equal(both[site][0], want[site][0])
        assert torch.equal(half[site][0], again[site][0])
        assert torch.equal(plain[site][0], after[site][0])
        assert not torch.equal(half[site][0], plain[site][0])
    assert [e.passes for e in outer.effects] == [3]
    assert [e.passes for e in inner.effects] == [1]
    assert (len(both.interventions), len(half.interventions)) == (2, 1)


def test_contexts_may_close_in_another_order(llama: HFModel) -> None:
    before = state_of(llama.hf)
    plain = llama.capture(["x"], layers=2)["resid_post", 2][0]
    first = llama.intervene(Add(V, layer=0, strength=2.0))
    second = llama.intervene(Add(V, layer=1, strength=2.0))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(BadInputError, match="open already"):
        second.__enter__()
    llama.capture(["x"], layers=2)
    second.__exit__(None, None, None)
    assert state_of(llama.hf) == before
    assert torch.equal(llama.capture(["x"], layers=2)["resid_post", 2][0], plain)
    with second:  # one context may be used again; it counts anew
        llama.capture(["x"], layers=2)
    assert [e.passes for e in second.effects] == [1]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Add([1.0, 2.0], layer=0, strength=1), BadInputError, "got: width 2"),
        (lambda: Add(V, layer=3, strength=1), BadInputError, "layer out of range"),
        (lambda: Add(V, layer=-4, strength=1), BadInputError, "layer out of range"),
        (lambda: Add(V, layer=[0, -3], strength=1), BadInputError, "asked for twice"),
        (lambda: Add(V, layer=0, site="resid_pots", strength=1), BadInputError, "takes no layer"),
        (lambda: Add(V, site="resid_pots", strength=1), BadInputError, "did you mean"),
        (lambda: Ablate(site="logits"), SiteUnavailableError, "read but not changed"),
        (lambda: Ablate(site="pooler"), SiteUnavailableError, "pooler"),
        (lambda: Ablate(site="model.layers.9.mlp"), BadInputError, "unknown site or module"),
        (lambda: Ablate(layer=0, heads=[0]), BadInputError, "no heads"),
        (lambda: Patch(np.zeros((3, 7)), layer=0), BadInputError, "got: width 7"),
        (lambda: "add", BadInputError, "not an intervention"),
        (lambda: Add, BadInputError, "not an intervention"),
    ],
)
def test_refused_before_anything_runs(llama: HFModel, make: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        llama.intervene(make())
    with pytest.raises(BadInputError, match="nothing to apply"):
        llama.intervene()


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([9], "no token 9"),
        ([-5], "no token -5"),
        ("7:9", "no token in the span 7:9"),
        ([0, 3, 4], "no token 4"),
    ],
)
def test_tokens_outside_the_sequence(llama: HFModel, tokens: Any, says: str) -> None:
    before = state_of(llama.hf)
    with (
        pytest.raises(BadInputError, match=f"example 'short' has {says}"),
        llama.intervene(Add(V, layer=0, strength=1.0, tokens=tokens)),
    ):
        long = actscope.TokenRow.from_ids("long", list(range(5, 15)))
        short = actscope.TokenRow.from_ids("short", [5, 6, 7, 8])
        llama.capture(Batch((long, short)))
    assert state_of(llama.hf) == before


def test_sites_that_do_not_exist_or_change_nothing() -> None:
    parallel = wrap_model(tiny_model("gpt_neox"), None)
    with pytest.raises(SiteUnavailableError, match="parallel"):
        parallel.intervene(Ablate(layer=0, site="resid_mid"))
    bert = wrap_model(tiny_model("bert"), None)
    with pytest.raises(SiteUnavailableError, match="normalises after adding"):
        bert.intervene(Ablate(layer=0, site="attn_out"))
    with pytest.raises(SiteUnavailableError, match="nothing in the model reads it"):
        bert.intervene(Ablate(site="pooler"))


class _Listener(nn.Module):
    """A module whose answer nobody uses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class _Keeps(nn.Module):
    """A block that carries its input around the module that the next block reads from."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = _Listener()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.aside(x)
        return x + self.linear(x)


class _Stream(nn.Module):
    """A model that keeps the embedding and adds it again at the end: no plain residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.blocks = nn.ModuleList(_Keeps() for _ in range(3))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return x


def test_a_change_that_nobody_reads_is_refused_by_value() -> None:
    torch.manual_seed(0)
    model = wrap_model(_Stream(), None)
    with model.intervene(Ablate(site="blocks.1.linear")) as applied:
        model.capture([[1, 2, 3]])
    applied.check()
    with pytest.raises(SiteUnavailableError, match="answer does not depend on it"):
        model.intervene(Ablate(site="blocks.1.aside")).__enter__()
    assert all(not m._forward_hooks for m in model.hf.modules())


class _Copying(_Keeps):
    """A block that hands the stream on before its own answer is read."""

    held: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        source = x if _Copying.held is None else _Copying.held
        _Copying.held = source + self.linear(source)
        return _Copying.held.clone()


def test_a_stream_behind_the_blocks_back_is_refused_by_value() -> None:
    """Blocks that read a buffer, not what they are given: resid_post can be read, not changed."""
    torch.manual_seed(0)
    stream = _Stream()
    stream.blocks = nn.ModuleList(_Copying() for _ in range(3))
    stream.blocks[0].register_forward_pre_hook(lambda *a: setattr(_Copying, "held", None))
    model = wrap_model(stream, None)
    with pytest.raises(SiteUnavailableError, match="can be read but not changed"):
        model.intervene(Ablate(layer=0)).__enter__()
    assert _Copying.held is not None


def test_what_never_fired_is_said(llama: HFModel) -> None:
    add = Add(V, layer=2, strength=1.0)
    with llama.intervene(add) as idle:
        pass  # nothing ran: no warning, but check() says so
    with pytest.raises(RunError, match="0 forward passes"):
        idle.check()
    with (
        pytest.warns(UserWarning, match=r"1 forward passes ran and never met Add"),
        llama.intervene(add) as early,
    ):
        llama.capture(["x"], layers=0)  # stops before layer 2
    with pytest.raises(RunError, match="never fired"):
        early.check()
    with (
        pytest.warns(UserWarning, match="never met"),
        llama.intervene(Add(V, layer=0, strength=1.0, tokens="response")),
    ):
        llama.capture(["x"], layers=0)  # a prompt has no response
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="planted"), llama.intervene(add):
            llama.capture(["x"], layers=0)
            raise ValueError("planted")  # the error is the news, not the warning


def test_another_thread_is_refused_and_never_changed(llama: HFModel) -> None:
    plain = llama.capture(["x"], sites="logits")["logits"][0]
    caught: list[BaseException] = []

    def work(action: Any) -> None:
        try:
            action()
        except BaseException as error:
            caught.append(error)

    other = Add(V, layer=1, strength=1.0)
    ids = torch.tensor([[5, 6]])
    actions = [
        lambda: llama.capture(["x"], sites="logits"),
        lambda: llama.generate(["x"], max_new_tokens=1),
        lambda: llama.intervene(other).__enter__(),
        lambda: llama.hf(ids),
    ]
    with llama.intervene(Add(V, layer=0, strength=1.0)) as applied:
        for action in actions:
            thread = threading.Thread(target=work, args=(action,))
            thread.start()
            thread.join()
        mine = llama.capture(["x"], sites="logits")["logits"][0]
    assert len(caught) == len(actions)
    assert all("another one has interventions" in str(e) for e in caught)
    assert [e.passes for e in applied.effects] == [1]
    assert not torch.equal(mine, plain)
    thread = threading.Thread(target=work, args=(actions[0],))
    thread.start()
    thread.join()
    assert len(caught) == len(actions)  # once it is over, any thread may run


def test_a_pass_that_began_before_the_context_stays_plain(llama: HFModel) -> None:
    """Thread B is in the middle of a pass when thread A opens its context."""
    reached, go_on = threading.Event(), threading.Event()
    out: list[Any] = []

    def wait(*args: Any) -> None:
        reached.set()
        assert go_on.wait(30)

    plain = llama.capture([[5, 6, 7]], sites="logits")["logits"][0]
    handle = llama.hf.model.layers[0].register_forward_pre_hook(wait)
    thread = threading.Thread(
        target=lambda: out.append(llama.capture([[5, 6, 7]], sites="logits")["logits"][0])
    )
    thread.start()
    assert reached.wait(30)
    handle.remove()
    context = llama.intervene(Add(V, layer=1, strength=5.0))
    context.__enter__()
    go_on.set()
    thread.join()
    context.__exit__(None, None, None)
    assert torch.equal(out[0], plain)


def test_patches_find_their_rows(llama: HFModel) -> None:
    texts = ["first", "fifth", "other"]
    source = llama.capture(["FIRST", "FIFTH", "OTHER"], layers=1)
    with llama.intervene(Patch(source, layer=1)):
        got = llama.capture(texts, layers=1, batch_tokens=6)  # one example a batch
    for a, b in zip(got["resid_post", 1], source["resid_post", 1], strict=True):
        assert torch.equal(a, b)
    renamed = [actscope.Example("unknown", text="first")]

    def refused(patch: Patch, inputs: Any, says: str) -> None:
        with pytest.raises(BadInputError, match=says), llama.intervene(patch):
            llama.capture(inputs, layers=1)

    refused(Patch(source, layer=1), renamed, "no example 'unknown'")
    refused(Patch("a longer one", layer=1), ["short"], "differ in length")
    with pytest.raises(BadInputError, match="captured site"):
        llama.intervene(Patch(source, layer=0))
    with pytest.raises(BadInputError, match="pooled"):
        Patch(llama.capture(texts, layers=1, strategy="mean"), layer=1)
    spanned = llama.capture(["FIRST"], layers=1, span="last:2")
    refused(Patch(spanned, layer=1), ["first"], "no row for token 0")
    with llama.intervene(Patch(spanned, layer=1, tokens=[-1, -2])):
        got = llama.capture(["first"], layers=1)["resid_post", 1][0]
    assert torch.equal(got[-2:], source["resid_post", 1][0][-2:])
    bad = llama.capture(["FIRST"], layers=1)
    bad.arrays[Site("resid_post", 1)][0, 0] = np.nan
    refused(Patch(bad, layer=1), ["first"], "not finite")


def test_a_prompt_is_a_source(llama: HFModel) -> None:
    want = llama.capture(["FIRST"], layers="all")
    patch = Patch("FIRST", layer=[0, 2])
    with llama.intervene(patch) as applied:
        got = llama.capture(["first"], layers="all")
    assert applied.passes == 1  # the source ran before
    for layer in (0, 2):
        assert torch.equal(got["resid_post", layer][0], want["resid_post", layer][0])
    assert got.interventions[0]["source"] != "prompt"


def test_runs_and_captures_say_what_was_done(llama: HFModel, tmp_path: Any) -> None:
    plain = llama.identity
    extractor = actscope.ActivationExtractor(llama, layers=[-1])
    runner = actscope.DatasetRunner(
        ["one", "another"], extractor=extractor, storage=actscope.ShardStorage(tmp_path)
    )
    first = runner.run()
    steer = [Add(V, layer=0, strength=2.0), Clamp(layer=1, neurons=3, value=1.0, tokens=[0])]
    with llama.intervene(*steer) as applied:
        second = runner.run()
        with pytest.raises(RunMismatchError, match=r"model.interventions"):
            runner.run(run_id=first.run_id)
        described = json.loads(json.dumps(llama.identity.interventions, allow_nan=False))
    applied.check()
    assert [d["name"] for d in described] == ["add", "clamp"]
    assert described[0]["sites"] == ["blocks.0.resid_post"]
    assert (described[0]["strength"], described[1]["neurons"]) == (2.0, [3])
    assert described[1]["tokens"] == "0"
    assert llama.identity == plain
    assert len({first.run_id, second.run_id}) == 2
    assert second.open().spec["model"]["interventions"] == described
    assert "interventions" not in first.open().spec["model"]
    stronger = [Add(V, layer=0, strength=2.5), steer[1]]
    with llama.intervene(*stronger):
        assert runner.dry_run().already_done == 0
    with llama.intervene(*steer[::-1]):
        assert runner.dry_run().already_done == 0  # another order is another model
    with llama.intervene(*steer):
        assert runner.run().resumed == 2
    with pytest.raises(RunMismatchError, match="interventions"):
        runner.run(run_id=second.run_id)
    assert runner.run().resumed == 2
    a, b = (r.open().stack("resid_post", -1) for r in (first, second))
    assert not torch.equal(a, b)
    with llama.intervene(Patch(first.open(), layer=-1)):
        rows = llama.capture(["one", "another"], layers=[-1])
    torch.testing.assert_close(torch.cat(rows["resid_post", -1]), a)


def test_plain_specs_have_the_fingerprint_they_had() -> None:
    """Runs made before interventions existed must still be found."""
    from actscope.core.spec import CaptureSpec, ModelIdentity

    spec = CaptureSpec(ModelIdentity("m", "r", None, "llama", 2, 8, "float32"), "d", ("s",))
    assert "interventions" not in spec.to_json()["model"]
    assert spec.fingerprint == "a8aee315b5e1759d3dcc85290989ca0e3d32c9c138a6db108be2e06a073fda4e"
